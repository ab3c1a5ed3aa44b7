"""How the benchmarks measure, what machine they ran on, and how they write it down."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from teso_deploy import __version__
from teso_deploy.bundle import Bundle
from teso_deploy.runtime.latency import percentiles_ms

WARM_UP_SECONDS = 0.2
LEAST_SECONDS, LEAST_RUNS = 3.0, 10
RESULTS = Path(__file__).parent / "results"


def measured(call: Callable[[int], object], seconds: float = LEAST_SECONDS) -> list[float]:
    """Seconds of each run of ``call(i)``: 0.2 s of warm-up, then at least ``seconds`` and ten runs."""
    began, i = time.perf_counter(), 0
    while i == 0 or time.perf_counter() - began < WARM_UP_SECONDS:
        call(i)
        i += 1
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST_RUNS or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - before)
        i += 1
    return times


def spread(values: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation / mean."""
    return float(np.std(values) / np.mean(values))


def row(name: str, times: Sequence[float]) -> dict[str, Any]:
    """A row of a latency report."""
    latency = {f"{percentile}_ms": value for percentile, value in percentiles_ms(times).items()}
    return {"name": name, "runs": len(times), **latency, "coefficient_of_variation": round(spread(times), 4)}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(bundle: Bundle, threads: int) -> dict[str, Any]:
    """What the numbers hold for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "teso_deploy": __version__,
        **{name: metadata.version(name) for name in ("onnxruntime", "numpy", "av", "pillow")},
        "bundle": bundle.manifest.name,
        "trained": bundle.manifest.trained,
        "weights_sha256": bundle.manifest.provenance.get("weights_sha256"),
        "input_size": list(bundle.manifest.preprocessing.sizes[0]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def markdown(title: str, report: dict[str, Any]) -> str:
    """The report as a page; every column of the first row is a column."""
    rows: list[dict[str, Any]] = report["rows"]
    columns = list(rows[0])
    lines = [f"# {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for entry in rows:
        cells = (f"{entry[c]:.3g}" if isinstance(entry[c], float) else str(entry[c]) for c in columns)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{report['bound_by']}", ""]
    lines += [f"- {name}: {value}" for name, value in report["environment"].items()]
    return "\n".join(lines) + "\n"


def publish(name: str, title: str, report: dict[str, Any], folder: Path) -> None:
    """Write ``{name}.json`` and ``{name}.md`` to a folder, and print the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    page = markdown(title, report)
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    sys.stdout.write(page)
