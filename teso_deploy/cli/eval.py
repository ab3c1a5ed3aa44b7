"""``teso-deploy eval``: how well a bundle obeys the sound on scenes it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from teso_deploy.backends.registry import BackendName, list_backends
from teso_deploy.bundle import Bundle, bundle_folder
from teso_deploy.cli.loading import check_engine_options, check_tagger, load_pipeline, parse_backend
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
from teso_deploy.outputs import check_apart, check_file, show_path, write_text
from teso_deploy.pipeline.pipeline import AUTO
from teso_deploy.types import Precision

_PROTOCOL_HELP = "; ".join(f"{name}: {entry.summary}. Data: {entry.data}" for name, entry in PROTOCOLS.items())


def evaluate(
    dataset: Annotated[Path, typer.Argument(envvar="TESO_AVS_DATA", help="Folder of pictures and sounds.")],
    bundle: Annotated[Path | None, typer.Option(help="Default: the shipped bundle.")] = None,
    protocol: Annotated[str, typer.Option(help=f"{_PROTOCOL_HELP}.")] = DEFAULT_PROTOCOL,
    layout: Annotated[str, typer.Option(hidden=True)] = "scenes",
    scenes: Annotated[int, typer.Option(min=1, help="Scenes per row.")] = 300,
    seed: Annotated[int, typer.Option(help="Scenes come from this alone.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="So many seeds, from --seed on: means and their spread.")] = 1,
    cues: Annotated[
        str | None,
        typer.Option(
            help="visible (default): names of all that is visible; auto: the bundle's tagger; none: the fallback cue; "
            "wrong: names of other things."
        ),
    ] = None,
    cues_file: Annotated[
        Path | None, typer.Option(help="In place of --cues: what `teso-deploy cues` wrote for this folder, or words.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of the bundle's forms.")] = "fp32",
    backend: Annotated[
        BackendName,
        typer.Option(
            parser=parse_backend,
            metavar=f"[{'|'.join(list_backends())}]",
            help="What runs the graphs, as for `run`.",
        ),
    ] = "cpu",
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
    """Score a bundle by an evaluation protocol."""
    if layout != "scenes":
        raise RecipeError(f"unknown layout {layout!r}: choose what is asked of a model with --protocol")
    ways = find_protocol(protocol).cue_ways
    if cues not in (None, *ways):
        raise RecipeError(f"unknown --cues {cues!r}: name one of {', '.join(ways)}")
    cues = cues or ways[0]
    if cues_file is not None and cues != ways[0]:
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
    asked = open_protocol(protocol, dataset, ProtocolOptions(tuple(opened.classes), scenes, seed, seeds))
    console = Console(stderr=True)
    pipeline = load_pipeline(
        console, opened, backend, precision, threads=threads, profile=profile, rebuild_engines=rebuild_engines
    )
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
    title = f"{report['bundle']}, {scenes} scenes a row, {seeds} seeds from {seed}, cues: {report['cues']}"
    console.print(_make_table(title, asked, found))


def _make_table(title: str, protocol: OpenProtocol, scores: Sequence[Score]) -> Table:
    table = Table(title=as_markup(title))
    table.add_column("row")
    for heading in protocol.figures.values():
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(f"{score.group}: {protocol.describe_group(score.group)}", *format_figures(protocol, score))
    return table
