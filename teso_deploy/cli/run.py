"""``teso-deploy run``: segment what sounds in video files. Streams are handed to ``teso-deploy live``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.backends.registry import runs_on_gpu
from teso_deploy.bundle import Bundle, bundle_folder
from teso_deploy.cli.live import LiveRequest, parse_inputs, run_streams
from teso_deploy.cli.loading import load_pipeline
from teso_deploy.cli.options import BundleOption, Given, refuse_given, with_options
from teso_deploy.cli.reports import as_markup, check_json, progress_bar, say, toml_file, write_json
from teso_deploy.cli.run_cues import RunCues, list_cue_files
from teso_deploy.cues.timed import TimedCues
from teso_deploy.errors import OutputError
from teso_deploy.media.audio import check_sound
from teso_deploy.media.reader import Hardware, VideoReader
from teso_deploy.options.cues import CueOptions
from teso_deploy.options.engine import EngineOptions
from teso_deploy.options.fields import OptionError
from teso_deploy.options.media import DecoderName, FrameOptions, SoundOptions
from teso_deploy.options.output import OutputOptions
from teso_deploy.options.stream import StreamOptions
from teso_deploy.outputs import check_apart, check_folder, make_folder, show_path
from teso_deploy.pipeline.file_runner import describe_file_run, run_file
from teso_deploy.pipeline.pipeline import Offered, Pipeline
from teso_deploy.pipeline.video_source import Mode, VideoSource
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.registry import check_target, choose_sink, find_sink, open_sink
from teso_deploy.sinks.report import ReportSink

#: Options that have an effect only for streams, or only for files.
_OF_STREAMS = (*(f"streams.{one.name}" for one in fields(StreamOptions)), "cues.budget_per_minute")
_OF_FILES = ("sound.noise_dbfs", "sound.sound_from", "frames.decoder")


def _check_inputs(inputs: Sequence[Path], sound: SoundOptions) -> None:
    for path in inputs:
        with VideoReader(path, video_track=sound.video_track):
            pass
        if sound.audio_track is not None and sound.sound_from is None:
            check_sound(path, sound.audio_track)
    if sound.sound_from is not None:
        check_sound(sound.sound_from, sound.audio_track)


def _list_places(inputs: Sequence[Path], target: Path | None, suffix: str) -> list[Path | None]:
    """List where each input's result goes: the target itself, or for several inputs a file in that folder."""
    if target is None:
        return [None] * len(inputs)
    return [target] if len(inputs) == 1 else [target / f"{path.stem}{suffix}" for path in inputs]


def _are_masks_per_input(masks: Path | None) -> bool:
    """Return whether each input has separate masks: a folder of PNGs holds one input, a file of lines all inputs."""
    return masks is not None and not choose_sink("--masks", masks).takes_many


def _check_outputs(inputs: Sequence[Path], outputs: OutputOptions) -> None:
    out, masks = outputs.out, outputs.masks
    if not (outputs.targets or outputs.json_out):
        raise OptionError("name at least one output: {out}, {masks}, {events} or {json_out}")
    if len(inputs) > 1 and len({path.stem for path in inputs}) < len(inputs):
        raise OutputError("two inputs have the same name, so their outputs would too: run them one by one")
    if len(inputs) > 1:
        for folder in (out, masks if _are_masks_per_input(masks) else None):
            if folder is not None:
                check_folder(folder)
    elif out is not None and os.path.isdir(out):
        raise OutputError(f"{out} is a folder: name a .mp4 file in it, a folder is for several inputs")
    many = len(inputs) > 1
    for video in _list_places(inputs, out, ".mp4"):
        if video is not None and (not many or os.path.isdir(video.parent)):
            check_target(find_sink("video"), video)
    if masks is not None:
        entry = choose_sink("--masks", masks)
        for place in [masks] if entry.takes_many else _list_places(inputs, masks, ""):
            if place is not None and (not many or entry.takes_many or os.path.isdir(place.parent)):
                check_target(entry, place)
    if outputs.events is not None:
        check_target(find_sink("events"), outputs.events)
    check_json(outputs.json_out)


def _print_summary(console: Console, reports: Sequence[dict[str, Any]]) -> None:
    table = Table("input", "frames", "not blank", "labelled pixels", "p50 ms", "p95 ms", "frames/s", "sound")
    for report in reports:
        latency = report["latency_ms"].get("frame", {})
        table.add_row(
            as_markup(report["input"].rpartition("/")[2]),
            str(report["frames"]),
            str(report["masks_nonblank"]),
            f"{report['positive_pixel_rate']:.1%}",
            f"{latency.get('p50', 0):.1f}",
            f"{latency.get('p95', 0):.1f}",
            f"{report['fps']:.1f}",
            report["audio"]["source"],
        )
    console.print(table)


def _choose_hardware(decoder: DecoderName, backend: str) -> Hardware | None:
    """Choose the hardware that decodes. For a model on the CPU no GPU is searched, because that takes time."""
    if decoder == "nvdec":
        return "nvdec"
    return "auto" if decoder == "auto" and runs_on_gpu(backend) else None


