"""``teso-deploy run``: segment what sounds in video files. Streams are handed to ``teso-deploy live``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.backends.registry import runs_on_gpu
from teso_deploy.bundle import Bundle, find_bundle_folder
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
from teso_deploy.sinks.contracts import Sink
from teso_deploy.sinks.registry import SinkEntry, check_target, open_sink
from teso_deploy.sinks.report import ReportSink

#: Options that have an effect only for streams, or only for files.
_OF_STREAMS = (*(f"streams.{one.name}" for one in fields(StreamOptions)), "cues.budget_per_minute")
_OF_FILES = (
    "sound.noise_dbfs",
    "sound.noise_dbw",
    "sound.noise_snr",
    "sound.sound_from",
    "frames.framing",
    "frames.decoder",
    "outputs.heatmaps",
)


def _check_inputs(inputs: Sequence[Path], sound: SoundOptions) -> None:
    for path in inputs:
        with VideoReader(path, video_track=sound.video_track):
            pass
        if sound.audio_track is not None and sound.sound_from is None:
            check_sound(path, sound.audio_track)
    if sound.sound_from is not None:
        check_sound(sound.sound_from, sound.audio_track)


@dataclass(frozen=True, slots=True)
class _Output:
    """An output of the run.

    Attributes:
        entry: The sink that writes it.
        target: The path that the user gave.
        places: The path for each input, or the only one.
    """

    entry: SinkEntry
    target: Path
    places: tuple[Path, ...]

    @property
    def is_split(self) -> bool:
        """Whether the target is a folder with a result for each of several inputs."""
        return self.places != (self.target,)


def _list_outputs(inputs: Sequence[Path], outputs: OutputOptions) -> list[_Output]:
    """List the outputs. If a sink takes one input only, several inputs need a folder."""
    listed = []
    for entry, target in outputs.sinks:
        suffix = entry.suffixes[0] if entry.suffixes else ""
        is_split = len(inputs) > 1 and not entry.takes_many
        places = tuple(target / f"{path.stem}{suffix}" for path in inputs) if is_split else (target,)
        listed.append(_Output(entry, target, places))
    return listed


def _check_outputs(inputs: Sequence[Path], listed: Sequence[_Output], outputs: OutputOptions) -> None:
    if not (listed or outputs.json_out):
        *names, last = (f"{{{one.name}}}" for one in fields(outputs))
        raise OptionError(f"name at least one output: {', '.join(names)} or {last}")
    if any(output.is_split for output in listed) and len({path.stem for path in inputs}) < len(inputs):
        raise OutputError("two inputs have the same name, so their outputs would have it too: run them one by one")
    for output in listed:
        entry, target = output.entry, output.target
        if output.is_split:
            check_folder(target)
        elif entry.writes == "file" and not entry.takes_many and os.path.isdir(target):
            raise OutputError(
                f"{target} is a folder: name a {entry.suffixes[0]} file in it, a folder is for several inputs"
            )
        for place in output.places:
            if not output.is_split or os.path.isdir(target):
                check_target(entry, place)
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
            help="file: every frame; live: always the newest frame, others are dropped; paper: one frame a second "
            "with that second's sound; auto: live for streams, file for files."
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
    if mode not in ("paper", "live") and frames.framing is not None:
        raise OptionError("{framing} is for {mode} paper: in the other modes each window is centred on its frame")
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
    listed = _list_outputs(paths, outputs)
    _check_inputs(paths, sound)
    _check_outputs(paths, listed, outputs)
    read = [*paths, find_bundle_folder(bundle), *list_cue_files(cues), toml_file(engine.profile), sound.sound_from]
    files = [place for output in listed if output.entry.writes == "file" for place in output.places]
    folders = [place for output in listed if output.entry.writes == "folder" for place in output.places]
    check_apart(read, [*files, outputs.json_out], folders)
    opened = Bundle.open(bundle)
    run_cues = RunCues(cues, opened, paths, has_streams=False)
    console = Console(stderr=True)
    pipeline = load_pipeline(console, opened, engine)
    for output in listed:
        if output.is_split:
            make_folder(output.target)
    framing = frames.framing or opened.manifest.audio.framing
    hardware = _choose_hardware(frames.decoder, pipeline.backend)
    facts = describe_file_run(pipeline, [show_path(path) for path in paths])
    report_sink = ReportSink(None, facts)
    with closing(run_cues), ExitStack() as stack:
        shared = [
            stack.enter_context(open_sink(output.entry, output.target, facts))
            for output in listed
            if output.entry.takes_many
        ]
        for number, path in enumerate(paths):
            offered = run_cues.of_file(console, pipeline, path, sound=sound)
            source = VideoSource(
                path, mode=mode, framing=framing, fps=frames.fps, hardware=hardware, **sound.as_keywords()
            )
            if source.reader.decoder_note:
                say(console, f"{path.name} is decoded in software: {source.reader.decoder_note}")
            own_facts = replace(facts, inputs=facts.inputs[number : number + 1])
            with source, ExitStack() as opened_sinks:
                sinks = [
                    opened_sinks.enter_context(open_sink(output.entry, output.places[number], own_facts))
                    for output in listed
                    if not output.entry.takes_many
                ]
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
