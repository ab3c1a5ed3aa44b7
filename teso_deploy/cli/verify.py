"""``teso-deploy verify``: does a bundle still compute what PyTorch did, and obey the sound?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.backends.onnxruntime import onnxruntime_factory
from teso_deploy.bundle import Bundle
from teso_deploy.cli.reports import check_json, write_json
from teso_deploy.errors import CheckFailedError
from teso_deploy.runtime.verify import verify_bundle


def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Folder of a bundle; default: the shipped one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engines; default: all cores.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the report to a file, or - for stdout.")
    ] = None,
) -> None:
    """Check every file's hash, every graph against the reference (masks first), and the audio control."""
    check_json(json_out)
    opened = Bundle.open(bundle)
    report = verify_bundle(opened, onnxruntime_factory(threads))
    console = Console(stderr=True)
    table = Table(title=f"{opened.manifest.name} on {report.backend}")
    for column in ("graph", "equal pixels", "mask IoU", "cosine", "largest error"):
        table.add_column(column, justify="left" if column == "graph" else "right")
    for name, parity in report.graphs.items():
        masks = ["–" if value is None else f"{value:.2%}" for value in (parity.pixel_agreement, parity.mask_iou)]
        table.add_row(name, *masks, f"{parity.cosine:.6f}", f"{parity.max_abs_error:.1e}")
    console.print(table)
    control = Table(title="what stays labelled on the reference's picture")
    control.add_column("sound")
    control.add_column("labelled pixels", justify="right")
    for name, rate in report.positive_pixel_rate.items():
        control.add_row(name + (" (must be blank)" if name in report.must_be_blank else ""), f"{rate:.2%}")
    console.print(control)
    write_json(json_out, report.as_dict())
    if not report.passed:
        raise CheckFailedError(f"{opened.folder} failed: {'; '.join(report.failures)}")
    console.print("passed")
