"""Reading a stream as it comes: one thread that takes packets, one a decoder, and nobody who holds them up.

Times are seconds on one clock from the stream's beginning, by PTS. Where the stamps leap, and behind a reconnect,
that clock goes on, and sound and picture leap together.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from teso_deploy.errors import InputNotFoundError, MediaError, TesoError
from teso_deploy.media.address import Address, open_options
from teso_deploy.media.backoff import Backoff
from teso_deploy.media.clock import LiveClock
from teso_deploy.media.container import SteadyClock, open_container, origin_seconds, seconds_of
from teso_deploy.media.decoding import AudioDecoder, Corrupt, Counts, LiveFrame, Mailbox, VideoDecoder
from teso_deploy.media.ring import AudioRing

State = Literal["opening", "running", "reconnecting", "ended", "failed"]
#: Asking again would not help: who asks is not let in, or there is nothing.
REFUSED = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError, av.error.HTTPNotFoundError)
#: How long threads are waited for at the end.
JOIN_SECONDS = 2.0
#: How long a source that pauses is waited for before it counts as broken, at most.
LEAST_TIMEOUT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class LiveInfo:
    """What a source showed of itself at its first frame. ``delay_frames``: held back by its decoder."""

    kind: str
    width: int
    height: int
    fps: float
    has_audio: bool
    delay_frames: int


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """A source's state and what has happened to it since its beginning.

    ``drops``: frames by cause ("superseded" by a newer one, "corrupt"), packets ("overflow"). ``gap_seconds`` of
    sound that nobody recorded, ``av_offset_seconds``: how far the sound has come beyond the picture.
    """

    state: State
    frames_decoded: int
    corrupt_packets: int
    corrupt_frames: int
    drops: dict[str, int]
    discontinuities: int
    format_changes: int
    reconnects: int
    gap_seconds: float
    audio_seconds: float
    has_audio: bool
    av_offset_seconds: float | None
    error: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Pipe:
    """Standard input for FFmpeg, whose own reading can't be interrupted."""

    def __init__(self, file: Any, timeout_seconds: float, is_closed: Callable[[], bool]) -> None:
        self._descriptor, self._timeout, self._is_closed = file.fileno(), timeout_seconds, is_closed

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end. Raises :class:`TimeoutError`."""
        deadline = time.monotonic() + self._timeout
        while not self._is_closed():
            if select.select([self._descriptor], [], [], 0.1)[0]:
                return os.read(self._descriptor, size)
            if time.monotonic() > deadline:
                raise TimeoutError("nothing came")
        return b""


class LiveReader:
    """A stream as frames and sound; a context manager.

    ``audio``: where the sound comes from, if not with the video; its clock is tied to the video's by when its first
    sound comes. ``timeout_seconds``: for opening it, its first frame included, and for every pause after that.
    ``lossless``: every frame in order, the stream waits for its reader; else the newest frame alone. ``corrupt``: what
    becomes of damaged frames. ``realtime``: a file comes as slowly as a camera would give it.

    ``on_frame`` and ``on_sound`` are called by its threads when there is something new.
    """

    def __init__(
        self,
        address: Address,
        *,
        audio: Address | None = None,
        timeout_seconds: float = 10.0,
        lossless: bool = False,
        corrupt: Corrupt = "keep",
        reconnect: bool = True,
        realtime: bool = False,
        backoff: Callable[[], Backoff] = Backoff,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds is {timeout_seconds}: give a positive number")
        self.address, self.audio_address = address, audio
        self.lossless, self.realtime = lossless, realtime
        self.on_frame: Callable[[], None] = lambda: None
        self.on_sound: Callable[[], None] = lambda: None
        self.ring = AudioRing()
        self._timeout = max(timeout_seconds, LEAST_TIMEOUT_SECONDS)
        self._corrupt, self._reconnect, self._backoff, self._clock = corrupt, reconnect, backoff, clock
        self._live, self._counts = LiveClock(), Counts()
        self._mailbox = Mailbox(lossless, self._counts)
        self._state: State = "opening"
        self._closing = threading.Event()
        self._ready = threading.Event()
        self._threads: list[threading.Thread] = []
        self._info: LiveInfo | None = None
        self._has_audio_stream = False
        self._segment = 0
        self.error: TesoError | None = None

    # ------------------------------------------------------------------------------------ the reader's side

    @property
    def info(self) -> LiveInfo:
        """Behind :meth:`start`."""
        assert self._info is not None, "start() tells"
        return self._info

    @property
    def ended(self) -> bool:
        """Whether no frame will come, and none waits."""
        return self._state in ("ended", "failed") and self._mailbox.is_empty

    def start(self) -> None:
        """Open it and wait for its first frame.

        Raises :class:`InputNotFoundError`, :class:`MediaError` (nothing that can be read, refused, or no frame within
        the timeout).
        """
        deadline = self._clock() + self._timeout
        self._spawn("demux", self._run)
        if self.audio_address is not None:
            self._spawn("audio", self._run_audio)
        if not self._ready.wait(max(0.0, deadline - self._clock())):
            self.close(join_seconds=0.0)
            raise MediaError(
                f"{self.address.shown} gave no picture within {self._timeout:g} s: check that it runs and can be "
                "reached, or give it longer with --timeout"
            )
        if self.error is not None:
            self.close()
            raise self.error

    def take(self, timeout_seconds: float) -> LiveFrame | None:
        """The newest frame (lossless: the next); None where none comes in time."""
        return self._mailbox.take(timeout_seconds)

    def now_seconds(self) -> float:
        """Which moment of the stream is being filmed now."""
        return self._live.now_seconds(self._clock())

    def health(self) -> SourceHealth:
        """How it is."""
        counts, end = self._counts, self.ring.end_seconds
        latest = counts.latest_video_seconds
        return SourceHealth(
            state=self._state,
            frames_decoded=counts.frames_decoded,
            corrupt_packets=counts.corrupt_packets,
            corrupt_frames=counts.corrupt_frames,
            drops=dict(counts.drops),
            discontinuities=counts.discontinuities,
            format_changes=counts.format_changes,
            reconnects=counts.reconnects,
            gap_seconds=self.ring.gap_seconds,
            audio_seconds=self.ring.audio_seconds,
            has_audio=end is not None,
            av_offset_seconds=None if end is None or latest is None else end - latest,
            error=None if self.error is None else str(self.error),
        )

    def stop(self) -> None:
        """Let it end; what was decoded can still be taken."""
        self._closing.set()
        self._mailbox.close()

    def close(self, join_seconds: float = JOIN_SECONDS) -> None:
        """End its threads. One that FFmpeg holds ends by its timeout, and holds nobody up."""
        self.stop()
        deadline = time.monotonic() + join_seconds
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> LiveReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------ its threads

    def _spawn(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"teso-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _open(self, address: Address) -> InputContainer:
        if address.kind == "file":
            assert address.path is not None
            return open_container(address.path)
        # Opening and looking into it are allowed as much each by PyAV.
        wait = (self._timeout / 2, self._timeout)
        if address.kind == "pipe":
            pipe = _Pipe(sys.stdin.buffer, self._timeout, self._closing.is_set)
            return av.open(pipe, "r", options=open_options(address))
        return av.open(address.url, "r", options=open_options(address), timeout=wait)

    def _failure(self, address: Address, error: Exception) -> TesoError:
        if isinstance(error, TesoError):
            return error
        told = address.cleaned(getattr(error, "strerror", None) or str(error))
        if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
            return MediaError(f"{address.shown} refuses these credentials ({told}): correct user and password")
        if isinstance(error, av.error.HTTPNotFoundError):
            return InputNotFoundError(f"{address.shown} does not exist there ({told}): check the path")
        if isinstance(error, av.error.ExitError | TimeoutError):
            told = f"nothing came for {self._timeout:g} s"
        return MediaError(f"{address.shown} can't be read ({told}): check that it runs and can be reached")

    def _run(self) -> None:
        backoff, is_first = self._backoff(), True
        while not self._closing.is_set():
            began = self._clock()
            failure: TesoError | None = None
            is_over = is_final = False
            try:
                container = self._open(self.address)
                try:
                    is_over = self._session(container, is_first)
                finally:
                    container.close()
            except Exception as error:  # whatever it is, the one who waits for frames must learn of it
                failure = self._failure(self.address, error)
                is_final = isinstance(error, REFUSED) or self.address.kind in ("file", "pipe")
            backoff.held(self._clock() - began)
            if not self._ready.is_set():  # never had a frame
                nothing = MediaError(f"{self.address.shown} ended before it gave a picture: give a stream with video")
                return self._end("failed", failure or nothing)
            if is_over or self._closing.is_set():
                return self._end("ended")
            if is_final or not self._reconnect:
                return self._end("failed" if failure else "ended", failure)
            self._state, is_first = "reconnecting", False
            if self._closing.wait(backoff.next_seconds()):
                return self._end("ended")
            self._counts.reconnects += 1
            self._segment += 1
        return self._end("ended")

    def _end(self, state: State, error: TesoError | None = None) -> None:
        self.error, self._state = error, state
        self._mailbox.close()
        self._ready.set()
        self.on_frame()

    def _session(self, container: InputContainer, is_first: bool) -> bool:
        """Read one connection to its end; whether that is the end of all."""
        video, audio = _streams(container, self.address, wants_audio=self.audio_address is None)
        video.thread_type = "AUTO" if self.lossless else "SLICE"
        self._has_audio_stream = audio is not None
        origin, clock = origin_seconds(container), SteadyClock()
        shift = 0.0 if is_first else self.now_seconds()  # behind a break time has gone on by the clock on the wall
        is_finite = self.address.kind in ("file", "pipe") or (container.duration or 0) > 0
        is_paced = self.realtime or (is_finite and self.address.kind == "http" and not self.lossless)
        pictures = VideoDecoder(
            video, origin, shift, clock, self._live, self._mailbox, self._counts, lossless=self.lossless,
            corrupt=self._corrupt, segment=self._segment, now=self._clock, on_frame=lambda: self._on_first(video),
        )  # fmt: skip
        sounds = None
        if audio is not None:
            sounds = AudioDecoder(
                audio, origin, shift, SteadyClock(beside=clock), self.ring, self._counts, lossless=self.lossless,
                on_sound=lambda: self.on_sound(),
            )  # fmt: skip
        streams = [video] if audio is None else [video, audio]
        decoders = {video.index: pictures} | ({audio.index: sounds} if audio is not None and sounds else {})
        began, failed = self._clock(), True
        try:
            for packet in container.demux(*streams):
                if self._closing.is_set():
                    break
                if packet.pts is None and packet.dts is None:  # PyAV's own, at the end
                    continue
                arrived = self._clock()
                if is_paced and packet.dts is not None:
                    due = (seconds_of(packet.dts, packet.time_base) or 0.0) - origin
                    self._closing.wait(max(0.0, began + due - arrived))
                    arrived = self._clock()
                decoders[packet.stream.index].put(packet, arrived)
            failed = False
        finally:
            for decoder in decoders.values():
                if failed or not self._closing.is_set():
                    decoder.finish(JOIN_SECONDS if not self.lossless else 3600.0)
                else:
                    decoder.stop(JOIN_SECONDS / 2)
            self._segment = pictures.segment
        return is_finite

    def _on_first(self, video: VideoStream) -> None:
        if not self._ready.is_set():
            rate = video.average_rate or video.guessed_rate
            fps = float(rate.numerator / rate.denominator) if rate and rate.denominator else 0.0
            context = video.codec_context
            has_audio = self._has_audio_stream or self.audio_address is not None
            self._info = LiveInfo(
                self.address.kind, context.width, context.height, fps, has_audio, self._counts.delay_frames
            )
            self._ready.set()
        if self._state != "running":
            self._state = "running"
        self.on_frame()

    def _run_audio(self) -> None:
        """Sound that comes by itself; it is waited for by nobody, and asked for again as long as the video runs."""
        assert self.audio_address is not None
        backoff = self._backoff()
        while not self._closing.is_set() and self._state not in ("ended", "failed"):
            began = self._clock()
            try:
                container = self._open(self.audio_address)
                try:
                    self._audio_session(container)
                finally:
                    container.close()
                if self.audio_address.kind == "file":
                    return
            except Exception as error:
                failure = self._failure(self.audio_address, error)
                if isinstance(error, (*REFUSED, TesoError)) or not self._ready.is_set():
                    if not self._ready.is_set():
                        self._end("failed", failure)
                    return
            backoff.held(self._clock() - began)
            if self._closing.wait(backoff.next_seconds()):
                return
            self._counts.reconnects += 1

    def _audio_session(self, container: InputContainer) -> None:
        if not container.streams.audio:
            assert self.audio_address is not None
            raise MediaError(f"{self.audio_address.shown} has no sound: give a stream with an audio track")
        stream = container.streams.audio[0]
        self._ready.wait(self._timeout)
        decoder: AudioDecoder | None = None
        began = self._clock()
        for packet in container.demux(stream):
            if self._closing.is_set() or self._state in ("ended", "failed"):
                break
            stamp = seconds_of(packet.pts, packet.time_base)
            if stamp is None:
                continue
            if decoder is None:
                origin, now = stamp, max(self.now_seconds(), self.ring.end_seconds or 0.0)
                decoder = AudioDecoder(
                    stream, origin, now, SteadyClock(), self.ring, self._counts, lossless=self.lossless,
                    on_sound=lambda: self.on_sound(),
                )  # fmt: skip
            if self.realtime:
                self._closing.wait(max(0.0, began + stamp - origin - self._clock()))
            decoder.put(packet, self._clock())
        if decoder is not None:
            decoder.finish(JOIN_SECONDS)


def _streams(container: InputContainer, address: Address, wants_audio: bool) -> tuple[VideoStream, AudioStream | None]:
    pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not pictures:
        kind = "only sound" if container.streams.audio else "neither picture nor sound"
        raise MediaError(f"{address.shown} holds {kind}: give a stream with a video track")
    return pictures[0], container.streams.audio[0] if wants_audio and container.streams.audio else None
