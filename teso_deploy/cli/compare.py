"""``teso-deploy compare``: the differences of two evaluations, with confidence intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.cli.options import JsonOption
from teso_deploy.cli.reports import as_markup, check_json, say, write_json
from teso_deploy.evaluation.compared_results import ComparedResults, compare_results, format_difference
from teso_deploy.evaluation.control_plot import plot_control
from teso_deploy.outputs import check_apart, check_file, write_text

#: Numbers that the table shows, and their headings; JSON and Markdown have all.
_SHOWN = {
    "miou": "mIoU",
    "f_score": "F",
    "miou_drop": "Δ mIoU",
    "f_score_drop": "Δ F",
    "blank_rate": "blank",
    "fpr": "FPR",
}
_MOST_NAMES = 5


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of `eval --out`.")],
    second: Annotated[Path, typer.Argument(help="Folder of another `eval --out`, of the same data.")],
    *,
    resamples: Annotated[int, typer.Option(min=100, max=1_000_000, help="Number of draws of the clips.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    json_out: JsonOption = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table of all numbers to a file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw both evaluations as PNG.")] = None,
) -> None:
    """Compare two evaluations clip by clip: differences with 95 % confidence intervals."""
    check_json(json_out)
    if markdown is not None:
        check_file(markdown)
    if plot is not None:
        check_file(plot, ".png")
    check_apart([first, second], [json_out, markdown, plot])
    console = Console(stderr=True)
    with console.status("drawing clips"):
        found = compare_results(first, second, resamples=resamples, seed=seed)
    write_json(json_out, found.as_dict())
    if markdown is not None:
        write_text(markdown, found.as_markdown())
    if plot is not None:
        plot_control([found.first.report, found.second.report], plot)
    console.print(_make_table(found))
    for which, names in ((first, found.only_first), (second, found.only_second)):
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            say(console, f"only in {which}: {len(names)} clips ({', '.join(names[:_MOST_NAMES])}{more})")
    for note in found.notes:
        say(console, note)


def _make_table(found: ComparedResults) -> Table:
    groups = list(dict.fromkeys(row.group for row in found.rows))
    title = f"A: {found.first.label}, B: {found.second.label}{f', {groups[0]}' if len(groups) == 1 else ''}"
    table = Table(title=as_markup(title))
    for heading in ("clips with", ""):
        table.add_column(heading)
    for heading in ("A", "B", "B - A", "95 %", "≠ 0"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        parts = (row.condition,) if len(groups) == 1 else (row.group, row.condition)
        caption = " ".join(part for part in parts if part)
        for name, heading in _SHOWN.items():
            if name in row.differences:
                table.add_row(as_markup(caption), heading, *format_difference(row.differences[name]))
                caption = ""
        table.add_section()
    return table
