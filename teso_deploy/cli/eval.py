"""``teso-deploy eval``: how well a bundle obeys the sound on scenes it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from teso_deploy.cli.reports import check_json, write_json
from teso_deploy.errors import RecipeError
from teso_deploy.evaluation.library import read_library
from teso_deploy.evaluation.protocol import ROWS, RowScore, score_row
from teso_deploy.outputs import write_text
from teso_deploy.runtime.pipeline import Pipeline


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def to_markdown(scores: Sequence[RowScore]) -> str:
    """The table as Markdown."""
    lines = ["| row | scenes | mIoU | mIoU, names aside | blank | follows |", "|---|---|---|---|---|---|"]
    for score in scores:
        cells = (score.miou, score.binary_miou, score.blank_rate, score.follows_rate)
        lines.append(f"| {score.row}: {ROWS[score.row]} | {score.scenes} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def evaluate(
    dataset: Annotated[Path, typer.Argument(envvar="TESO_AVS_DATA", help="Folder of pictures and sounds.")],
    bundle: Annotated[Path | None, typer.Option(help="Default: the shipped bundle.")] = None,
    layout: Annotated[str, typer.Option(help="scenes: composed from the folder's test split.")] = "scenes",
    scenes: Annotated[int, typer.Option(min=1, help="Scenes per row.")] = 300,
    seed: Annotated[int, typer.Option(help="Scenes come from this alone.")] = 0,
    cues: Annotated[
        str, typer.Option(help="visible: names of all that is visible; none: the fallback cue.")
    ] = "visible",
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to a file, or - for stdout.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to a file.")] = None,
) -> None:
    """Score a bundle on composed test scenes: sources, distractors, silence, noise, swapped sounds."""
    if layout != "scenes":
        raise RecipeError(f"unknown layout {layout!r}: this version reads --layout scenes")
    if cues not in ("visible", "none"):
        raise RecipeError(f"unknown --cues {cues!r}: visible or none")
    check_json(json_out)
    check_json(markdown)
    pipeline = Pipeline.load(bundle, threads=threads)
    library = read_library(dataset, "test")
    known = set(pipeline.cue_table.names)

    def segment(image: NDArray[np.uint8], samples: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.uint8]:
        offered = [name for name in names if name in known] if cues == "visible" else []
        return pipeline.segment(image, samples, offered).labels

    console = Console(stderr=True)
    found: list[RowScore] = []
    with Progress(console=console) as bar:
        task = bar.add_task(library.fingerprint, total=len(ROWS))
        for row in ROWS:
            found.append(score_row(segment, library, pipeline.classes, row, scenes, seed))
            bar.advance(task)
    report: dict[str, Any] = {
        "schema_version": 1,
        "protocol": "composed-scenes",
        "bundle": pipeline.bundle.manifest.name,
        "weights_sha256": pipeline.bundle.manifest.provenance.get("weights_sha256"),
        "data": library.fingerprint,
        "seed": seed,
        "cues": cues,
        "rows": [score.as_dict() for score in found],
    }
    write_json(json_out, report)
    if markdown is not None:
        write_text(markdown, to_markdown(found))
    table = Table(title=f"{report['bundle']}, {scenes} scenes a row, seed {seed}, cues: {cues}")
    for column in ("row", "mIoU", "names aside", "blank", "follows"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for score in found:
        values = (score.miou, score.binary_miou, score.blank_rate, score.follows_rate)
        table.add_row(f"{score.row}: {ROWS[score.row]}", *map(_cell, values))
    console.print(table)
