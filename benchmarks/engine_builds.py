"""Time and size of building every engine of a bundle with TensorRT-RTX, which needs no GPU.

    python -m benchmarks run engine-builds BUNDLE... [--arch portable,sm86] [--precision fp32,fp16] [--out FILE.json]

A bundle needs the graphs of every precision but fp32 (`teso-deploy export … --precision fp16`). Engines are written to
a temporary folder. "Half" is the share of floating-point tensors of the strongly typed network that are in half
precision.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.results_files import add_out, record
from teso_deploy._version import __version__
from teso_deploy.backends.tensorrt.bindings import load_library
from teso_deploy.backends.tensorrt.making import find_source, make_engine
from teso_deploy.backends.tensorrt.profiles import load_profile
from teso_deploy.backends.tensorrt.targets import PORTABLE
from teso_deploy.bundle import Bundle
from teso_deploy.errors import TesoError
from teso_deploy.types import Precision


def measure(
    folders: Sequence[Path], *, architectures: Sequence[str], precisions: Sequence[Precision], profile: str
) -> dict[str, Any]:
    """Build the engines, and return a report with one row per engine."""
    library, settings = load_library("tensorrt-rtx"), load_profile(profile)
    rows = []
    for folder in folders:
        bundle = Bundle.open(folder)
        for precision in precisions:
            for graph in bundle.manifest.graphs:
                source = find_source(bundle, graph, precision)
                for name in architectures:
                    architecture = None if name == PORTABLE else name
                    with tempfile.TemporaryDirectory() as work:
                        sidecar = make_engine(
                            library, source, settings, path=Path(work) / "x.engine", architecture=architecture
                        )
                    row = {
                        "bundle": bundle.manifest.name,
                        "size": list(bundle.sizes[0]),
                        "graph": graph,
                        "precision": precision,
                        "architecture": name,
                        "seconds": sidecar.build_seconds,
                        "megabytes": round(sidecar.bytes / 1e6, 1),
                        "half_share": sidecar.shares.get("fp16", 0.0) + sidecar.shares.get("bf16", 0.0),
                        "msda": sidecar.msda,
                    }
                    rows.append(row)
                    print(*row.values(), file=sys.stderr)
    peak_megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "schema_version": 1,
        "rows": rows,
        "peak_rss_mb": round(peak_megabytes),
        "environment": {
            "tensorrt_rtx": library.version,
            "teso_deploy": __version__,
            "profile": settings.name,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
        },
    }


def markdown(report: dict[str, Any]) -> str:
    """Make a table with a line per graph and precision. A cell per architecture has seconds and megabytes."""
    names = list(dict.fromkeys(row["architecture"] for row in report["rows"]))
    lines = [f"| bundle | graph | | half | {' | '.join(f'{name}: s, MB' for name in names)} |"]
    lines.append("|---|---|---|---|" + "---|" * len(names))
    grouped: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in report["rows"]:
        grouped.setdefault((row["bundle"], row["graph"], row["precision"]), {})[row["architecture"]] = row
    for (bundle, graph, precision), cells in grouped.items():
        half = next(iter(cells.values()))["half_share"]
        figures = [f"{cells[name]['seconds']:.1f}, {cells[name]['megabytes']:.1f}" for name in names]
        lines.append(f"| {bundle} | {graph} | {precision} | {half:.0%} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--arch", default="portable,sm86,sm89,sm120")
    parser.add_argument("--precision", default="fp32,fp16")
    parser.add_argument("--profile", default="live")
    add_out(parser)
    options = parser.parse_args(arguments)
    try:
        precisions = [cast(Precision, name) for name in options.precision.split(",")]
        report = measure(
            options.bundles, architectures=options.arch.split(","), precisions=precisions, profile=options.profile
        )
    except TesoError as error:
        print(f"engine-builds: {error}", file=sys.stderr)
        return error.exit_code
    record("engine-builds-tensorrt-rtx", "Engines of TensorRT-RTX", report, out=options.out, page=markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
