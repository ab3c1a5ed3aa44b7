"""Reports of measurements, with the machine: as JSON, as a page, and as bars."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from teso_deploy._version import __version__
from teso_deploy.backends.shared_libraries import version_of
from teso_deploy.bundle import Bundle
from teso_deploy.latency import percentiles_ms
from teso_deploy.outputs import as_json, make_folder, open_staged_file, write_text

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "numpy", "av", "pillow")
#: If the load at the start was higher, other work has slowed some turns.
NOISY_LOAD_PER_CORE = 0.5


def spread(values: Sequence[float]) -> float:
    """Compute the coefficient of variation: standard deviation / mean."""
    return float(np.std(values) / np.mean(values))


def percentile_row(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Make the first columns of a row: count, percentiles in milliseconds, spread."""
    latency = {f"{percentile}_ms": value for percentile, value in percentiles_ms(seconds).items()}
    return {"name": name, "runs": len(seconds), **latency, "coefficient_of_variation": round(spread(seconds), 4)}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment_of(
    threads: int, bundle: Bundle | None = None, libraries: Sequence[str] = LIBRARIES, **more: Any
) -> dict[str, Any]:
    """Describe the machine and versions for which numbers hold, with its load of the last minute.

    Args:
        threads: Threads for each entrant.
        bundle: The bundle. Default: none.
        libraries: Libraries whose versions are reported.
        **more: Further entries.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": threads,
        "load_average": round(load, 2),
        "is_noisy": load > NOISY_LOAD_PER_CORE * cores,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "teso_deploy": __version__,
    }
    versions = {name: version_of(name) for name in dict.fromkeys((*LIBRARIES, *libraries))}
    found |= {name: version for name, version in versions.items() if version is not None}
    if bundle is not None:
        found |= {
            "bundle": bundle.manifest.name,
            "trained": bundle.manifest.trained,
            "weights_sha256": bundle.manifest.provenance.get("weights_sha256"),
            "input_size": list(bundle.sizes[0]),
        }
    return {**found, **more, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return "–" if value is None else str(value)


def markdown(title: str, report: dict[str, Any]) -> str:
    """Format a report as a page: rows as a table (the union of their columns), a sentence, ratios, the machine."""
    rows: list[dict[str, Any]] = report["rows"]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"# {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    lines += ["", report["bound_by"], ""]
    for name in ("ratios", "shares"):
        if report.get(name):
            lines += [f"| {name} | |", "|---|---|", *(f"| {k} | {_cell(v)} |" for k, v in report[name].items()), ""]
    lines += [f"- {name}: {value}" for name, value in report["environment"].items()]
    return "\n".join(lines) + "\n"


def save_bars(path: Path, title: str, bars: Sequence[tuple[str, float, float]]) -> None:
    """Draw (name, p50, p95) in milliseconds as PNG: a bar to p50, a line to p95.

    Args:
        path: The file.
        title: The title.
        bars: The rows.
    """
    left, width, height = 220, 900, 34
    image = Image.new("RGB", (left + width + 130, 50 + height * len(bars)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    draw.text((10, 12), title, "black", ImageFont.load_default(17))
    scale = width / max(p95 for _, _, p95 in bars)
    for i, (name, p50, p95) in enumerate(bars):
        top = 46 + i * height
        colour = (38, 112, 190) if name.startswith("ours") else (150, 156, 166)
        draw.text((left - 10 - draw.textlength(name, font), top + 3), name, "black", font)
        draw.rectangle((left, top, left + p50 * scale, top + height - 10), fill=colour)
        middle = top + (height - 10) // 2
        draw.line((left + p50 * scale, middle, left + p95 * scale, middle), fill="black", width=2)
        draw.text((left + p95 * scale + 8, top + 3), f"{p50:.1f} ms", "black", font)
    with open_staged_file(path) as staged:
        image.save(staged, "PNG")


def publish(name: str, *, title: str, report: dict[str, Any], folder: Path) -> None:
    """Write ``{name}.json`` and ``{name}.md`` to a folder, and print the page.

    Args:
        name: The name of the files.
        title: The title of the page.
        report: The report.
        folder: The folder.
    """
    make_folder(folder)
    write_text(folder / f"{name}.json", as_json(report))
    page = markdown(title, report)
    write_text(folder / f"{name}.md", page)
    sys.stdout.write(page)
