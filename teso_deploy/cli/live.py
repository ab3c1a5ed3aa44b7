"""The live half of ``teso-deploy run``: streams and cameras, until they end or the user ends them."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rich.console import Console
from rich.live import Live

from teso_deploy.cli.live_view import rendered
from teso_deploy.cli.reports import as_markup, say
from teso_deploy.cli.signals import ENDING_SIGNALS, leave_terminal
from teso_deploy.cues.asking import AskingOptions
from teso_deploy.cues.choosing import Chosen
from teso_deploy.cues.worker import CueWorker
from teso_deploy.errors import OutputError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.metrics_server import MetricsServer, parse_place
from teso_deploy.live.runner import LiveRunner, describe_live_run
from teso_deploy.live.scheduler import LiveOptions
from teso_deploy.media.address import Address
from teso_deploy.media.connecting import choose_sound, choose_tracks
from teso_deploy.media.container import opened
from teso_deploy.media.live_reader import LiveReader, start_all
from teso_deploy.pipeline.file_runner import describe_model
from teso_deploy.pipeline.pipeline import Offered, Pipeline
from teso_deploy.sinks.registry import check_target, choose_sink, open_sink

#: How often the terminal shows what is going on.
VIEW_SECONDS = 0.5
#: A pipe whose video is this many times as long as the run is not a camera.
FASTER_THAN_REAL_TIME = 1.5
#: Causes of dropped frames that a slower input would not have.
TOO_FAST = ("superseded", "stale")


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """What the options of ``run`` ask for."""

    inputs: tuple[Address, ...]
    mode: Literal["live", "file"]
    audio: Address | None = None
    out: Path | None = None
    masks: Path | None = None
    events: Path | None = None
    mute: bool = False
    fps: float | None = None
    timeout_seconds: float = 10.0
    staleness_seconds: float = 0.5
    corrupt: Literal["keep", "drop"] = "keep"
    reconnect: bool = True
    seconds: float | None = None
    metrics: str | None = None
    cue_source: Chosen | None = None
    asking: AskingOptions = field(default_factory=AskingOptions)
    video_track: int | None = None
    audio_track: int | None = None

    @property
    def masks_are_a_folder(self) -> bool:
        """Whether ``masks`` names a folder, and not a file of lines."""
        return self.masks is not None and choose_sink("--masks", self.masks).writes == "folder"

    @property
    def targets(self) -> dict[str, Path]:
        """Option → where it writes, for the outputs that are asked for."""
        targets = {"--out": self.out, "--masks": self.masks, "--events": self.events}
        return {option: target for option, target in targets.items() if target is not None}


def check_live(request: LiveRequest) -> None:
    """Refuse what can't be, before the model is loaded (:class:`InputNotFoundError`, :class:`OutputError`)."""
    for address in request.inputs:
        if address.path is not None:
            with opened(address.path) as container:
                choose_tracks(container, address, request.audio is None, request.video_track, request.audio_track)
    if request.audio is not None and request.audio.path is not None:
        with opened(request.audio.path) as container:
            if request.audio_track is not None:
                choose_sound(container, request.audio, request.audio_track)
    if request.audio is not None and len(request.inputs) > 1:
        raise OutputError("--audio is of one stream: run several streams one by one")
    if request.metrics is not None:
        parse_place(request.metrics)
    if len(request.inputs) > 1 and (request.out or request.masks):
        raise OutputError("--out and --masks are of one stream: run several streams with --events or --json alone")
    for option, target in request.targets.items():
        check_target(choose_sink(option, target), target)


@contextmanager
def ended_by_signals(runner: LiveRunner) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the run well: files are finished. A second one ends it at once.

    SIGINT counts also if it is ignored, as it is in a script's background jobs, so that ``kill -INT`` ends those.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # nohup
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


def cue_worker(chosen: Chosen, asking: AskingOptions, pipeline: Pipeline, runner: LiveRunner) -> CueWorker:
    """What asks a source beside the frames of a runner, and offers it what was answered."""
    none = pipeline.cues_of(None)
    worker = CueWorker(
        chosen.source,
        pipeline.cue_names.of_answer,
        runner.offer_cues,
        none,
        len(runner.accounting.inputs),
        asking,
        frames=chosen.frames,
    )
    runner.watch(worker.saw, tags=chosen.needs_tags, masks=chosen.needs_masks)
    return worker


