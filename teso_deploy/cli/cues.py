"""``teso-deploy cues``: ask for the text cues of videos, and keep them in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.bundle import Bundle, bundle_folder
from teso_deploy.cli.cue_options import (
    SOURCE_HELP,
    ModelsOption,
    PromptOption,
    ServerFramesOption,
    ServerModelOption,
    ServerOption,
    SourceTimeoutOption,
)
from teso_deploy.cli.loading import load_pipeline
from teso_deploy.cli.reports import as_markup, check_json, progress_bar, toml_file, write_json
from teso_deploy.cli.track_options import AudioTrackOption, VideoTrackOption
from teso_deploy.cues.choosing import Chosen, choose_source
from teso_deploy.cues.prompts import DEFAULT_PROMPT
from teso_deploy.cues.sources.parts import SourceOptions
from teso_deploy.cues.tracks import VideoCues, cue_file_content, read_cue_file
from teso_deploy.errors import CueError, OutputError
from teso_deploy.evaluation.datasets.media_folder import read_library
from teso_deploy.evaluation.protocols.composed_scenes import ComposedScenes
from teso_deploy.evaluation.scene_cues import ask_about_scenes
from teso_deploy.media.audio import check_sound
from teso_deploy.media.reader import VideoReader
from teso_deploy.outputs import as_json, check_apart, check_file, show_path, write_text
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_cues import Unanswered, Watch, cues_of_video
from teso_deploy.text import replace_undecodable


def _check_inputs(inputs: list[Path], out: Path, json_out: Path | None, tracks: Mapping[str, int | None]) -> None:
    if any(os.path.isdir(path) for path in inputs):
        if len(inputs) > 1:
            raise typer.BadParameter("a folder of test scenes goes alone: name it, or videos")
    else:
        for path in inputs:
            with VideoReader(path, video_track=tracks["video_track"]):
                pass
            if tracks["audio_track"] is not None:
                check_sound(path, tracks["audio_track"])
        if len({replace_undecodable(path.name) for path in inputs}) < len(inputs):
            raise OutputError("two inputs have the same name, so their cues would too: ask for them one by one")
    check_file(out)
    check_json(json_out)


def _print_summary(console: Console, chosen: Chosen, videos: dict[str, VideoCues], unanswered: Unanswered) -> None:
    table = Table("video", "answers", "cues")
    for name, entry in list(videos.items())[:20]:
        words = dict.fromkeys(word for span in entry.spans for word in span.names)
        shown = ", ".join(list(words)[:8]) + (" …" if len(words) > 8 else "")
        table.add_row(as_markup(name), str(len(entry.spans)), as_markup(shown or "–"))
    if len(videos) > 20:
        table.add_row(f"and {len(videos) - 20} more", "", "")
    console.print(table)
    if chosen.passed_over:
        told = "; ".join(chosen.troubles) or "they have answered since"
        console.print(f"a source failed and was passed over {chosen.passed_over} times: {as_markup(told)}")
    if unanswered.count:
        console.print(f"{unanswered.count} pictures have no cues: {as_markup(unanswered.reason)}")
    if chosen.kept:
        console.print(f"{chosen.asked} answers were asked for, {chosen.found} known from before")


def cues(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Video files; or a folder of pictures and sounds: the test scenes that `eval` makes of it.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The cues as JSON, for `run --cues-file` and `eval --cues-file`.")],
    source: Annotated[str, typer.Option(help=SOURCE_HELP)] = "tagger",
    models: ModelsOption = None,
    server: ServerOption = None,
    server_model: ServerModelOption = None,
    frames: ServerFramesOption = 1,
    prompt: PromptOption = DEFAULT_PROMPT,
    cues_file: Annotated[
        Path | None, typer.Option(help="Of manual and released: words, the authors' JSON, or what this command wrote.")
    ] = None,
    every: Annotated[
        float, typer.Option(min=0, help="Ask again after so many seconds, and at each new scene; 0: at these alone.")
    ] = 10.0,
    timeout: SourceTimeoutOption = 120.0,
    video_track: VideoTrackOption = None,
    audio_track: AudioTrackOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask again what was answered before.")] = False,
    scenes: Annotated[int, typer.Option(min=1, help="Of a folder: scenes per row, as for `eval`.")] = 300,
    seed: Annotated[int, typer.Option(help="Of a folder: as for `eval`.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Of a folder: as for `eval`.")] = 1,
    bundle: Annotated[Path | None, typer.Option(help="Default: the shipped bundle.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write a report to a file, or - for stdout.")] = None,
) -> None:
    """Ask a source for the cues of videos, caption and reasoning with them, and keep them in a file."""
    tracks = {"video_track": video_track, "audio_track": audio_track}
    _check_inputs(inputs, out, json_out, tracks)
    check_apart([*inputs, cues_file, models, toml_file(prompt), bundle_folder(bundle)], [out, json_out])
    opened, console = Bundle.open(bundle), Console(stderr=True)
    options = SourceOptions(
        models=models,
        server=server,
        server_model=server_model,
        frames=frames,
        prompt=prompt,
        cue_file=None if cues_file is None else read_cue_file(cues_file),
        timeout_seconds=timeout,
        threads=threads,
        in_background=False,
        keep="anew" if fresh else "yes",
    )
    library = read_library(inputs[0], "test") if os.path.isdir(inputs[0]) else None
    chosen = choose_source(source, options, opened)
    try:
        pipeline = load_pipeline(console, opened, "cpu", "fp32", threads=threads) if chosen.looks_at_model else None
        watch = Watch(every or None, frames, tags=chosen.needs_tags, masks=chosen.needs_masks)
        videos, unanswered = dict[str, VideoCues](), Unanswered()
        with progress_bar(console) as bar:
            if library is not None:
                if chosen.needs_track:
                    raise CueError("manual and released are of videos: name another source for a folder's scenes")
                composed = ComposedScenes(library, opened.classes, scenes, range(seed, seed + seeds))
                task = bar.add_task(composed.data, total=composed.count_samples())
                for name, entry in ask_about_scenes(
                    chosen.source, composed, watch, pipeline=pipeline, unanswered=unanswered
                ):
                    videos[name] = entry
                    bar.advance(task)
            for path in inputs if library is None else ():
                name = replace_undecodable(path.name)
                videos[name] = _of_video(bar, chosen, path, watch, pipeline, unanswered, tracks)
    finally:
        chosen.source.close()
    write_text(out, as_json(cue_file_content(videos, source, chosen.source.identity)))
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
    _print_summary(console, chosen, videos, unanswered)


def _of_video(
    bar: Any,
    chosen: Chosen,
    path: Path,
    watch: Watch,
    pipeline: Pipeline | None,
    unanswered: Unanswered,
    tracks: Mapping[str, int | None],
) -> VideoCues:
    chosen.look_at(path)
    with VideoReader(path, video_track=tracks["video_track"]) as reader:
        total = reader.info.duration_seconds or None
    task = bar.add_task(as_markup(path.name), total=total)
    watch = replace(watch, times=chosen.times)
    return cues_of_video(
        chosen.source,
        path,
        watch,
        pipeline,
        progress=lambda seconds: bar.update(task, completed=seconds),
        sound=tracks,
        unanswered=unanswered,
    )
