"""``teso-deploy live``: segment what sounds in streams and cameras, until they end or the user ends them."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.live import Live

from teso_deploy.bundle import Bundle, find_bundle_folder
from teso_deploy.cli.live_view import draw_snapshot
from teso_deploy.cli.loading import load_pipeline
from teso_deploy.cli.options import BundleOption, adapt, with_options
from teso_deploy.cli.reports import as_markup, check_json, say, toml_file, write_json
from teso_deploy.cli.run_cues import RunCues, list_cue_files
from teso_deploy.cli.signals import ENDING_SIGNALS, leave_terminal
from teso_deploy.cues.asking import AskingOptions
from teso_deploy.cues.choosing import Chosen
from teso_deploy.cues.worker import CueWorker
from teso_deploy.errors import MediaError, OutputError, StreamFailedError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.metrics_server import MetricsServer, parse_place
from teso_deploy.live.runner import LiveRunner, describe_live_run
from teso_deploy.live.scheduler import LiveOptions
from teso_deploy.media.address import Address
from teso_deploy.media.connecting import choose_sound, choose_tracks
from teso_deploy.media.container import open_media
from teso_deploy.media.live_reader import LiveReader, start_all
from teso_deploy.options.cues import CueOptions
from teso_deploy.options.engine import EngineOptions
from teso_deploy.options.fields import OptionError
from teso_deploy.options.media import FrameOptions, SoundOptions
from teso_deploy.options.output import OutputOptions
from teso_deploy.options.stream import StreamOptions
from teso_deploy.outputs import check_apart
from teso_deploy.pipeline.file_runner import describe_model
from teso_deploy.pipeline.pipeline import Offered, Pipeline
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.registry import check_target, open_sink
from teso_deploy.sinks.report import ReportSink

#: How often the terminal view is updated.
VIEW_SECONDS = 0.5
#: A pipe whose video is this many times as long as the run is not a camera.
FASTER_THAN_REAL_TIME = 1.5
#: Causes of dropped frames that a slower input would not have.
TOO_FAST = ("superseded", "stale")
#: The file that ``-`` stands for.
STDIN_FILE = Path("/dev/stdin")


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """The request for a live run.

    Attributes:
        inputs: streams, and files that are run at their own pace.
        is_lossless: True if every frame is run, however long that takes. Otherwise only the newest is run.
        outputs: where results go.
        sound: whether the sound is muted, and which tracks are read.
        fps: frames a second to look at. Default: all.
        streams: how the inputs are read.
        cue_source: the source of cues. Default: none.
        asking: when the source is asked.
    """

    inputs: tuple[Address, ...]
    is_lossless: bool
    outputs: OutputOptions
    sound: SoundOptions
    fps: float | None
    streams: StreamOptions
    cue_source: Chosen | None = None
    asking: AskingOptions = field(default_factory=AskingOptions)

    @property
    def audio(self) -> Address | None:
        """The separate source of the sound; None: the sound of the input."""
        return Address.parse(self.streams.audio) if self.streams.audio else None


def parse_inputs(texts: Sequence[str]) -> list[Address]:
    """Parse the addresses of files and streams. Raises :class:`MediaError` for ``-`` if standard input is closed."""
    addresses = [Address.parse(text) for text in texts]
    if sys.stdin is None and any(address.kind == "pipe" for address in addresses):
        raise MediaError("- can't be read: standard input is closed; pipe a stream into it, or name a file")
    return addresses


def check_live(request: LiveRequest) -> None:
    """Refuse what can't work, before the model is loaded.

    Raises:
        InputNotFoundError: a file does not exist.
        MediaError: a file has no such track.
        OptionError: an option has no effect.
        OutputError: an output can't be written.
    """
    audio, sound, outputs = request.audio, request.sound, request.outputs
    if audio is not None and sound.mute:
        raise OptionError("{mute} replaces the sound: omit {audio}")
    if request.is_lossless and "staleness_seconds" in request.streams.changed():
        raise OptionError("{mode} file runs every frame, however old: omit {staleness_seconds}")
    for address in request.inputs:
        if address.path is not None:
            with open_media(address.path) as container:
                choose_tracks(
                    container,
                    address,
                    wants_audio=audio is None,
                    video_track=sound.video_track,
                    audio_track=sound.audio_track,
                )
    if audio is not None and audio.path is not None:
        with open_media(audio.path) as container:
            if sound.audio_track is not None:
                choose_sound(container, audio, sound.audio_track)
    if audio is not None and len(request.inputs) > 1:
        raise OutputError("--audio is for one stream: run several streams one by one")
    if request.streams.metrics is not None:
        parse_place(request.streams.metrics)
    for entry, target in outputs.sinks:
        if len(request.inputs) > 1 and not entry.takes_many:
            raise OutputError(f"{entry.option} {target} is for one stream: omit it, or run the streams one by one")
        check_target(entry, target)


@contextmanager
def end_by_signals(runner: LiveRunner) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the run with complete files. A second signal ends it at once.

    SIGINT ends the run even if it was ignored. A script's background jobs ignore it, and ``kill -INT`` should end them
    too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # started with nohup
        del before[signal.SIGHUP]

    def end(number: int, frame: FrameType | None) -> None:
        for one, handler in before.items():
            signal.signal(one, handler)
        leave_terminal(number)
        runner.stop()

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_cue_worker(runner: LiveRunner, pipeline: Pipeline, *, chosen: Chosen, asking: AskingOptions) -> CueWorker:
    """Start a worker that asks a source about a runner's frames, and gives the runner the answers.

    Args:
        runner: the runner whose frames are asked about.
        pipeline: the model that it runs.
        chosen: the source.
        asking: when the source is asked.
    """
    none = pipeline.cues_of(None)
    worker = CueWorker(
        chosen.source,
        pipeline.cue_names.look_up_answer,
        offer=runner.offer_cues,
        none=none,
        streams=len(runner.accounting.inputs),
        options=asking,
        frames=chosen.frames,
    )
    runner.watch(worker.note_picture, tags=chosen.needs_tags, masks=chosen.needs_masks)
    return worker


def _open_reader(request: LiveRequest, address: Address) -> LiveReader:
    streams, sound = request.streams, request.sound
    return LiveReader(
        address,
        audio=request.audio,
        timeout_seconds=streams.timeout_seconds,
        lossless=request.is_lossless,
        corrupt=streams.corrupt,
        reconnect=streams.reconnect,
        realtime=not request.is_lossless and address.kind == "file",
        video_track=sound.video_track,
        audio_track=sound.audio_track,
    )


def open_sinks(outputs: OutputOptions, facts: RunFacts) -> list[Sink]:
    """Open all sinks; the runner closes them. If one can't be opened, those before it are closed.

    Raises :class:`OutputError`.
    """
    with ExitStack() as opened:
        sinks = [opened.enter_context(open_sink(entry, target, facts)) for entry, target in outputs.sinks]
        opened.pop_all()
    return sinks


def run_live(console: Console, pipeline: Pipeline, request: LiveRequest, *, cues: Offered) -> dict[str, Any]:
    """Run streams until they end, or until the user ends them.

    Args:
        console: shows the progress.
        pipeline: the model.
        request: inputs, outputs and how they are read.
        cues: the cues until a source has answered.

    Returns:
        The report, ready for JSON.

    Raises:
        InputNotFoundError: a stream can't be opened in time.
        MediaError: a stream holds no usable video.
        OutputError: an output can't be written.
    """
    streams = request.streams
    accounting = Accounting([address.shown for address in request.inputs])
    with ExitStack() as stack:
        if streams.metrics is not None:
            server = stack.enter_context(MetricsServer(streams.metrics, accounting))
            say(console, f"metrics: http://{server.address}/metrics")
        readers = [stack.enter_context(_open_reader(request, address)) for address in request.inputs]
        began = time.monotonic()
        with console.status(as_markup("opening " + ", ".join(address.shown for address in request.inputs))):
            start_all(readers)
        for address, reader in zip(request.inputs, readers, strict=True):
            if not reader.info.has_audio and not request.sound.mute:
                note = reader.health().audio_note
                why = f" ({note})" if note else ""
                say(console, f"{address.shown} has no sound{why}: it is run as silence until some comes")
        options = LiveOptions(
            staleness_budget_seconds=streams.staleness_seconds,
            lossless=request.is_lossless,
            fps=request.fps,
            mute=request.sound.mute,
        )
        facts = describe_live_run(pipeline, readers)
        sinks = open_sinks(request.outputs, facts)
        results = ReportSink(None, facts)
        runner = LiveRunner(
            pipeline,
            readers,
            [*sinks, results],
            options=options,
            cues=cues,
            cue_ttl_seconds=request.asking.ttl_seconds,
            accounting=accounting,
        )
        if request.cue_source is not None:
            worker = start_cue_worker(runner, pipeline, chosen=request.cue_source, asking=request.asking)
            stack.enter_context(closing(worker))
            accounting.cue_health = worker.health
        if streams.seconds is not None:
            timer = threading.Timer(streams.seconds, runner.stop)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        _run_watched(console, runner, accounting)
        lasted = time.monotonic() - began
    report = _make_report(request, pipeline, runner, results=results)
    if not request.is_lossless:
        for address, reader, stream in zip(request.inputs, readers, report["streams"], strict=True):
            if address.kind == "pipe" and (hint := suggest_file_mode(stream, reader.info.fps, lasted)):
                say(console, hint)
    return report


def suggest_file_mode(stream: Mapping[str, Any], fps: float, lasted_seconds: float) -> str | None:
    """Return a hint for a recording that was piped into a live run, which drops frames that come too fast.

    Args:
        stream: The report's entry for standard input.
        fps: Its frames per second; 0 if unknown.
        lasted_seconds: How long the run took.

    Returns:
        The hint; None if no frame was dropped, or if the frames came no faster than from a camera.
    """
    dropped, decoded = sum(stream["drops"].get(cause, 0) for cause in TOO_FAST), stream["frames_decoded"]
    is_faster = fps > 0 and decoded / fps > FASTER_THAN_REAL_TIME * lasted_seconds
    if not dropped or not (is_faster or _is_stdin_a_file()):
        return None
    return (
        f"standard input came faster than real time, so {dropped} of {decoded} frames were dropped: add --mode file to "
        "segment every frame"
    )


def _is_stdin_a_file() -> bool:
    with suppress(OSError, ValueError, AttributeError):  # standard input is closed, or has no file descriptor
        return stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    return False


def _make_report(
    request: LiveRequest, pipeline: Pipeline, runner: LiveRunner, *, results: ReportSink
) -> dict[str, Any]:
    """Make the report: for each stream the fields of a file's report, and those of the accounting."""
    snapshot = runner.accounting.snapshot()
    streams = []
    for number, (counts, facts) in enumerate(zip(snapshot["streams"], runner.inputs, strict=True)):
        result = results.describe_input(number, facts)
        nested = {key: result[key] | counts[key] for key in ("audio", "cues")}
        streams.append(result | counts | nested)
    return {
        **snapshot,
        "streams": streams,
        "mode": "file" if request.is_lossless else "live",
        "errors": [str(error) for error in runner.errors()],
        **describe_model(pipeline),
    }


