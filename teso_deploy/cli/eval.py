"""``teso-deploy eval``: score a bundle by an evaluation protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.bundle import Bundle, find_bundle_folder
from teso_deploy.cli.loading import check_tagger, load_pipeline, open_checkpoint, wrap_checkpoint
from teso_deploy.cli.options import BundleOption, Given, adapt, refuse_given, with_options
from teso_deploy.cli.reports import as_markup, check_json, progress_bar, say, toml_file, write_json
from teso_deploy.cli.values import parse_checkpoint
from teso_deploy.cues.tracks import CueFile, read_cue_file
from teso_deploy.errors import RecipeError
from teso_deploy.evaluation.contact_sheet import check_sheet_file
from teso_deploy.evaluation.contracts import Sample, Score
from teso_deploy.evaluation.control_plot import plot_control
from teso_deploy.evaluation.datasets.registry import LAYOUTS
from teso_deploy.evaluation.evaluation_run import run_evaluation, share_cores
from teso_deploy.evaluation.protocols.choice import choose_protocol
from teso_deploy.evaluation.protocols.registry import (
    DEFAULT_PROTOCOL,
    PROTOCOLS,
    OpenProtocol,
    ProtocolEntry,
    ProtocolOptions,
    find_protocol,
    open_protocol,
)
from teso_deploy.evaluation.report import format_figures, format_markdown
from teso_deploy.evaluation.results_folder import check_results_folder
from teso_deploy.evaluation.worst_clips import WorstClips, draw_worst_clips
from teso_deploy.options.clips import ClipOptions
from teso_deploy.options.engine import EngineOptions
from teso_deploy.options.scenes import SceneOptions
from teso_deploy.options.weights import WeightOptions
from teso_deploy.outputs import check_apart, check_file, write_text
from teso_deploy.pipeline.pipeline import AUTO

#: How many numbers fit beside each other in a terminal of 80 columns.
_COLUMNS = 8
_PROTOCOL_HELP = "; ".join(f"{name}: {entry.summary}" for name, entry in PROTOCOLS.items())


@with_options
def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            envvar="TESO_AVS_DATA", help="Folder of a data set of clips with masks, or of media for composed scenes."
        ),
    ],
    *,
    bundle: BundleOption = None,
    weights: Annotated[
        WeightOptions,
        adapt(
            helps={
                "checkpoint": "Score a checkpoint by PyTorch, without an export: a file of `train`, or one of visual=, "
                "audio=, text= and model= (may be repeated)."
            }
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe of the checkpoint. Default: that of --bundle, whose cue table is then used, or the one that "
            "the checkpoint names."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help=f"Default: avss for data with classes, avsbench for binary masks. {_PROTOCOL_HELP}."),
    ] = None,
    clips: Annotated[
        ClipOptions,
        adapt(
            helps={
                "layout": f"Layout of a data set of clips: {', '.join(LAYOUTS)}. Default: it is detected.",
            }
        ),
    ],
    scenes: SceneOptions,
    cues: Annotated[
        str | None,
        typer.Option(
            help="auto: the bundle's tagger; none: the fallback cue; of clips labels: the words of the clip's labels; "
            "of composed scenes visible: names of all that is visible, wrong: names of other things. Default: visible, "
            "auto for clips, none for a method without text."
        ),
    ] = None,
    cues_file: Annotated[
        Path | None,
        typer.Option(
            help="In place of --cues: the file that `teso-deploy cues` wrote for this folder, the released cues of a "
            "data set, or a file of words."
        ),
    ] = None,
    engine: Annotated[
        EngineOptions,
        adapt(omit=("size", "still_threshold"), helps={"backend": "Backend that runs the graphs, as for `run`."}),
    ],
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Clips that are scored at the same time. Default: one for each core of the CPU."),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Skip and count clips that can't be read, and classes that the data lacks."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report, the table and the scores of each clip. A run that was interrupted continues."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of other settings in the folder of --out.")
    ] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to a file, or - for stdout.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to a file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw mIoU, F, blank rate and FPR of each sound as PNG.")] = None,
    worst: Annotated[
        Path | None,
        typer.Option(help="Write the worst clips as a picture: truth, prediction, prediction when muted."),
    ] = None,
    given: Given,
) -> None:
    """Score a bundle or a checkpoint by an evaluation protocol."""
    is_checkpoint = bool(weights.checkpoint) or weights.random_weights is not None
    _refuse_other_engines(given, recipe, is_checkpoint=is_checkpoint)
    if overwrite and out is None:
        raise typer.BadParameter("needs --out", param_hint="--overwrite")
    name = protocol or choose_protocol(dataset, clips.layout)
    entry = find_protocol(name)
    _refuse_other_options(name, entry, given)
    check_json(json_out)
    if markdown is not None:
        check_file(markdown)
    if plot is not None:
        check_file(plot, ".png")
    if worst is not None:
        check_sheet_file(worst)
    check_apart(
        [dataset, cues_file, toml_file(engine.profile), toml_file(recipe), find_bundle_folder(bundle)]
        + [parse_checkpoint(text)[1] for text in weights.checkpoint],
        [json_out, markdown, plot, worst],
        [out],
    )
    if out is not None:
        check_results_folder(out)
    console = Console(stderr=True)
    checkpoint = None
    if is_checkpoint:
        checkpoint = open_checkpoint(console, weights, recipe=recipe, bundle=bundle)
    opened = checkpoint.bundle if checkpoint is not None else Bundle.open(bundle)
    offered = _choose_cues(entry, opened, cues=cues, cues_file=cues_file)
    asked = open_protocol(
        name,
        dataset,
        ProtocolOptions(
            tuple(opened.classes),
            scenes.scenes,
            scenes.seed,
            scenes.seeds,
            clips=clips,
            framing=opened.manifest.audio.framing,
            skip_bad=skip_bad,
        ),
    )
    jobs, engine = share_cores(engine, jobs)
    pipeline = (
        load_pipeline(console, opened, engine) if checkpoint is None else wrap_checkpoint(checkpoint, engine.threads)
    )
    worst_clips = WorstClips()
    with progress_bar(console) as bar:
        task = bar.add_task(asked.data, total=asked.count_samples())

        def advance(sample: Sample) -> None:
            bar.advance(task)

        result = run_evaluation(
            pipeline,
            asked,
            offered,
            jobs=jobs,
            skip_bad=skip_bad,
            folder=out,
            overwrite=overwrite,
            on_sample=advance,
            on_line=None if worst is None else worst_clips.add_line,
        )
    for sentence in [*asked.notes, *(f"skipped: {problem}" for problem in result.report["skipped"])]:
        say(console, sentence)
    write_json(json_out, result.report)
    if markdown is not None:
        write_text(markdown, format_markdown(asked, result.scores))
    if plot is not None:
        plot_control(result.report, plot)
    title = f"{result.report['bundle']}, {asked.data}, cues: {result.report['cues']}"
    if worst is not None:
        draw_worst_clips(asked, asked.make_predictor(pipeline, offered), worst_clips, path=worst, title=title)
    for table in _make_tables(title, asked, result.scores):
        console.print(table)


def _refuse_other_engines(given: Given, recipe: str | None, *, is_checkpoint: bool) -> None:
    """Refuse options that do not go together with a checkpoint, or without one."""
    if recipe is not None and not is_checkpoint:
        raise typer.BadParameter("needs --checkpoint", param_hint="--recipe")
    if recipe is not None and "bundle" in given:
        raise typer.BadParameter("--recipe and --bundle exclude each other: give one", param_hint="--recipe")
    if is_checkpoint:
        names = ("backend", "precision", "profile", "rebuild_engines")
        refuse_given(given, [f"engine.{name}" for name in names], "for bundles, and PyTorch runs a checkpoint")


def _refuse_other_options(name: str, entry: ProtocolEntry, given: Given) -> None:
    """Refuse options that are for another kind of protocol."""
    kinds = {True: ("scenes", SceneOptions), False: ("clips", ClipOptions)}
    group, options = kinds[not entry.makes_samples]
    others = " and ".join(other for other, known in PROTOCOLS.items() if known.makes_samples != entry.makes_samples)
    names = [f"{group}.{one.name}" for one in fields(options)]
    allowed = ("clips.layout",) if name == DEFAULT_PROTOCOL else ()  # older versions took `--layout scenes`
    if entry.makes_samples:
        names.append("worst")
    refuse_given(given, [option for option in names if option not in allowed], f"for {others}")


def _choose_cues(entry: ProtocolEntry, bundle: Bundle, *, cues: str | None, cues_file: Path | None) -> str | CueFile:
    """Return the way to choose cues, or their file. Raises :class:`RecipeError` for a way that the protocol lacks."""
    ways = entry.cue_ways
    if cues not in (None, *ways):
        raise RecipeError(f"unknown --cues {cues!r}: name one of {', '.join(ways)}")
    if cues_file is not None:
        if cues not in (None, ways[0]):
            raise typer.BadParameter("--cues and --cues-file exclude each other: give one")
        return read_cue_file(cues_file)
    takes_text = bundle.manifest.cue is not None
    chosen = cues or (ways[0] if takes_text else "none")
    if chosen == AUTO:
        check_tagger(bundle)
    if not takes_text and chosen != "none":
        raise RecipeError(f"bundle {bundle.manifest.name} takes no cues: omit --cues")
    return chosen


def _make_tables(title: str, protocol: OpenProtocol, scores: list[Score]) -> Iterator[Table]:
    """Make tables that fit a terminal, of the numbers that any row has."""
    shown = [name for name in protocol.figures if any(score.values.get(name) is not None for score in scores)]
    for first in range(0, len(shown), _COLUMNS):
        names = shown[first : first + _COLUMNS]
        table = Table(title=as_markup(title) if first == 0 else None)
        table.add_column("row")
        for name in names:
            table.add_column(protocol.figures[name], justify="right")
        for score in scores:
            table.add_row(as_markup(protocol.describe_row(score)), *format_figures(names, score))
        yield table
