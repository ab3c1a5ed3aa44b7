"""The decoders of a live stream: one thread each, packets in, frames and sound out, whatever happens to the bytes."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import av
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.stream import VideoStream

from teso_deploy.media.audio import Mono16k
from teso_deploy.media.clock import LiveClock
from teso_deploy.media.container import SteadyClock, seconds_of
from teso_deploy.media.reader import upright
from teso_deploy.media.ring import AudioRing
from teso_deploy.types import Frame

Corrupt = Literal["keep", "drop"]
#: Packets that wait for a decoder: a few seconds. Beyond that a live stream has lost its decoder, not its patience.
MOST_PACKETS = 256
#: Decoded frames that wait where none may be lost.
MOST_FRAMES = 4


class LiveFrame:
    """A decoded frame, turned into a picture when it is asked for: one that comes too late costs nothing.

    ``arrived``, ``decoded``: monotonic seconds at which its packet came, and it was decoded.
    """

    def __init__(
        self, picture: av.VideoFrame, pts_seconds: float, index: int, segment: int, arrived: float, decoded: float
    ) -> None:
        self._picture: av.VideoFrame | None = picture
        self.pts_seconds, self.index, self.segment = pts_seconds, index, segment
        self.arrived, self.decoded = arrived, decoded
        self.is_corrupt = bool(picture.is_corrupt)

    @cached_property
    def frame(self) -> Frame:
        """The picture, upright, RGB."""
        assert self._picture is not None
        image = upright(np.asarray(self._picture.to_ndarray(format="rgb24"), np.uint8), self._picture.rotation)
        self._picture = None
        return Frame(image, self.pts_seconds, self.index, self.segment, self.is_corrupt)


@dataclass
class Counts:
    """What has happened to a source since its beginning. Written by its threads, each its own fields."""

    frames_decoded: int = 0
    corrupt_packets: int = 0
    corrupt_frames: int = 0
    discontinuities: int = 0
    format_changes: int = 0
    reconnects: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    #: Packets that the video's decoder holds back before it gives a frame.
    delay_frames: int = 0
    latest_video_seconds: float | None = None


class Mailbox:
    """Decoded frames on their way: of a live stream the newest alone, else every one."""

    def __init__(self, lossless: bool, counts: Counts) -> None:
        self._frames: deque[LiveFrame] = deque()
        self._lossless, self._counts = lossless, counts
        self._changed = threading.Condition()
        self._closed = False

    def put(self, frame: LiveFrame) -> None:
        """Leave a frame; waits for room where none may be lost."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: self._closed or len(self._frames) < MOST_FRAMES)
            else:
                self._counts.drops["superseded"] += len(self._frames)
                self._frames.clear()
            if not self._closed:
                self._frames.append(frame)
            self._changed.notify_all()

    def take(self, timeout_seconds: float) -> LiveFrame | None:
        """The next frame; None where none comes in time, or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._frames, timeout_seconds)
            frame = self._frames.popleft() if self._frames else None
            self._changed.notify_all()
            return frame

    @property
    def is_empty(self) -> bool:
        """Whether no frame waits."""
        return not self._frames

    def close(self) -> None:
        """Nobody waits any more; what is there can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class DecoderThread:
    """Decodes the packets of one stream in a thread of its own.

    ``put`` never waits for a live stream: what a decoder can't keep up with is dropped up to the next key frame, and
    counted as "overflow".
    """

    def __init__(self, name: str, lossless: bool, counts: Counts) -> None:
        self._lossless, self._counts = lossless, counts
        self._packets: deque[tuple[Packet[Any], float] | None] = deque()
        self._changed = threading.Condition()
        self._needs_key = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"teso-{name}", daemon=True)
        self._thread.start()

    def put(self, packet: Packet[Any], arrived: float) -> None:
        """A packet that came at a monotonic time."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: self._stopped or len(self._packets) < MOST_PACKETS)
            elif len(self._packets) >= MOST_PACKETS:
                self._counts.drops["overflow"] += len(self._packets)
                self._packets.clear()
                self._needs_key = True
            if self._needs_key and not packet.is_keyframe:
                self._counts.drops["overflow"] += 1
                return
            self._needs_key = False
            self._packets.append((packet, arrived))
            self._changed.notify_all()

    def finish(self, timeout_seconds: float) -> None:
        """No packet comes any more: decode what is there. In time, or without it."""
        with self._changed:
            self._packets.append(None)
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        self.stop()

    def stop(self, timeout_seconds: float = 0.0) -> None:
        """Let go of everything, and wait so long for the thread."""
        with self._changed:
            self._stopped = True
            self._packets.clear()
            self._packets.append(None)
            self._changed.notify_all()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._packets)
                item = self._packets.popleft()
                self._changed.notify_all()
            if item is None:
                if not self._stopped:
                    self._end()
                return
            try:
                self._decode(*item)
            except (av.error.FFmpegError, ValueError):  # ValueError: a frame that PyAV can't make anything of
                self._counts.corrupt_packets += 1

    def _decode(self, packet: Packet[Any], arrived: float) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        """Take out what the decoder still holds."""


class VideoDecoder(DecoderThread):
    """See :class:`DecoderThread`. ``shift_seconds``: where the origin of its stamps lies on the stream's clock."""

    def __init__(
        self,
        stream: VideoStream,
        origin_seconds: float,
        shift_seconds: float,
        clock: SteadyClock,
        live: LiveClock,
        mailbox: Mailbox,
        counts: Counts,
        *,
        lossless: bool,
        corrupt: Corrupt,
        segment: int,
        now: Callable[[], float],
        on_frame: Callable[[], None],
    ) -> None:
        self._stream, self._origin, self._shift = stream, origin_seconds, shift_seconds
        self._clock, self._live, self._mailbox = clock, live, mailbox
        self._corrupt, self._now, self._on_frame = corrupt, now, on_frame
        rate = stream.average_rate or stream.guessed_rate
        self._step = float(rate.denominator / rate.numerator) if rate and rate.numerator else 1 / 25
        self.segment = segment
        self._last: float | None = None
        self._shape: tuple[int, int, int] | None = None
        self._arrivals: dict[int, float] = {}
        self._fed = 0
        super().__init__("video", lossless, counts)

    def _decode(self, packet: Packet[Any], arrived: float) -> None:
        self._counts.corrupt_packets += bool(packet.is_corrupt)
        if packet.pts is not None:
            self._arrivals[packet.pts] = arrived
            if len(self._arrivals) > MOST_PACKETS:
                del self._arrivals[next(iter(self._arrivals))]
        self._fed += 1
        for picture in self._stream.codec_context.decode(packet):
            self._take(picture, arrived)

    def _end(self) -> None:
        try:
            for picture in self._stream.codec_context.decode(None):
                self._take(picture, self._now())
        except av.error.FFmpegError:  # flushed already
            return

    def _take(self, picture: av.VideoFrame, arrived: float) -> None:
        counts, decoded = self._counts, self._now()
        if self._last is None:
            counts.delay_frames = self._fed - 1
        if picture.pts is not None:
            arrived = self._arrivals.pop(picture.pts, arrived)
        stamp = seconds_of(picture.pts, picture.time_base)
        expected = self._shift if self._last is None else self._last + self._step
        pts = expected
        if stamp is not None:
            pts, leapt = self._clock.place(stamp - self._origin + self._shift, expected)
            if leapt and self._last is not None:
                self.segment += 1
                counts.discontinuities += 1
        self._last = pts
        index = counts.frames_decoded
        counts.frames_decoded += 1
        counts.corrupt_frames += bool(picture.is_corrupt)
        shape = picture.width, picture.height, round(picture.rotation)
        counts.format_changes += self._shape is not None and shape != self._shape
        self._shape = shape
        counts.latest_video_seconds = pts
        self._live.observe(pts, arrived)
        if picture.is_corrupt and self._corrupt == "drop":
            counts.drops["corrupt"] += 1
            return
        self._mailbox.put(LiveFrame(picture, pts, index, self.segment, arrived, decoded))
        self._on_frame()