def _run_watched(console: Console, runner: LiveRunner, accounting: Accounting) -> None:
    """Run, and draw a table of the progress if the console is a terminal."""
    with end_by_signals(runner):
        if not console.is_terminal:
            runner.run()
            return
        with Live(
            console=console,
            refresh_per_second=1 / VIEW_SECONDS,
            get_renderable=lambda: draw_snapshot(accounting.snapshot()),
        ):
            runner.run()


def run_streams(request: LiveRequest, *, bundle: Path | None, cues: CueOptions, engine: EngineOptions) -> None:
    """Run a request of ``teso-deploy live``, and report it.

    Args:
        request: inputs, outputs and how they are read.
        bundle: folder of the bundle. Default: the shipped one.
        cues: the text cues that the model is offered.
        engine: how the bundle's graphs are run.

    Raises:
        StreamFailedError: a stream or an output failed during the run. The others continued, and their files are
            complete.
    """
    outputs = request.outputs
    check_live(request)
    check_json(outputs.json_out)
    paths = [address.path for address in request.inputs if address.path is not None]
    piped = [STDIN_FILE for address in request.inputs if address.kind == "pipe"]
    files = [target for entry, target in outputs.sinks if entry.writes == "file"]
    folders = [target for entry, target in outputs.sinks if entry.writes == "folder"]
    check_apart(
        [
            *(*paths, find_bundle_folder(bundle), *list_cue_files(cues), toml_file(engine.profile), *piped),
            request.audio.path if request.audio else None,
        ],
        [*files, outputs.json_out],
        folders,
    )
    opened_bundle = Bundle.open(bundle)
    run_cues = RunCues(cues, opened_bundle, paths, has_streams=True)
    console = Console(stderr=True)
    with closing(run_cues):
        pipeline = load_pipeline(console, opened_bundle, engine)
        request = replace(request, cue_source=run_cues.chosen, asking=cues.asking)
        report = run_live(console, pipeline, request, cues=run_cues.of_streams(pipeline))
    write_json(outputs.json_out, report)
    console.print(draw_snapshot(report))
    if report["errors"]:
        first, *others = report["errors"]
        raise StreamFailedError(first + (f" (and {len(others)} more failed)" if others else ""))


