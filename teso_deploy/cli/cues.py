"""``teso-deploy cues``: ask a source for the text cues of videos, and write them to a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from teso_deploy.bundle import Bundle, find_bundle_folder
from teso_deploy.cli.loading import load_pipeline
from teso_deploy.cli.options import BundleOption, Given, adapt, refuse_given, with_options
from teso_deploy.cli.reports import as_markup, check_json, progress_bar, write_json
from teso_deploy.cli.run_cues import list_cue_files
from teso_deploy.cues.choosing import Chosen, choose_source
from teso_deploy.cues.sources.parts import SourceOptions
from teso_deploy.cues.tracks import VideoCues, make_cue_file_content, read_cue_file
from teso_deploy.errors import CueError, OutputError
from teso_deploy.evaluation.datasets.media_folder import read_library
from teso_deploy.evaluation.protocols.composed_scenes import ComposedScenes
from teso_deploy.evaluation.scene_cues import ask_about_scenes
from teso_deploy.media.audio import check_sound
from teso_deploy.media.reader import VideoReader
from teso_deploy.options.cues import SOURCE_HELP, CueOptions
from teso_deploy.options.engine import EngineOptions
from teso_deploy.options.media import SoundOptions
from teso_deploy.options.scenes import SceneOptions
from teso_deploy.outputs import as_json, check_apart, check_file, show_path, write_text
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_cues import Unanswered, Watch, find_video_cues
from teso_deploy.text import replace_undecodable


def _check_inputs(inputs: list[Path], tracks: SoundOptions, *, out: Path, json_out: Path | None) -> None:
    if any(os.path.isdir(path) for path in inputs):
        if len(inputs) > 1:
            raise typer.BadParameter("a folder of test scenes must be the only input: name it alone, or name videos")
    else:
        for path in inputs:
            with VideoReader(path, video_track=tracks.video_track):
                pass
            if tracks.audio_track is not None:
                check_sound(path, tracks.audio_track)
        if len({replace_undecodable(path.name) for path in inputs}) < len(inputs):
            raise OutputError(
                "two inputs have the same name, which would mix their cues: run the command for each of them"
            )
    check_file(out)
    check_json(json_out)


def _print_summary(console: Console, chosen: Chosen, videos: dict[str, VideoCues], *, unanswered: Unanswered) -> None:
    table = Table("video", "answers", "cues")
    for name, entry in list(videos.items())[:20]:
        words = dict.fromkeys(word for span in entry.spans for word in span.names)
        shown = ", ".join(list(words)[:8]) + (" …" if len(words) > 8 else "")
        table.add_row(as_markup(name), str(len(entry.spans)), as_markup(shown or "–"))
    if len(videos) > 20:
        table.add_row(f"and {len(videos) - 20} more", "", "")
    console.print(table)
    if chosen.passed_over:
        reasons = "; ".join(chosen.troubles) or "it has answered since"
        console.print(f"a source failed and was passed over {chosen.passed_over} times: {as_markup(reasons)}")
    if unanswered.count:
        console.print(f"{unanswered.count} pictures have no cues: {as_markup(unanswered.reason)}")
    if chosen.kept:
        console.print(f"{chosen.asked} new answers, {chosen.found} from the file of an earlier run")


@with_options
def cues(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Video files; or a folder of pictures and sounds, for the test scenes that `eval` composes from it.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="The cues as JSON, for `run --cues-file` and `eval --cues-file`.")],
    asked: Annotated[
        CueOptions,
        adapt(
            omit=("cues", "ttl_seconds", "budget_per_minute"),
            flags={
                "source": "--source",
                "every_seconds": "--every",
                "timeout_seconds": "--timeout",
                "prompt": "--prompt",
                "frames": "--frames",
            },
            helps={
                "source": SOURCE_HELP,
                "cues_file": (
                    "For the sources manual and released: words, the authors' JSON, or a file that this command wrote."
                ),
            },
            defaults={"source": "tagger"},
        ),
    ],
    tracks: Annotated[SoundOptions, adapt(only=("video_track", "audio_track"))],
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask again for cues that the file already has.")] = False,
    scenes: Annotated[
        SceneOptions,
        adapt(
            helps={
                "scenes": "For a folder: scenes per row, as for `eval`.",
                "seed": "For a folder: as for `eval`.",
                "seeds": "For a folder: as for `eval`.",
            }
        ),
    ],
    bundle: BundleOption = None,
    engine: Annotated[EngineOptions, adapt(only=("threads",))],
    json_out: Annotated[Path | None, typer.Option("--json", help="Write a report to a file, or - for stdout.")] = None,
    given: Given,
) -> None:
    """Ask a source for the cues of videos, and write them to a file with caption and reasoning."""
    is_folder = any(os.path.isdir(path) for path in inputs)
    if is_folder:
        refuse_given(given, ("tracks.video_track", "tracks.audio_track"), "for videos, not for a folder of test scenes")
    else:
        refuse_given(given, ("scenes.scenes", "scenes.seed", "scenes.seeds"), "for a folder of test scenes")
    _check_inputs(inputs, tracks, out=out, json_out=json_out)
    check_apart([*inputs, *list_cue_files(asked), find_bundle_folder(bundle)], [out, json_out])
    opened, console = Bundle.open(bundle), Console(stderr=True)
    source = asked.source or ""
    options = SourceOptions(
        models=asked.models,
        server=asked.server,
        server_model=asked.server_model,
        frames=asked.frames,
        prompt=asked.prompt,
        cue_file=None if asked.cues_file is None else read_cue_file(asked.cues_file),
        timeout_seconds=asked.timeout_seconds,
        threads=engine.threads,
        in_background=False,
        keep="anew" if fresh else "yes",
    )
    library = read_library(inputs[0], "test") if is_folder else None
    chosen = choose_source(source, options, opened)
    try:
        pipeline = load_pipeline(console, opened, engine) if chosen.looks_at_model else None
        watch = Watch(asked.every_seconds, asked.frames, tags=chosen.needs_tags, masks=chosen.needs_masks)
        videos, unanswered = dict[str, VideoCues](), Unanswered()
        with progress_bar(console) as bar:
            if library is not None:
                if chosen.needs_track:
                    raise CueError("manual and released give cues of videos: name another source for a folder's scenes")
                composed = ComposedScenes(library, opened.classes, scenes.scenes, scenes.every_seed)
                task = bar.add_task(composed.data, total=composed.count_samples())
                for name, entry in ask_about_scenes(
                    chosen.source, composed, watch, pipeline=pipeline, unanswered=unanswered
                ):
                    videos[name] = entry
                    bar.advance(task)
            for path in inputs if library is None else ():
                name = replace_undecodable(path.name)
                videos[name] = _ask_about(
                    bar, chosen, path, watch=watch, pipeline=pipeline, unanswered=unanswered, tracks=tracks
                )
    finally:
        chosen.source.close()
    write_text(out, as_json(make_cue_file_content(videos, source, chosen.source.identity)))
    report: dict[str, Any] = {
        "schema_version": 1,
        "source": source,
        "identity": chosen.source.identity,
        "out": show_path(out),
        "videos": {name: len(entry.spans) for name, entry in videos.items()},
        "asked": chosen.asked,
        "kept": chosen.found,
        "passed_over": chosen.passed_over,
        "unanswered": unanswered.count,
        "troubles": chosen.troubles,
    }
    write_json(json_out, report)
    _print_summary(console, chosen, videos, unanswered=unanswered)


def _ask_about(
    bar: Progress,
    chosen: Chosen,
    path: Path,
    *,
    watch: Watch,
    pipeline: Pipeline | None,
    unanswered: Unanswered,
    tracks: SoundOptions,
) -> VideoCues:
    chosen.look_at(path)
    with VideoReader(path, video_track=tracks.video_track) as reader:
        total = reader.info.duration_seconds or None
    task = bar.add_task(as_markup(path.name), total=total)
    watch = replace(watch, times=chosen.times)
    return find_video_cues(
        chosen.source,
        path,
        watch,
        pipeline=pipeline,
        progress=lambda seconds: bar.update(task, completed=seconds),
        sound={"video_track": tracks.video_track, "audio_track": tracks.audio_track},
        unanswered=unanswered,
    )
