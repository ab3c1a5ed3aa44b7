"""``teso-deploy bench``: how fast a bundle is on this machine, alone and against others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.backends.onnxruntime import TARGET as ONNXRUNTIME
from teso_deploy.backends.onnxruntime import count_cores
from teso_deploy.bundle import Bundle, find_bundle_folder
from teso_deploy.cli.options import JsonOption, adapt, with_options
from teso_deploy.cli.reports import check_json, list_shown, say, write_json
from teso_deploy.cli.values import parse_precision, parse_size
from teso_deploy.comparison.contenders import CONTENDERS, choose_contenders
from teso_deploy.comparison.harness import compare, entrants
from teso_deploy.comparison.report import markdown, save_bars
from teso_deploy.errors import BundleError, CheckFailedError
from teso_deploy.media.reader import VideoReader
from teso_deploy.options.engine import EngineOptions
from teso_deploy.outputs import as_json, check_apart, check_file, check_folder, make_folder, write_text
from teso_deploy.resources import find_shipped_path
from teso_deploy.types import PRECISIONS, Precision

SECONDS = 20.0


def _choose_precisions(bundle: Bundle, requested: list[str]) -> list[Precision]:
    """Return the requested precisions. Default: all for which the bundle has a form for ONNX Runtime.

    Raises :class:`BundleError` if a requested precision has no form.
    """
    if requested:
        wanted = list(dict.fromkeys(parse_precision(text) for text in requested))
        for precision in wanted:
            bundle.form_for((ONNXRUNTIME,), precision)
        return wanted
    available: list[Precision] = []
    for precision in PRECISIONS:
        try:
            bundle.form_for((ONNXRUNTIME,), precision)
        except BundleError:
            continue
        available.append(precision)
    return available


def _make_table(report: dict[str, Any]) -> Table:
    table = Table(title="batch 1, milliseconds")
    for column in ("name", "stage", "p50", "p95", "fps", "mask IoU", "peak MB"):
        table.add_column(column, justify="left" if column in ("name", "stage") else "right")
    for row in report["rows"]:
        extra = [row.get(name) for name in ("fps", "mask_iou", "peak_rss_mb")]
        cells = ["" if value is None else f"{value:.4g}" for value in extra]
        table.add_row(row["name"], row["stage"], f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}", *cells)
    return table


@with_options
def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Folder of a bundle; default: the shipped one.")] = None,
    *,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Compare with another implementation, at the same sizes (may be repeated): {', '.join(CONTENDERS)}.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Precision of the bundle's form (may be repeated); default: all for ONNX Runtime."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW|N", help="One of the bundle's sizes; default: the first.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="Video for frames and sounds; default: the shipped clip.")] = None,
    engine: Annotated[
        EngineOptions,
        adapt(only=("threads",), helps={"threads": "Threads of each implementation. Default: all cores."}),
    ],
    seconds: Annotated[
        float, typer.Option(min=0, help="Measure for at least this many seconds, after two warm-up rounds.")
    ] = SECONDS,
    report_folder: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Folder for bench.json, bench.md and bench.png.")
    ] = None,
    json_out: JsonOption = None,
) -> None:
    """Time a bundle, stage by stage, and others on a model of the same sizes; all take turns in one run."""
    contenders = choose_contenders(against or ())
    wanted = parse_size(size) if size else None
    check_json(json_out)
    reports = [] if report_folder is None else [report_folder / f"bench.{kind}" for kind in ("json", "md", "png")]
    if report_folder is not None:
        check_folder(report_folder)
    for path in reports if report_folder is not None and os.path.isdir(report_folder) else ():
        check_file(path)
    check_apart([find_bundle_folder(bundle), clip], [*reports, json_out])
    opened = Bundle.open(bundle)
    wanted = wanted or opened.sizes[0]
    opened.check_size(wanted)
    clip = clip or find_shipped_path("export/demo/clip.mp4")
    with VideoReader(clip):
        pass
    count = engine.threads or count_cores()
    who = entrants(
        opened,
        wanted,
        precisions=_choose_precisions(opened, precision or []),
        contenders=contenders,
        threads=count,
        clip=clip,
    )
    libraries = sorted({module for contender in contenders for module in contender.needs})
    console = Console(stderr=True)
    with console.status("starting") as status:
        report = compare(
            opened, wanted, who, threads=count, seconds=seconds, libraries=libraries, progress=list_shown(status)
        )
    title = f"{opened.manifest.name} at {wanted[0]}x{wanted[1]}, {count} threads"
    console.print(title)
    console.print(_make_table(report))
    for name, ratio in report["ratios"].items():
        say(console, f"{name}: {ratio:.2f} ×")
    if report["environment"]["is_noisy"]:
        console.print("other work was running when this began: measure again on a quiet machine")
    if report_folder is not None:
        make_folder(report_folder)
        write_text(report_folder / "bench.json", as_json(report))
        write_text(report_folder / "bench.md", markdown(title, report))
        bars = [(row["name"], row["p50_ms"], row["p95_ms"]) for row in report["rows"] if row["stage"] == "frame"]
        if bars:
            save_bars(report_folder / "bench.png", f"a frame of {title}", bars)
    write_json(json_out, report)
    if report["failures"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report["failures"].items())
        raise CheckFailedError(f"not all could be measured: {reasons}")
