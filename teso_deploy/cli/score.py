"""``teso-deploy score``: score masks that any program wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.cli.reports import as_markup, check_json, progress_bar, say, write_json
from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.prediction_files import PROTOCOLS, SEMANTIC, FolderScore, Values, pair_files, score_pairs
from teso_deploy.outputs import check_apart, show_path

#: The published numbers of each kind of protocol; the others are shown on request.
_PUBLISHED = ("miou", "f_score", "miou_without_background", "f_score_without_background")
_MISTAKES = ("miou_no_bg", "f_score_no_bg")


def score(
    predictions: Annotated[Path, typer.Argument(help="Folder of .npy arrays or 8-bit .png pictures.")],
    truth: Annotated[Path, typer.Argument(help="Folder of true masks, .png, with the same paths.")],
    *,
    protocol: Annotated[str, typer.Option(help=f"One of {', '.join(PROTOCOLS)}.")] = "avsbench",
    values: Annotated[
        Values, typer.Option(help="What .npy files hold. Grey levels 0 to 255 of pictures are probabilities.")
    ] = "logits",
    unbiased: Annotated[
        bool, typer.Option("--unbiased", help="Add the numbers that depend neither on batches nor on blank frames.")
    ] = False,
    mistakes: Annotated[
        bool,
        typer.Option("--mistakes", help="With avss: add the published 'no background' that omits the last class."),
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip and count files that can't be scored.")] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to a file, or - for stdout.")
    ] = None,
) -> None:
    """Score masks or probabilities that any program wrote, by a published protocol."""
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown protocol {protocol!r}: name one of {', '.join(PROTOCOLS)}")
    if mistakes and protocol != SEMANTIC:
        raise DataError(f"--mistakes is for {SEMANTIC}: omit it")
    check_json(json_out)
    check_apart([predictions, truth], [json_out])
    console = Console(stderr=True)
    pairs, problems = pair_files(predictions, truth)
    classes = list_avss_classes() if protocol == SEMANTIC else ()
    with progress_bar(console) as bar:
        task = bar.add_task("scoring", total=len(pairs))
        found = score_pairs(pairs, protocol, values=values, classes=classes, on_frame=lambda: bar.advance(task))
    problems += found.skipped
    for problem in problems:
        say(console, problem)
    if problems and not skip_bad:
        raise DataError(f"{len(problems)} files can't be scored: mend them, or skip them with --skip-bad")
    shown = _choose_numbers(found, unbiased=unbiased, mistakes=mistakes)
    report: dict[str, Any] = {
        "schema_version": 1,
        "protocol": protocol,
        "predictions": show_path(predictions),
        "truth": show_path(truth),
        "frames": found.frames,
        "videos": len(found.by_video),
        "resized_frames": found.resized,
        "skipped": problems,
        "scores": shown,
        "by_video": found.by_video,
        "by_class": found.by_class,
    }
    write_json(json_out, report)
    console.print(_make_table(protocol, found, shown))


def _choose_numbers(found: FolderScore, *, unbiased: bool, mistakes: bool) -> dict[str, float | None]:
    wanted = _PUBLISHED + (_MISTAKES if mistakes else ())
    return {
        name: value
        for name, value in found.values.items()
        if name in wanted or (unbiased and name.startswith("unbiased"))
    }


def _make_table(protocol: str, found: FolderScore, shown: dict[str, float | None]) -> Table:
    table = Table(title=as_markup(f"{protocol}: {found.frames} frames of {len(found.by_video)} videos"))
    for name in shown:
        table.add_column(name, justify="right")
    table.add_row(*("–" if value is None else f"{value:.4f}" for value in shown.values()))
    return table
