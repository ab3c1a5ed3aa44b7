"""``teso-deploy run``: segment what sounds in videos."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.backends.registry import BackendName, describe_choice, list_backends, runs_on_gpu
from teso_deploy.bundle import Bundle, bundle_folder
from teso_deploy.cli.cue_options import SOURCE_HELP, ModelsOption, ServerModelOption, ServerOption
from teso_deploy.cli.live import LiveRequest, check_live, run_live
from teso_deploy.cli.live_view import rendered
from teso_deploy.cli.loading import check_engine_options, load_pipeline, parse_backend
from teso_deploy.cli.reports import as_markup, check_json, progress_bar, say, toml_file, write_json
from teso_deploy.cli.run_cues import CueRequest, RunCues
from teso_deploy.cli.track_options import AudioTrackOption, VideoTrackOption
from teso_deploy.cues.prompts import DEFAULT_PROMPT
from teso_deploy.cues.timed import TimedCues
from teso_deploy.errors import MediaError, OutputError, StreamFailedError
from teso_deploy.media.address import Address
from teso_deploy.media.audio import check_sound
from teso_deploy.media.reader import Hardware, VideoReader
from teso_deploy.outputs import check_apart, check_folder, make_folder, show_path
from teso_deploy.pipeline.file_runner import describe_file_run, run_file
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline, SizeChoice
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.registry import check_target, choose_sink, find_sink, open_sink
from teso_deploy.sinks.report import ReportSink
from teso_deploy.text import to_one_line
from teso_deploy.types import Precision

#: Of pictures. Python turns no text of thousands of digits into a number.
SIZE = re.compile(r"(\d{1,9})(?:x(\d{0,9}))?", re.ASCII | re.IGNORECASE)
#: What ``-`` reads.
STDIN_FILE = Path("/dev/stdin")


def _size(text: str | None) -> SizeChoice:
    """What ``--size`` names: HxW, N for NxN, auto."""
    if text is None or text == AUTO:
        return AUTO if text else None
    if (match := SIZE.fullmatch(text)) is None:
        shown = to_one_line(text, 40)
        raise typer.BadParameter(f"--size {shown}: give height x width in pixels as 288x512, 384 for 384x384, or auto")
    return int(match[1]), int(match[2] or match[1])


def _check_inputs(
    inputs: Sequence[Path], sound_from: Path | None, video_track: int | None, audio_track: int | None
) -> None:
    for path in inputs:
        with VideoReader(path, video_track=video_track):
            pass
        if audio_track is not None and sound_from is None:
            check_sound(path, audio_track)
    if sound_from is not None:
        check_sound(sound_from, audio_track)


def _places(inputs: Sequence[Path], target: Path | None, suffix: str) -> list[Path | None]:
    """Where each input's result goes: the target itself, or for several inputs a name in that folder."""
    if target is None:
        return [None] * len(inputs)
    return [target] if len(inputs) == 1 else [target / f"{path.stem}{suffix}" for path in inputs]


def _are_masks_per_input(masks: Path | None) -> bool:
    """Tell whether each input's masks go to a place of their own: folders do, lines of all inputs go to one file."""
    return masks is not None and not choose_sink("--masks", masks).takes_many


def _check_outputs(
    inputs: Sequence[Path],
    out: Path | None,
    masks: Path | None,
    events: Path | None,
    json_out: Path | None,
) -> None:
    if not (out or masks or events or json_out):
        raise typer.BadParameter("name at least one output: --out, --masks, --events or --json")
    if len(inputs) > 1 and len({path.stem for path in inputs}) < len(inputs):
        raise OutputError("two inputs have the same name, so their outputs would too: run them one by one")
    if len(inputs) > 1:
        for folder in (out, masks if _are_masks_per_input(masks) else None):
            if folder is not None:
                check_folder(folder)
    elif out is not None and os.path.isdir(out):
        raise OutputError(f"{out} is a folder: name a .mp4 file in it, a folder is for several inputs")
    many = len(inputs) > 1
    for video in _places(inputs, out, ".mp4"):
        if video is not None and (not many or os.path.isdir(video.parent)):
            check_target(find_sink("video"), video)
    if masks is not None:
        entry = choose_sink("--masks", masks)
        for place in [masks] if entry.takes_many else _places(inputs, masks, ""):
            if place is not None and (not many or entry.takes_many or os.path.isdir(place.parent)):
                check_target(entry, place)
    if events is not None:
        check_target(find_sink("events"), events)
    check_json(json_out)


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