@with_options
def live(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Streams: rtsp://, rtmp://, http://, tcp:// or udp:// (MPEG-TS), -; or video files, each at its own "
            "pace.",
        ),
    ],
    *,
    outputs: Annotated[
        OutputOptions,
        adapt(
            omit=("heatmaps",),
            helps={
                "out": "Annotated video, .mp4 with the sound that the model heard. It can be played while it grows.",
            },
        ),
    ],
    bundle: BundleOption = None,
    cues: CueOptions,
    mode: Annotated[
        Literal["live", "file"],
        typer.Option(
            help="live: always the newest frame, others are dropped; file: every frame, even if that is slower than "
            "the stream."
        ),
    ] = "live",
    sound: Annotated[SoundOptions, adapt(only=("mute", "video_track", "audio_track"))],
    frames: Annotated[FrameOptions, adapt(only=("fps",))],
    streams: StreamOptions,
    engine: EngineOptions,
) -> None:
    """Segment what sounds in streams, in real time: annotated video, masks, events, report.

    Ctrl-C ends the run: its files are finished, and a report is printed.
    """
    request = LiveRequest(tuple(parse_inputs(inputs)), mode == "file", outputs, sound, frames.fps, streams)
    run_streams(request, bundle=bundle, cues=cues, engine=engine)
