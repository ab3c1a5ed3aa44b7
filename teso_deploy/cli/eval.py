"""``teso-deploy eval``: score a bundle by an evaluation protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from teso_deploy.bundle import Bundle, find_bundle_folder
from teso_deploy.cli.loading import check_tagger, load_pipeline
from teso_deploy.cli.options import BundleOption, Given, adapt, refuse_given, with_options
from teso_deploy.cli.reports import as_markup, check_json, toml_file, write_json
from teso_deploy.cues.tracks import read_cue_file
from teso_deploy.errors import RecipeError
from teso_deploy.evaluation.contracts import Sample, Score
from teso_deploy.evaluation.protocols.registry import (
    DEFAULT_PROTOCOL,
    PROTOCOLS,
    OpenProtocol,
    ProtocolOptions,
    find_protocol,
    open_protocol,
)
from teso_deploy.evaluation.report import format_figures, format_markdown, make_report
from teso_deploy.evaluation.scoring import score_protocol
from teso_deploy.options.engine import EngineOptions
from teso_deploy.options.scenes import SceneOptions
from teso_deploy.outputs import check_apart, check_file, show_path, write_text
from teso_deploy.pipeline.pipeline import AUTO

_PROTOCOL_HELP = "; ".join(f"{name}: {entry.summary}. Data: {entry.data}" for name, entry in PROTOCOLS.items())

_CUES_HELP = "; ".join(f"{name}: {', '.join(entry.cue_ways)}" for name, entry in PROTOCOLS.items())


@with_options
def evaluate(
    dataset: Annotated[Path, typer.Argument(envvar="TESO_AVS_DATA", help="Folder of the protocol's data.")],
    *,
    bundle: BundleOption = None,
    protocol: Annotated[str, typer.Option(help=f"{_PROTOCOL_HELP}.")] = DEFAULT_PROTOCOL,
    layout: Annotated[str, typer.Option(hidden=True)] = "scenes",
    scenes: SceneOptions,
    cues: Annotated[
        str | None,
        typer.Option(
            help="visible: names of all that is visible; auto: the bundle's tagger; none: the fallback cue; wrong: "
            f"names of other things. The first is the default of {_CUES_HELP}."
        ),
    ] = None,
    cues_file: Annotated[
        Path | None,
        typer.Option(
            help="In place of --cues: the file that `teso-deploy cues` wrote for this folder, or a file of words."
        ),
    ] = None,
    engine: Annotated[
        EngineOptions,
        adapt(omit=("size", "still_threshold"), helps={"backend": "Backend that runs the graphs, as for `run`."}),
    ],
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to a file, or - for stdout.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to a file.")] = None,
    given: Given,
) -> None:
    """Score a bundle by an evaluation protocol."""
    if layout != "scenes":
        raise RecipeError(f"unknown layout {layout!r}: choose the task with --protocol")
    entry = find_protocol(protocol)
    if not entry.makes_samples:
        makers = " and ".join(name for name, other in PROTOCOLS.items() if other.makes_samples)
        refuse_given(given, [f"scenes.{one.name}" for one in fields(SceneOptions)], f"for {makers}")
    ways = entry.cue_ways
    if cues not in (None, *ways):
        raise RecipeError(f"unknown --cues {cues!r}: name one of {', '.join(ways)}")
    cues = cues or ways[0]
    if cues_file is not None and cues != ways[0]:
        raise typer.BadParameter("--cues and --cues-file exclude each other: give one")
    offered = cues if cues_file is None else read_cue_file(cues_file)
    check_json(json_out)
    if markdown is not None:
        check_file(markdown)
    check_apart([dataset, cues_file, toml_file(engine.profile), find_bundle_folder(bundle)], [json_out, markdown])
    opened = Bundle.open(bundle)
    if cues == AUTO:
        check_tagger(opened)
    asked = open_protocol(
        protocol, dataset, ProtocolOptions(tuple(opened.classes), scenes.scenes, scenes.seed, scenes.seeds)
    )
    console = Console(stderr=True)
    pipeline = load_pipeline(console, opened, engine)
    with Progress(console=console) as bar:
        task = bar.add_task(asked.data, total=asked.count_samples())

        def advance(sample: Sample) -> None:
            bar.advance(task)

        found = score_protocol(asked, asked.make_predictor(pipeline, offered), advance)
    model = {
        "bundle": pipeline.bundle.manifest.name,
        "weights_sha256": pipeline.bundle.manifest.provenance.get("weights_sha256"),
        "cues": cues if cues_file is None else show_path(cues_file),
        "precision": pipeline.precision,
        "backend": pipeline.backend,
    }
    report = make_report(asked, found, model)
    write_json(json_out, report)
    if markdown is not None:
        write_text(markdown, format_markdown(asked, found))
    rows = f"{scenes.scenes} scenes a row, {scenes.seeds} seeds from {scenes.seed}"
    title = f"{report['bundle']}, {rows if entry.makes_samples else asked.data}, cues: {report['cues']}"
    console.print(_make_table(title, asked, found))


def _make_table(title: str, protocol: OpenProtocol, scores: Sequence[Score]) -> Table:
    table = Table(title=as_markup(title))
    table.add_column("row")
    for heading in protocol.figures.values():
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(f"{score.group}: {protocol.describe_group(score.group)}", *format_figures(protocol, score))
    return table