def run(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Video files; or streams: rtsp://, rtmp://, http://, tcp:// or udp:// (MPEG-TS), -.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Annotated video, .mp4 with the sound that was heard; a folder for several inputs."),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Default: the shipped bundle.")] = None,
    cues: Annotated[
        str, typer.Option(help="Words for what is to be seen, a,b; auto: what the model sees; none: its fallback.")
    ] = "none",
    cues_file: Annotated[
        Path | None,
        typer.Option(help="Cues in a file: words, by line or comma; what `teso-deploy cues` wrote; the authors' JSON."),
    ] = None,
    cue_source: Annotated[
        str | None,
        typer.Option(help="Ask for cues: of files before they are run, of streams while they are. " + SOURCE_HELP),
    ] = None,
    models: ModelsOption = None,
    server: ServerOption = None,
    server_model: ServerModelOption = None,
    cue_every: Annotated[
        float, typer.Option(min=0, help="Ask again after so many seconds, and at each new scene; 0: at these alone.")
    ] = 10.0,
    cue_ttl: Annotated[
        float | None, typer.Option(min=0.1, help="Cues that are older than so many seconds give way to the fallback.")
    ] = None,
    cue_budget: Annotated[int, typer.Option(min=1, help="Streams: so many questions a minute at most.")] = 12,
    cue_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a model or a server may take for an answer.")
    ] = 120.0,
    cue_prompt: Annotated[
        str, typer.Option(help="Of llm and openai: a shipped prompt by name, or a TOML file.")
    ] = DEFAULT_PROMPT,
    cue_frames: Annotated[int, typer.Option(min=1, max=16, help="Of openai: pictures that it is shown at a time.")] = 1,
    mode: Annotated[
        Literal["auto", "file", "live", "paper"],
        typer.Option(
            help="file: every frame; live: the newest, as it comes; paper: one a second with that second's sound; "
            "auto: live for streams, file for files."
        ),
    ] = "auto",
    mute: Annotated[bool, typer.Option("--mute", help="Silence in place of the sound.")] = False,
    noise_dbfs: Annotated[
        float | None, typer.Option(max=0, help="White noise of this level (RMS, dBFS) in place of the sound.")
    ] = None,
    sound_from: Annotated[Path | None, typer.Option(help="The sound of this file in place of the sound.")] = None,
    video_track: VideoTrackOption = None,
    audio_track: AudioTrackOption = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder for {index:06d}.png: 8-bit class ids with a palette, 0 = background; or a .jsonl file of COCO "
            "run lengths."
        ),
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="Onset, end and confidence of what sounds, as JSON lines.")
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.001, help="Look at this many frames a second only.")] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW|N|auto", help="Of the bundle's sizes; auto: each frame's nearest. Default: the first."
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of the bundle's forms for the backend.")] = "fp32",
    still_threshold: Annotated[
        float,
        typer.Option(
            min=0, max=255, help="Grey levels a frame may differ by, anywhere, and not be encoded anew; 0: none."
        ),
    ] = 0.0,
    backend: Annotated[
        BackendName,
        typer.Option(parser=parse_backend, metavar=f"[{'|'.join(list_backends())}]", help=describe_choice()),
    ] = "cpu",
    profile: Annotated[
        str | None, typer.Option(help="Of engines that have to be built: a shipped profile's name, or a TOML file.")
    ] = None,
    rebuild_engines: Annotated[
        bool, typer.Option("--rebuild-engines", help="Build engines anew, whatever the bundle or the cache has.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    decoder: Annotated[
        Literal["auto", "software", "nvdec"],
        typer.Option(help="Of the video; nvdec: on an NVIDIA GPU; auto: there if the backend is, and software else."),
    ] = "auto",
    audio: Annotated[
        str | None, typer.Option(help="Of a stream: where its sound comes from, a stream or file.")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(min=0.2, help="Seconds that a stream may take to open, or to be silent, before it is broken."),
    ] = 10.0,
    staleness: Annotated[
        float, typer.Option(min=0.01, help="Live: frames that are older than so many seconds are dropped.")
    ] = 0.5,
    corrupt: Annotated[Literal["keep", "drop"], typer.Option(help="Of a stream: damaged frames.")] = "keep",
    reconnect: Annotated[
        bool, typer.Option("--reconnect/--no-reconnect", help="Open a stream again that broke off.")
    ] = True,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Live: end after so many seconds.")] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="[HOST]:PORT", help="Live: serve Prometheus metrics there.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the report to a file, or - for stdout.")
    ] = None,
) -> None:
    """Segment what sounds in videos and streams: annotated video, masks, events, report."""
    if mute + (noise_dbfs is not None) + (sound_from is not None) > 1:
        raise typer.BadParameter("--mute, --noise-dbfs and --sound-from exclude each other: give one")
    cue_request = CueRequest(
        cues, cues_file, cue_source, models, server, server_model, cue_every or None, cue_ttl, cue_budget,
        cue_timeout, cue_prompt, cue_frames,
    )  # fmt: skip
    if audio_track is not None and (mute or noise_dbfs is not None):
        raise typer.BadParameter("--mute and --noise-dbfs replace the sound: omit --audio-track")
    if mode == "paper" and fps is not None:
        raise typer.BadParameter("--mode paper looks at one frame a second: omit --fps")
    check_engine_options([backend], profile, rebuild_engines)
    wanted_size = _size(size)
    addresses = [Address.parse(text) for text in inputs]
    if sys.stdin is None and any(address.kind == "pipe" for address in addresses):
        raise MediaError("- can't be read: standard input is closed; pipe a stream into it, or name a file")
    request: LiveRequest | None = None
    paths = [address.path for address in addresses if address.path is not None]
    read = [*paths, bundle_folder(bundle), *cue_request.files, toml_file(profile)]
    if mode == "live" or len(paths) < len(addresses):
        if mode == "paper" or noise_dbfs is not None or sound_from is not None:
            raise typer.BadParameter("--mode paper, --noise-dbfs and --sound-from are for files: omit them")
        request = LiveRequest(
            tuple(addresses), "file" if mode == "file" else "live", Address.parse(audio) if audio else None,
            out, masks, events, mute, fps, timeout, staleness, corrupt, reconnect, seconds, metrics,
            video_track=video_track, audio_track=audio_track,
        )  # fmt: skip
        check_live(request)
        check_json(json_out)
        has_folder = request.masks_are_a_folder
        piped = [STDIN_FILE for address in addresses if address.kind == "pipe"]
        check_apart(
            [*read, *piped, request.audio.path if request.audio else None],
            [out, events, json_out, None if has_folder else masks],
            [masks if has_folder else None],
        )
    else:
        if audio is not None or metrics is not None or seconds is not None:
            raise typer.BadParameter("--audio, --metrics and --seconds are for streams: add --mode live")
        _check_inputs(paths, sound_from, video_track, audio_track)
        _check_outputs(paths, out, masks, events, json_out)
        has_folders = _are_masks_per_input(masks)
        check_apart(
            [*read, sound_from],
            [*_places(paths, out, ".mp4"), events, json_out, None if has_folders else masks],
            _places(paths, masks if has_folders else None, ""),
        )
    opened = Bundle.open(bundle)
    run_cues = RunCues(cue_request, opened, paths, has_streams=request is not None)
    console = Console(stderr=True)
    pipeline = load_pipeline(
        console,
        opened,
        backend,
        precision,
        threads=threads,
        profile=profile,
        rebuild_engines=rebuild_engines,
        size=wanted_size,
        still_threshold=still_threshold,
    )
    if request is not None:
        asked = replace(request, cue_source=run_cues.chosen, asking=cue_request.asking)
        report = run_live(console, pipeline, asked, run_cues.of_streams(pipeline))
        write_json(json_out, report)
        console.print(rendered(report))
        if report["errors"]:  # the others went on to the end, and their files are whole
            first, *others = report["errors"]
            raise StreamFailedError(first + (f" (and {len(others)} more failed)" if others else ""))
        return
    sound: dict[str, Any] = {
        "mute": mute, "noise_dbfs": noise_dbfs, "sound_from": sound_from,
        "video_track": video_track, "audio_track": audio_track,
    }  # fmt: skip
    has_folders = _are_masks_per_input(masks)
    for folder in (out, masks if has_folders else None) if len(paths) > 1 else ():
        if folder is not None:
            make_folder(folder)
    # If the model runs on the CPU there may be no GPU at all, and looking for one takes time.
    hardware: Hardware | None = "nvdec" if decoder == "nvdec" else None
    if decoder == "auto" and runs_on_gpu(pipeline.backend):
        hardware = "auto"
    facts = describe_file_run(pipeline, [show_path(path) for path in paths])
    report_sink = ReportSink(None, facts)
    with closing(run_cues), ExitStack() as stack:
        shared = [
            stack.enter_context(open_sink(choose_sink(option, target), target, facts))
            for option, target in (("--masks", None if has_folders else masks), ("--events", events))
            if target is not None
        ]
        videos, folders = _places(paths, out, ".mp4"), _places(paths, masks if has_folders else None, "")
        for number, path in enumerate(paths):
            offered = run_cues.of_file(console, pipeline, path, sound)
            source = VideoSource(path, mode="paper" if mode == "paper" else "file", fps=fps, hardware=hardware, **sound)
            if source.reader.decoder_note:
                say(console, f"{path.name} is decoded in software: {source.reader.decoder_note}")
            own = {"--out": videos[number], "--masks": folders[number]}
            with source, ExitStack() as opened_sinks:
                sinks = [opened_sinks.enter_context(sink) for sink in _open_sinks(own, facts, number)]
                _run_one(console, pipeline, source, offered, sinks=[*sinks, *shared, report_sink], number=number)
    write_json(json_out, report_sink.describe())
    _print_summary(console, report_sink.describe_inputs())


def _run_one(
    console: Console,
    pipeline: Pipeline,
    source: VideoSource,
    cues: Offered | TimedCues,
    *,
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
    """Open the sinks of one input, one by one: option → target."""
    facts = replace(run, inputs=run.inputs[number : number + 1])
    for option, target in targets.items():
        if target is not None:
            yield open_sink(choose_sink(option, target), target, facts)