def run_live(console: Console, pipeline: Pipeline, request: LiveRequest, cues: Offered) -> dict[str, Any]:
    """Run streams until they end, or the user ends them; the report, as it goes to JSON.

    Raises :class:`MediaError`, :class:`InputNotFoundError` (a stream can't be opened in time), :class:`OutputError`.
    """
    lossless = request.mode == "file"
    accounting = Accounting([address.shown for address in request.inputs])
    with ExitStack() as stack:
        if request.metrics is not None:
            server = stack.enter_context(MetricsServer(request.metrics, accounting))
            say(console, f"metrics: http://{server.address}/metrics")
        readers = [
            stack.enter_context(
                LiveReader(
                    address,
                    audio=request.audio,
                    timeout_seconds=request.timeout_seconds,
                    lossless=lossless,
                    corrupt=request.corrupt,
                    reconnect=request.reconnect,
                    realtime=not lossless and address.kind == "file",
                    video_track=request.video_track,
                    audio_track=request.audio_track,
                )
            )
            for address in request.inputs
        ]
        began = time.monotonic()
        with console.status(as_markup("opening " + ", ".join(address.shown for address in request.inputs))):
            start_all(readers)
        for address, reader in zip(request.inputs, readers, strict=True):
            if not reader.info.has_audio and not request.mute:
                note = reader.health().audio_note
                why = f" ({note})" if note else ""
                say(console, f"{address.shown} has no sound{why}: it is run as silence until some comes")
        options = LiveOptions(
            staleness_budget_seconds=request.staleness_seconds, lossless=lossless, fps=request.fps, mute=request.mute
        )
        facts = describe_live_run(pipeline, readers)
        sinks = [open_sink(choose_sink(option, target), target, facts) for option, target in request.targets.items()]
        runner = LiveRunner(
            pipeline,
            readers,
            sinks,
            options=options,
            cues=cues,
            cue_ttl_seconds=request.asking.ttl_seconds,
            accounting=accounting,
        )
        if request.cue_source is not None:
            worker = stack.enter_context(closing(cue_worker(request.cue_source, request.asking, pipeline, runner)))
            accounting.cue_health = worker.health
        if request.seconds is not None:
            timer = threading.Timer(request.seconds, runner.stop)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        _watched(console, runner, accounting)
        lasted = time.monotonic() - began
    report = _report(request, pipeline, runner, accounting)
    if not lossless:
        for address, reader, stream in zip(request.inputs, readers, report["streams"], strict=True):
            if address.kind == "pipe" and (hint := suggest_file_mode(stream, reader.info.fps, lasted)):
                say(console, hint)
    return report


def suggest_file_mode(stream: Mapping[str, Any], fps: float, lasted_seconds: float) -> str | None:
    """Return a line for a recording that was piped into a live run, which drops the frames that come too fast.

    Args:
        stream: What the report says of standard input.
        fps: Its frames per second; 0 if unknown.
        lasted_seconds: How long the run took.

    Returns:
        The line; None if no frame was dropped, or if the frames came no faster than a camera gives them.
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
    with suppress(OSError, ValueError, AttributeError):  # closed, or not of the system
        return stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    return False


def _report(request: LiveRequest, pipeline: Pipeline, runner: LiveRunner, accounting: Accounting) -> dict[str, Any]:
    snapshot = accounting.snapshot()
    for stream, runs in zip(snapshot["streams"], runner.runs(), strict=True):
        stream |= runs
    return {
        **snapshot,
        "mode": request.mode,
        "errors": [str(error) for error in runner.errors()],
        **describe_model(pipeline),
    }


def _watched(console: Console, runner: LiveRunner, accounting: Accounting) -> None:
    """Run, and draw a table of what goes on if the console is a terminal."""
    with ended_by_signals(runner):
        if not console.is_terminal:
            runner.run()
            return
        with Live(
            console=console, refresh_per_second=1 / VIEW_SECONDS, get_renderable=lambda: rendered(accounting.snapshot())
        ):
            runner.run()
