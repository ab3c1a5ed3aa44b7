"""``teso-deploy figure``: a figure of the paper as a contact sheet, with any bundles on any data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from teso_deploy.bundle import Bundle, find_bundle_folder
from teso_deploy.cli.loading import check_tagger, load_pipeline
from teso_deploy.cli.options import JsonOption, adapt, with_options
from teso_deploy.cli.reports import as_markup, check_json, progress_bar, say, toml_file, write_json
from teso_deploy.cli.values import parse_bundle
from teso_deploy.cues.tracks import CueFile, read_cue_file
from teso_deploy.errors import DataError, OutputError
from teso_deploy.evaluation.clip_predictor import CLIP_CUE_WAYS, ClipCueWay, check_cue_way
from teso_deploy.evaluation.contact_sheet import check_sheet_file, save_sheet
from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.evaluation.datasets.reading import detect_layout, read_dataset
from teso_deploy.evaluation.datasets.registry import Layout, find_layout, load_layout
from teso_deploy.evaluation.figure_rows import FigureMaker, choose_clips, find_clips
from teso_deploy.evaluation.figures import FIGURES, FigureEntry, find_figure
from teso_deploy.media.heat_map import draw_scale
from teso_deploy.options.clips import ClipOptions
from teso_deploy.options.engine import EngineOptions
from teso_deploy.outputs import check_apart, show_path
from teso_deploy.pipeline.pipeline import AUTO

_FIGURES_HELP = "; ".join(f"{name}: {entry.title}, {entry.clips} clips" for name, entry in FIGURES.items())
_SCALE_WIDTH, _SCALE_SIZE = 400, 14


@with_options
def figure(
    name: Annotated[str, typer.Argument(help=f"{_FIGURES_HELP}.")],
    *,
    data: Annotated[Path, typer.Option(help="Folder of a data set of clips with masks.")],
    out: Annotated[Path, typer.Option(help="The figure, .png or .jpg.")],
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER", help="A bundle, and the name to show. May be repeated. Default: the shipped one."
        ),
    ] = None,
    clips: Annotated[
        ClipOptions,
        adapt(
            only=("layout", "split", "subset", "clips", "framing"),
            helps={
                "subset": "Subset of avss: v1s, v1m or v2. May be repeated. Default: those of the figure.",
                "clips": "Show this many clips, spread over the categories. Default: as many as the figure has.",
            },
        ),
    ],
    clip: Annotated[
        list[str] | None, typer.Option(metavar="UID", help="Show this clip, in place of --clips. May be repeated.")
    ] = None,
    cues: Annotated[
        str | None,
        typer.Option(
            help="auto: the bundle's tagger; labels: the words of the clip's labels; none: the fallback cue. Default: "
            "auto."
        ),
    ] = None,
    cues_file: Annotated[
        Path | None, typer.Option(help="In place of --cues: a file of cues, as for `teso-deploy eval`.")
    ] = None,
    engine: Annotated[EngineOptions, adapt(omit=("size", "still_threshold"))],
    json_out: JsonOption = None,
) -> None:
    """Draw a figure of the paper as a contact sheet: pictures, truth, and what bundles find in them."""
    entry = find_figure(name)
    if clip and clips.clips is not None:
        raise typer.BadParameter("--clip and --clips exclude each other: give one")
    if cues is not None and cues_file is not None:
        raise typer.BadParameter("--cues and --cues-file exclude each other: give one")
    way = check_cue_way(cues or CLIP_CUE_WAYS[0])
    check_sheet_file(out)
    check_json(json_out)
    given = [parse_bundle(text) for text in bundle or ()] or [(None, find_bundle_folder(None))]
    check_apart(
        [data, cues_file, toml_file(engine.profile), *(find_bundle_folder(folder) for _, folder in given)],
        [out, json_out],
    )
    if data.resolve() in out.resolve().parents:
        raise OutputError(f"{out} is inside {data}, which is an input: name an output outside of it")
    bundles = _open_bundles(given)
    offered = way if cues_file is None else read_cue_file(cues_file)
    if offered == AUTO:
        for opened in bundles.values():
            if opened.manifest.cue is not None:
                check_tagger(opened)
    layout, samples = _read_clips(data, entry, clips)
    chosen = find_clips(samples, clip) if clip else choose_clips(samples, clips.clips or entry.clips)
    maker = FigureMaker(entry, chosen, layout=layout, framing=clips.framing)
    console = Console(stderr=True)
    _run_bundles(console, maker, bundles, cues=offered, engine=engine, count=len(chosen))
    has_heat_maps = any(column.is_heat_map for column in entry.columns)
    save_sheet(
        out,
        maker.make_rows(),
        title=f"{entry.name}: {entry.title}",
        legend=maker.make_legend(),
        footer=draw_scale("probability; white lines: the threshold", _SCALE_WIDTH, size=_SCALE_SIZE)
        if has_heat_maps
        else None,
    )
    write_json(
        json_out,
        {
            "schema_version": 1,
            "figure": entry.name,
            "title": entry.title,
            "out": show_path(out),
            "data": show_path(data),
            "layout": layout,
            "split": clips.split,
            "framing": clips.framing,
            "cues": way if cues_file is None else show_path(cues_file),
            "bundles": {
                shown: {
                    "bundle": opened.manifest.name,
                    "weights_sha256": opened.manifest.provenance.get("weights_sha256"),
                }
                for shown, opened in bundles.items()
            },
            "clips": maker.report(),
            "notes": maker.notes,
        },
    )
    for sentence in maker.notes:
        say(console, sentence)
    say(console, f"figure {entry.name}: {out}")


def _open_bundles(given: Sequence[tuple[str | None, Path]]) -> dict[str, Bundle]:
    """Open bundles by the names to show. Raises :class:`DataError` if two have the same."""
    bundles: dict[str, Bundle] = {}
    for name, folder in given:
        opened = Bundle.open(folder)
        shown = name or opened.manifest.name
        if shown in bundles:
            raise DataError(f"two bundles are called {shown}: give each a name, as in --bundle ours={folder}")
        bundles[shown] = opened
    return bundles


def _read_clips(data: Path, entry: FigureEntry, options: ClipOptions) -> tuple[Layout, list[VideoSample]]:
    """Read the clips that a figure may show. Raises what :func:`read_dataset` raises."""
    layout = detect_layout(data) if options.layout is None else find_layout(options.layout)
    if entry.kind == "semantic" and not load_layout(layout).has_classes:
        others = ", ".join(other.name for other in FIGURES.values() if other.kind == "binary")
        raise DataError(f"figure {entry.name} shows classes, which {layout} does not have: name one of {others}")
    subsets = options.subset or entry.subsets
    return layout, read_dataset(data, layout, options.split, subsets=subsets)  # type: ignore[arg-type]


def _run_bundles(
    console: Console,
    maker: FigureMaker,
    bundles: dict[str, Bundle],
    *,
    cues: ClipCueWay | CueFile,
    engine: EngineOptions,
    count: int,
) -> None:
    maker.add_truth()
    for name, opened in bundles.items():
        pipeline = load_pipeline(console, opened, engine)
        with progress_bar(console) as bar:
            task = bar.add_task(as_markup(name), total=count)
            maker.add_bundle(name, pipeline, cues, on_clip=lambda bar=bar, task=task: bar.advance(task))  # type: ignore[misc]
