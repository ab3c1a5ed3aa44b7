"""``teso-deploy eval``: how well a bundle obeys the sound on scenes it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from teso_deploy.bundle import Bundle, bundle_folder
from teso_deploy.cli.loading import check_engine_options, check_tagger, load_pipeline
from teso_deploy.cli.reports import as_markup, check_json, toml_file, write_json
from teso_deploy.cues.timed import TimedCues
from teso_deploy.cues.tracks import CueFile, read_cue_file
from teso_deploy.errors import RecipeError
from teso_deploy.evaluation.media_library import read_library
from teso_deploy.evaluation.protocol import (
    CUES,
    FIGURES,
    ROWS,
    SCENE_SIZE,
    RowScore,
    make_scene,
    over_seeds,
    scene_digest,
    score_row,
    segmenter,
    testable_words,
)
from teso_deploy.outputs import check_apart, check_file, show_path, write_text
from teso_deploy.pipeline.backend_choice import BackendName
from teso_deploy.pipeline.pipeline import AUTO
from teso_deploy.types import Precision


def _cells(score: RowScore) -> list[str]:
    cells = []
    for name in FIGURES:
        value, spread = getattr(score, name), score.spread.get(name)
        cells.append("–" if value is None else f"{value:.3f}" + ("" if spread is None else f" ± {spread:.3f}"))
    return cells


def to_markdown(scores: Sequence[RowScore]) -> str:
    """The rows as a table, then each sounding word's mIoU as another, as Markdown."""
    lines = ["| row | scenes | mIoU | mIoU, names aside | blank | follows |", "|---|---|---|---|---|---|"]
    for score in scores:
        scenes = f"{len(score.seeds)} × {score.scenes}" if len(score.seeds) > 1 else str(score.scenes)
        lines.append(f"| {score.row}: {ROWS[score.row]} | {scenes} | {' | '.join(_cells(score))} |")
    heard = [score for score in scores if score.label_miou]
    lines += ["", f"| mIoU of | {' | '.join(score.row for score in heard)} |", "|---|" + "---|" * len(heard)]
    for word in sorted({word for score in heard for word in score.label_miou}):
        values = (score.label_miou.get(word) for score in heard)
        lines.append(f"| {word} | {' | '.join('–' if value is None else f'{value:.2f}' for value in values)} |")
    return "\n".join(lines) + "\n"


def evaluate(
    dataset: Annotated[Path, typer.Argument(envvar="TESO_AVS_DATA", help="Folder of pictures and sounds.")],
    bundle: Annotated[Path | None, typer.Option(help="Default: the shipped bundle.")] = None,
    layout: Annotated[str, typer.Option(help="scenes: composed from the folder's test split.")] = "scenes",
    scenes: Annotated[int, typer.Option(min=1, help="Scenes per row.")] = 300,
    seed: Annotated[int, typer.Option(help="Scenes come from this alone.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="So many seeds, from --seed on: means and their spread.")] = 1,
    cues: Annotated[
        str,
        typer.Option(
            help="visible: names of all that is visible; auto: the bundle's tagger; none: the fallback cue; "
            "wrong: names of other things."
        ),
    ] = "visible",
    cues_file: Annotated[
        Path | None, typer.Option(help="In place of --cues: what `teso-deploy cues` wrote for this folder, or words.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of the bundle's forms.")] = "fp32",
    backend: Annotated[BackendName, typer.Option(help="What runs the graphs, as for `run`.")] = "cpu",
    profile: Annotated[
        str | None, typer.Option(help="Of engines that have to be built: a shipped profile's name, or a TOML file.")
    ] = None,
    rebuild_engines: Annotated[
        bool, typer.Option("--rebuild-engines", help="Build engines anew, whatever the bundle or the cache has.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to a file, or - for stdout.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to a file.")] = None,
) -> None:
    """Score a bundle on composed test scenes: sources, distractors, silence, noise, swapped sounds."""
    if layout != "scenes":
        raise RecipeError(f"unknown layout {layout!r}: this version reads --layout scenes")
    if cues not in CUES:
        raise RecipeError(f"unknown --cues {cues!r}: name one of {', '.join(CUES)}")
    if cues_file is not None and cues != "visible":
        raise typer.BadParameter("--cues and --cues-file exclude each other: give one")
    offered = cues if cues_file is None else read_cue_file(cues_file)
    check_engine_options([backend], profile, rebuild_engines)
    check_json(json_out)
    if markdown is not None:
        check_file(markdown)
    check_apart([dataset, cues_file, toml_file(profile), bundle_folder(bundle)], [json_out, markdown])
    opened = Bundle.open(bundle)
    if cues == AUTO:
        check_tagger(opened)
    library = read_library(dataset, "test")
    console = Console(stderr=True)
    pipeline = load_pipeline(
        console, opened, backend, precision, threads=threads, profile=profile, rebuild_engines=rebuild_engines
    )
    segment = segmenter(pipeline, library, offered, seed)
    found: list[RowScore] = []
    with Progress(console=console) as bar:
        task = bar.add_task(library.fingerprint, total=len(ROWS) * seeds)
        if isinstance(offered, CueFile):  # before an hour of scenes is scored
            TimedCues(pipeline.cue_names, offered.everywhere).check()
            words = testable_words(library, pipeline.classes)
            for row in ROWS:
                for number in range(seed, seed + seeds):
                    last = make_scene(library, words, row, number, scenes - 1, SCENE_SIZE)[0]
                    offered.of_scene(last.scene, scene_digest(library, last))
        for row in ROWS:
            scores = []
            for number in range(seed, seed + seeds):
                scores.append(score_row(segment, library, pipeline.classes, row, scenes, number))
                bar.advance(task)
            found.append(over_seeds(scores))
    report: dict[str, Any] = {
        "schema_version": 1,
        "protocol": "composed-scenes",
        "bundle": pipeline.bundle.manifest.name,
        "weights_sha256": pipeline.bundle.manifest.provenance.get("weights_sha256"),
        "data": library.fingerprint,
        "cues": cues if cues_file is None else show_path(cues_file),
        "precision": pipeline.precision,
        "backend": pipeline.backend,
        "rows": [score.as_dict() for score in found],
    }
    write_json(json_out, report)
    if markdown is not None:
        write_text(markdown, to_markdown(found))
    table = Table(
        title=as_markup(f"{report['bundle']}, {scenes} scenes a row, {seeds} seeds from {seed}, cues: {report['cues']}")
    )
    for column in ("row", "mIoU", "names aside", "blank", "follows"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for score in found:
        table.add_row(f"{score.row}: {ROWS[score.row]}", *_cells(score))
    console.print(table)
