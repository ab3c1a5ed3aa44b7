"""``teso-deploy check-data``: say what is missing, odd or duplicated in a data set of clips."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.cli.reports import as_markup, check_json, progress_bar, say, write_json
from teso_deploy.errors import CheckFailedError, DataError
from teso_deploy.evaluation.datasets.checking import DataCheck, check_dataset
from teso_deploy.evaluation.datasets.contracts import Split
from teso_deploy.evaluation.datasets.registry import LAYOUTS, find_layout
from teso_deploy.outputs import check_apart, show_path


def check_data(
    folder: Annotated[Path, typer.Argument(help="Folder of a data set.")],
    *,
    layout: Annotated[
        str | None, typer.Option(help=f"Layout of the data set: {', '.join(LAYOUTS)}. Default: it is detected.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Check only this split: train, val or test.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Clips that are read at the same time. Default: one for each core of the CPU."),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write what was found to a file, or - for stdout.")
    ] = None,
) -> None:
    """Say what is missing, odd or duplicated in a data set, file by file. Exit code 1 if something is wrong."""
    chosen = None if layout is None else find_layout(layout)
    wanted = next((each for each in get_args(Split) if each == split), None)
    if split is not None and wanted is None:
        raise DataError(f"unknown split {split!r}: choose from {', '.join(get_args(Split))}")
    check_json(json_out)
    check_apart([folder], [json_out])
    console = Console(stderr=True)
    with progress_bar(console) as bar:
        task = bar.add_task("checking", total=None)
        check = check_dataset(
            folder,
            chosen,
            wanted,
            on_start=lambda clips: bar.update(task, total=clips),
            on_clip=lambda: bar.advance(task),
            threads=jobs,
        )
    for finding in check.findings:
        say(console, f"{finding.severity}: {finding.text}")
    report = {
        "schema_version": 1,
        "data": show_path(folder),
        "layout": check.layout,
        "rows": [asdict(count) for count in check.counts],
        "findings": [asdict(finding) for finding in check.findings],
    }
    write_json(json_out, report)
    console.print(_make_table(check))
    if check.wrong:
        things = "1 thing is" if check.wrong == 1 else f"{check.wrong} things are"
        raise CheckFailedError(f"{things} wrong in {folder}: restore the files, or evaluate with --skip-bad")


def _make_table(check: DataCheck) -> Table:
    table = Table(title=as_markup(f"layout {check.layout}"))
    for name in ("subset", "split", "clips", "published", "wrong", "odd"):
        table.add_column(name, justify="left" if name in ("subset", "split") else "right")
    for count in check.counts:
        published = "–" if count.published is None else str(count.published)
        cells = (count.subset, count.split, count.clips, published, count.wrong, count.odd)
        table.add_row(*(as_markup(cell) for cell in cells))
    return table