class AudioDecoder(DecoderThread):
    """See :class:`DecoderThread`: what it hears goes to a ring. ``live``: observed too, where there is no video."""

    def __init__(
        self,
        stream: AudioStream,
        origin_seconds: float,
        shift_seconds: float,
        clock: SteadyClock,
        ring: AudioRing,
        counts: Counts,
        *,
        lossless: bool,
        on_sound: Callable[[], None],
    ) -> None:
        self._stream, self._origin, self._shift, self._ring = stream, origin_seconds, shift_seconds, ring
        self._mono, self._on_sound = Mono16k(clock), on_sound
        self._format: tuple[str, str, int] | None = None
        super().__init__("audio", lossless, counts)

    def _decode(self, packet: Packet[Any], arrived: float) -> None:
        self._counts.corrupt_packets += bool(packet.is_corrupt)
        for frame in self._stream.codec_context.decode(packet):
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            self._counts.format_changes += self._format is not None and kind != self._format
            self._format = kind
            stamp = seconds_of(frame.pts, frame.time_base)
            self._mono.add(frame, None if stamp is None else stamp - self._origin + self._shift)
        self._pass_on()

    def _end(self) -> None:
        self._mono.flush()
        self._pass_on()

    def _pass_on(self) -> None:
        pieces = self._mono.drain()
        for at_seconds, samples in pieces:
            self._ring.add(at_seconds, samples)
        if pieces:
            self._on_sound()
