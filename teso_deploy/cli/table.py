"""``teso-deploy table``: make a table of a paper, with numbers measured here beside the quoted ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from teso_deploy.bundle import Bundle, find_bundle_folder
from teso_deploy.cli.options import JsonOption, adapt, with_options
from teso_deploy.cli.reports import as_markup, check_json, progress_bar, say, toml_file, write_json
from teso_deploy.errors import DataError, InputNotFoundError, OutputError
from teso_deploy.evaluation.clip_predictor import CLIP_CUE_WAYS, check_cue_way
from teso_deploy.evaluation.contracts import Sample
from teso_deploy.evaluation.evaluation_run import share_cores
from teso_deploy.evaluation.tables.evaluating import BundleEvaluator, EvaluationSettings
from teso_deploy.evaluation.tables.grid import Grid
from teso_deploy.evaluation.tables.measuring import Measured, find_data_sets, measure_rows
from teso_deploy.evaluation.tables.planning import GivenBundle, find_ours, plan_rows, split_name
from teso_deploy.evaluation.tables.result import TableResult, finish_table, list_outputs
from teso_deploy.evaluation.tables.schema import DataSetKey, find_table, list_shipped_tables, load_table
from teso_deploy.options.engine import EngineOptions
from teso_deploy.outputs import check_apart, check_folder
from teso_deploy.pipeline.pipeline import Pipeline

#: Row, data set and path of an option that is given as NAME=PATH.
_Named = tuple[str, DataSetKey | None, Path]


@with_options
def table(
    name: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="A shipped table, or a .toml file. Default: list the shipped ones."),
    ] = None,
    *,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Folder of a data set (S4, MS3, AVSBench-semantic). May be repeated."),
    ] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="Bundle for the row NAME, or for a new row of this name. NAME@DATASET=FOLDER is for one data set. May "
            "be repeated. Default: the shipped bundle.",
        ),
    ] = None,
    cues: Annotated[
        str, typer.Option(help="How cues are chosen: auto (by the bundle's tagger), labels (of the clips) or none.")
    ] = CLIP_CUE_WAYS[0],
    cues_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="File of cues in place of --cues: for the row NAME, or for all rows. May be repeated.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data sets: train, val or test.")] = "test",
    clips: Annotated[
        int | None, typer.Option(min=1, help="Score only this many clips of each data set, spread over it.")
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Skip and count clips that can't be read, and classes that the data lacks."),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Clips that are scored at the same time. Default: one for each core of the CPU."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the results of each evaluation. A table that was interrupted continues."),
    ] = None,
    engine: Annotated[
        EngineOptions,
        adapt(omit=("size", "still_threshold"), helps={"backend": "Backend that runs the graphs, as for `run`."}),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the table to this folder, as Markdown, JSON, CSV, LaTeX and PNG.")
    ] = None,
    json_out: JsonOption = None,
) -> None:
    """Make a table of a paper: numbers measured here beside the quoted ones."""
    console = Console(stderr=True)
    if name is None:
        _list_tables(console)
        return
    definition, stem = load_table(name), find_table(name).stem
    given = _open_bundles(bundle or (), has_data=bool(data))
    files = [_split(one, "--cues-file") for one in cues_file or ()]
    rows = plan_rows(
        definition,
        given,
        cues=next((path for row, _, path in files if not row), check_cue_way(cues)),
        cue_files={row: path for row, _, path in files if row},
    )
    sources = find_data_sets(data or ())
    inputs = [*(data or ()), *(one.folder for one in given), *(path for _, _, path in files)]
    _check_apart_from_data(data or (), [out, work])
    check_apart(
        [*inputs, toml_file(engine.profile)], [json_out, *([] if out is None else list_outputs(out, stem))], [work]
    )
    check_json(json_out)
    for folder in (out, work):
        if folder is not None:
            check_folder(folder)
    jobs, engine = share_cores(engine, jobs)
    with progress_bar(console) as bar:
        evaluate = BundleEvaluator(
            EvaluationSettings(split, clips, jobs, skip_bad, work),
            load=lambda opened: Pipeline.load(opened, engine, on_note=lambda note: say(console, note)),
            begin=lambda what, count: _add_task(bar, what, count),
        )
        measured = measure_rows(definition, rows, sources, measure=evaluate) if sources else Measured()
    result = finish_table(stem, definition, measured, ours=find_ours(definition, given))
    if out is not None:
        result.write(out)
    write_json(json_out, result.make_report())
    _print_result(console, result)


def _list_tables(console: Console) -> None:
    for key in list_shipped_tables():
        say(console, f"{key:4} {load_table(key).title}")


def _split(text: str, option: str) -> _Named:
    row, dataset, path = split_name(text, option)
    return row, dataset, Path(path)


def _open_bundles(texts: Sequence[str], *, has_data: bool) -> list[GivenBundle]:
    """Open the bundles of the command line, or the shipped one.

    Raises :class:`DataError` for bundles without data, and what :meth:`Bundle.open` raises.
    """
    if texts and not has_data:
        raise DataError("--bundle needs --data: give the folder of a data set, or omit both for the quoted numbers")
    if not has_data:
        return []
    named: Sequence[_Named] = [_split(text, "--bundle") for text in texts] or [("", None, find_bundle_folder(None))]
    return [GivenBundle(path, Bundle.open(path).manifest.name, row, dataset) for row, dataset, path in named]


def _check_apart_from_data(data: Sequence[Path], outputs: Sequence[Path | None]) -> None:
    """Refuse results in a folder of data, whose files are listed. Raises :class:`OutputError`."""
    for folder in data:
        if not folder.is_dir():
            raise InputNotFoundError(f"no folder {folder}: give the folder of a data set")
        for out in outputs:
            if out is not None and folder.resolve() in (out.resolve(), *out.resolve().parents):
                raise OutputError(f"{out} is inside {folder}, which is an input: name a folder outside of it")


def _add_task(bar: Progress, what: str, count: int) -> Callable[[Sample], None]:
    task = bar.add_task(what, total=count)
    return lambda sample: bar.advance(task)


def _print_result(console: Console, result: TableResult) -> None:
    grid = result.grid
    for number, columns in enumerate(_split_columns(grid, console.width)):
        console.print(_make_part(grid, columns, title=as_markup(grid.title) if number == 0 else None))
    for note in (*grid.notes, *result.definition.usage):
        say(console, note)
    for one in result.judgements:
        say(console, f"{one.verdict}: {one.says} ({', '.join(filter(None, (one.row, one.details)))})")


def _split_columns(grid: Grid, width: int) -> list[list[int]]:
    """Divide the columns of numbers into parts that fit a terminal. Each part has the names of the rows too."""
    headings = _list_headings(grid)
    widths = [
        3 + max(len(cell) for cell in (*heading.split(), *(row[number] for row in grid.rows)))
        for number, heading in enumerate(headings)
    ]
    left, used = sum(widths[: grid.text_columns]), width
    parts: list[list[int]] = []
    for number in range(grid.text_columns, len(headings)):
        if used + widths[number] > width:
            parts.append([])
            used = left
        parts[-1].append(number)
        used += widths[number]
    return parts


def _list_headings(grid: Grid) -> list[str]:
    groups = [""] * grid.text_columns + [name for name, count in grid.groups for _ in range(count)]
    return [f"{group} {heading}".strip() for group, heading in zip(groups, grid.headings, strict=True)]


def _make_part(grid: Grid, columns: Sequence[int], *, title: str | None) -> Table:
    headings, names = _list_headings(grid), range(grid.text_columns)
    part = Table(title=title)
    for number in (*names, *columns):
        heading = as_markup(headings[number]).replace(" ", "\n")  # so that a column is as wide as its longest word
        part.add_column(heading, justify="left" if number in names else "right")
    for number, row in enumerate(grid.rows):
        if number in grid.rules:
            part.add_section()
        part.add_row(*(as_markup(row[column]) for column in (*names, *columns)))
    return part