@with_options
def run(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Video files. Streams (rtsp://, rtmp://, http://, tcp:// or udp://, -) are run as by `live`.",
        ),
    ],
    *,
    outputs: OutputOptions,
    bundle: BundleOption = None,
    cues: CueOptions,
    mode: Annotated[
        Literal["auto", "file", "live", "paper"],
        typer.Option(
            help="file: every frame; live: the newest, as it comes; paper: one a second with that second's sound; "
            "auto: live for streams, file for files."
        ),
    ] = "auto",
    sound: SoundOptions,
    frames: FrameOptions,
    engine: EngineOptions,
    streams: StreamOptions,
    given: Given,
) -> None:
    """Segment what sounds in videos: annotated video, masks, events, report.

    Streams are run as by `teso-deploy live`, and so are files with --mode live.
    """
    if mode == "paper" and frames.fps is not None:
        raise OptionError("{mode} paper looks at one frame a second: omit {fps}")
    addresses = parse_inputs(inputs)
    paths = [address.path for address in addresses if address.path is not None]
    if mode == "live" or len(paths) < len(addresses):
        refuse_given(given, _OF_FILES, "for files")
        if mode == "paper":
            raise OptionError("{mode} paper is for files: omit it")
        request = LiveRequest(tuple(addresses), mode == "file", outputs, sound, frames.fps, streams)
        run_streams(request, bundle=bundle, cues=cues, engine=engine)
        return
    refuse_given(given, _OF_STREAMS, "for streams", instead="use `teso-deploy live`")
    run_files(
        paths,
        mode="paper" if mode == "paper" else "file",
        outputs=outputs,
        bundle=bundle,
        cues=cues,
        sound=sound,
        frames=frames,
        engine=engine,
    )


def run_files(
    paths: Sequence[Path],
    *,
    mode: Mode,
    outputs: OutputOptions,
    bundle: Path | None,
    cues: CueOptions,
    sound: SoundOptions,
    frames: FrameOptions,
    engine: EngineOptions,
) -> None:
    """Run video files one after the other, and report them.

    Args:
        paths: the files.
        mode: ``file``: every frame. ``paper``: one frame per second, with the sound of that second.
        outputs: where results go; folders for several files.
        bundle: folder of the bundle; None: the shipped one.
        cues: the text cues that the model is offered.
        sound: which tracks are read, and what replaces the sound.
        frames: which frames are looked at, and what decodes them.
        engine: how the bundle's graphs are run.
    """
    has_folders = _are_masks_per_input(outputs.masks)
    shared_masks, own_masks = (None, outputs.masks) if has_folders else (outputs.masks, None)
    videos, folders = _list_places(paths, outputs.out, ".mp4"), _list_places(paths, own_masks, "")
    _check_inputs(paths, sound)
    _check_outputs(paths, outputs)
    read = [*paths, bundle_folder(bundle), *list_cue_files(cues), toml_file(engine.profile), sound.sound_from]
    check_apart(read, [*videos, outputs.events, outputs.json_out, shared_masks], folders)
    opened = Bundle.open(bundle)
    run_cues = RunCues(cues, opened, paths, has_streams=False)
    console = Console(stderr=True)
    pipeline = load_pipeline(console, opened, engine)
    for folder in (outputs.out, own_masks) if len(paths) > 1 else ():
        if folder is not None:
            make_folder(folder)
    hardware = _choose_hardware(frames.decoder, pipeline.backend)
    facts = describe_file_run(pipeline, [show_path(path) for path in paths])
    report_sink = ReportSink(None, facts)
    with closing(run_cues), ExitStack() as stack:
        shared = [
            stack.enter_context(open_sink(choose_sink(option, target), target, facts))
            for option, target in (("--masks", shared_masks), ("--events", outputs.events))
            if target is not None
        ]
        for number, path in enumerate(paths):
            offered = run_cues.of_file(console, pipeline, path, sound=sound)
            source = VideoSource(path, mode=mode, fps=frames.fps, hardware=hardware, **sound.as_keywords())
            if source.reader.decoder_note:
                say(console, f"{path.name} is decoded in software: {source.reader.decoder_note}")
            own = {"--out": videos[number], "--masks": folders[number]}
            with source, ExitStack() as opened_sinks:
                sinks = [opened_sinks.enter_context(sink) for sink in _open_sinks(own, facts, number)]
                _run_one(console, pipeline, source, cues=offered, sinks=[*sinks, *shared, report_sink], number=number)
    write_json(outputs.json_out, report_sink.describe())
    _print_summary(console, report_sink.describe_inputs())


def _run_one(
    console: Console,
    pipeline: Pipeline,
    source: VideoSource,
    *,
    cues: Offered | TimedCues,
    sinks: Sequence[Sink],
    number: int,
) -> None:
    if source.sound == "none":
        what = f"no sound that can be decoded, {source.sound_note}" if source.info.has_audio else "no sound"
        say(console, f"{source.path.name} has {what}: it is run as silence")
    elif source.sound_note:
        say(console, f"the sound of {source.path.name}: {source.sound_note}")
    with progress_bar(console) as bar:
        task = bar.add_task(as_markup(source.path.name), total=source.info.duration_seconds or None)

        def show_progress(seconds: float) -> None:
            bar.update(task, completed=seconds)

        run_file(pipeline, source, cues, sinks=sinks, number=number, progress=show_progress)
        show_progress(source.info.duration_seconds)


def _open_sinks(targets: Mapping[str, Path | None], run: RunFacts, number: int) -> Iterator[Sink]:
    """Open the sinks of one input, one after the other. ``targets``: option → target."""
    facts = replace(run, inputs=run.inputs[number : number + 1])
    for option, target in targets.items():
        if target is not None:
            yield open_sink(choose_sink(option, target), target, facts)
