"""The decoder threads of a live stream: packets in, frames and sound out, whatever happens to the bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.stream import VideoStream

from teso_deploy.media.clock import LiveClock
from teso_deploy.media.container import SteadyClock, convert_to_seconds, get_frame_seconds
from teso_deploy.media.mailbox import Counts, LiveFrame, Mailbox
from teso_deploy.media.mono import Mono16k, SoundCounts
from teso_deploy.media.picture import Look, Presenter
from teso_deploy.media.ring import AudioRing

Corrupt = Literal["keep", "drop"]
#: The number of packets that may wait for a decoder, a few seconds. If more wait, the decoder of a live stream has
#: failed.
MOST_PACKETS = 256
#: If no packet may be lost, a decoder holds back this much of its stream. If it held back less, sound that was sent
#: slightly after its picture could not arrive in time. If more, the ring would no longer hold the picture's sound.
LOSSLESS_SECONDS = 2.0
#: At least this many packets are held back, however long they last.
LEAST_LOSSLESS_PACKETS = 8
#: An audio track without output is replaced by the next one after this many packets of another track, four seconds
#: of AAC. Each packet of the track without output that can't be decoded counts as ``FAILED_PACKETS`` of these.
MOST_MISSED_PACKETS, FAILED_PACKETS = 192, 12


class DecoderThread:
    """Decodes the packets of one stream in a separate thread.

    For a live stream, ``put`` never waits: packets that exceed the decoder's speed are dropped up to the next key
    frame, and counted as "overflow".
    """

    def __init__(self, name: str, lossless: bool, counts: Counts) -> None:
        self._lossless, self._counts = lossless, counts
        self._packets: deque[tuple[Packet[Any], float] | None] = deque()
        self._changed = threading.Condition()
        self._needs_key = False
        self._stopped = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"teso-{name}", daemon=True)
        self._thread.start()

    def put(self, packet: Packet[Any], arrived: float) -> None:
        """Add a packet that arrived at a monotonic time. Raises the error that ended the thread."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: self._stopped or not self._is_full())
            elif len(self._packets) >= MOST_PACKETS:
                self._counts.drops["overflow"] += len(self._packets)
                self._packets.clear()
                self._needs_key = True
            self.check()
            if self._needs_key and not packet.is_keyframe:
                self._counts.drops["overflow"] += 1
                return
            self._needs_key = False
            self._packets.append((packet, arrived))
            self._changed.notify_all()

    def _is_full(self) -> bool:
        waiting = [item[0] for item in (self._packets[0], self._packets[-1]) if item] if self._packets else []
        if len(self._packets) < LEAST_LOSSLESS_PACKETS or len(waiting) < 2:
            return False
        if len(self._packets) >= MOST_PACKETS:
            return True
        first, last = (convert_to_seconds(packet.dts, packet.time_base) for packet in waiting)
        return first is None or last is None or not 0 <= last - first < LOSSLESS_SECONDS

    def finish(self, timeout_seconds: float) -> None:
        """Decode the remaining packets; no more will follow. What is not done in time counts as "overflow"."""
        with self._changed:
            self._packets.append(None)
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        with self._changed:
            self._counts.drops["overflow"] += sum(item is not None for item in self._packets)
        self.stop()

    def check(self) -> None:
        """Raise the error that ended the thread, if any."""
        if self._failure is not None:
            raise self._failure

    def stop(self, timeout_seconds: float = 0.0) -> None:
        """Drop everything, and wait this long for the thread."""
        with self._changed:
            self._stopped = True
            self._packets.clear()
            self._packets.append(None)
            self._changed.notify_all()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            self._decode_all()
        except Exception as error:  # such as an error of on_frame: the thread that feeds this one must learn of it
            with self._changed:
                self._failure, self._stopped = error, True
                self._packets.clear()
                self._changed.notify_all()

    def _decode_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._packets)
                item = self._packets.popleft()
                self._changed.notify_all()
            if item is None and self._stopped:
                return
            packet, arrived = item or (None, None)
            frames: Sequence[Any] = ()
            try:
                frames = self._decode(packet, arrived)
            except (av.error.FFmpegError, ValueError):  # ValueError: a frame that PyAV can't interpret
                self._counts.corrupt_packets += packet is not None
            self._pass_on(frames, arrived)
            if item is None:
                return

    def _decode(self, packet: Packet[Any] | None, arrived: float | None) -> Sequence[Any]:
        """Return the frames of a packet, or for None those that the decoder still holds."""
        raise NotImplementedError

    def _pass_on(self, frames: Sequence[Any], arrived: float | None) -> None:
        raise NotImplementedError


class VideoDecoder(DecoderThread):
    """Decodes pictures; see :class:`DecoderThread`.

    ``shift_seconds`` is the position of the stamps' origin on the stream's clock. ``size`` is the width and height of
    the last picture as it is shown. Frames without stamps get their arrival time, or, where the stream waits for its
    reader, follow each other at the frame rate.
    """

    def __init__(
        self,
        stream: VideoStream,
        *,
        origin_seconds: float,
        shift_seconds: float,
        clock: SteadyClock,
        live: LiveClock,
        mailbox: Mailbox,
        counts: Counts,
        lossless: bool,
        corrupt: Corrupt,
        segment: int,
        now: Callable[[], float],
        on_frame: Callable[[], None],
    ) -> None:
        self._stream, self._origin, self._shift = stream, origin_seconds, shift_seconds
        self._clock, self._live, self._mailbox = clock, live, mailbox
        self._corrupt, self._now, self._on_frame = corrupt, now, on_frame
        self._step = get_frame_seconds(stream) or 1 / 25
        self.segment = segment
        self._last: float | None = None
        self._shape: tuple[int, int, Look] | None = None
        self._presenter = Presenter(stream)
        self._arrivals: dict[int, float] = {}
        self._began: float | None = None
        self._fed = 0
        super().__init__("video", lossless, counts)

    def _decode(self, packet: Packet[Any] | None, arrived: float | None) -> Sequence[av.VideoFrame]:
        if packet is not None:
            self._counts.corrupt_packets += bool(packet.is_corrupt)
            self._fed += 1
            if packet.pts is not None and arrived is not None:
                self._arrivals[packet.pts] = arrived
                if len(self._arrivals) > MOST_PACKETS:
                    del self._arrivals[next(iter(self._arrivals))]
        return self._stream.codec_context.decode(packet)

    def _pass_on(self, frames: Sequence[Any], arrived: float | None) -> None:
        for picture in frames:
            if self._stopped:  # its connection was given up, and another one may have continued
                return
            self._take(picture, self._now() if arrived is None else arrived)

    def _take(self, picture: av.VideoFrame, arrived: float) -> None:
        counts, decoded = self._counts, self._now()
        if self._last is None:
            counts.delay_frames = self._fed - 1
        if picture.pts is not None:
            arrived = self._arrivals.pop(picture.pts, arrived)
        stamp = convert_to_seconds(picture.pts, picture.time_base)
        expected = self._shift if self._last is None else self._last + self._step
        pts = expected
        if stamp is None:
            if not self._lossless:  # only the arrival times show the frame rate
                self._began = arrived if self._began is None else self._began
                pts = max(arrived - self._began + self._shift, self._last or self._shift)
        else:
            pts, leapt = self._clock.place(stamp - self._origin + self._shift, expected)
            if leapt and self._last is not None:
                self.segment += 1
                counts.discontinuities += 1
        self._last = pts
        index = counts.frames_decoded
        counts.frames_decoded += 1
        counts.corrupt_frames += bool(picture.is_corrupt)
        look = self._presenter.look_at(picture)
        shape = picture.width, picture.height, look
        counts.format_changes += self._shape is not None and shape != self._shape
        self._shape, self.size = shape, look.size
        counts.latest_video_seconds = pts
        self._live.observe(pts, arrived)
        if picture.is_corrupt and self._corrupt == "drop":
            counts.drops["corrupt"] += 1
            return
        self._mailbox.put(
            LiveFrame(
                picture, look, pts_seconds=pts, index=index, segment=self.segment, arrived=arrived, decoded=decoded
            )
        )
        self._on_frame()


class AudioDecoder(DecoderThread):
    """Decodes the sound of a stream into a ring. Faults of the sound never stop the picture.

    Args:
        streams: Audio tracks, best first. Until a track has given sound, the next one replaces it if it can't be
            decoded, or if it gives nothing while other tracks have packets.
        origin_seconds: Zero of the stream's stamps.
        shift_seconds: Position of this zero on the reader's clock.
        clock: The clock of the sound.
        ring: Receives the sound.
        counts: The counts of the source.
        sound_counts: The counts of its sound.
        lossless: Whether the packets wait for this decoder.
        on_sound: Called after new sound.
    """

    def __init__(
        self,
        streams: Sequence[AudioStream],
        *,
        origin_seconds: float,
        shift_seconds: float,
        clock: SteadyClock,
        ring: AudioRing,
        counts: Counts,
        sound_counts: SoundCounts,
        lossless: bool,
        on_sound: Callable[[], None],
    ) -> None:
        self._streams, self._origin, self._shift, self._ring = list(streams), origin_seconds, shift_seconds, ring
        self._sound_counts = sound_counts
        self._mono, self._on_sound = Mono16k(clock, self._picture_seconds, sound_counts), on_sound
        self._format: tuple[str, str, int] | None = None
        self._was_heard, self._missed = False, 0
        super().__init__("audio", lossless, counts)

    def put(self, packet: Packet[Any], arrived: float) -> None:
        """Add a packet, see :meth:`DecoderThread.put`. Once a track has given sound, others are dropped."""
        if not self._was_heard or packet.stream.index == self._streams[0].index:
            super().put(packet, arrived)

    def _picture_seconds(self) -> float:
        return max(self._shift, self._counts.latest_video_seconds or self._shift)

    def _decode(self, packet: Packet[Any] | None, arrived: float | None) -> Sequence[AudioFrame]:
        current = self._streams[0]
        if packet is not None and packet.stream.index != current.index:
            self._miss(1)
            return ()
        frames: list[AudioFrame] = []
        try:
            self._counts.corrupt_packets += packet is not None and bool(packet.is_corrupt)
            frames = current.codec_context.decode(packet)
            for frame in frames:
                self._add(frame)
        except Exception as error:  # PyAV raises several kinds; none of them may end the picture
            if packet is not None:
                self._counts.corrupt_packets += 1
                self._sound_counts.count_damage(error)
        if frames:
            self._was_heard = True
        else:
            self._miss(FAILED_PACKETS)
        return frames

    def _add(self, frame: AudioFrame) -> None:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        self._counts.format_changes += self._format is not None and kind != self._format
        self._format = kind
        stamp = convert_to_seconds(frame.pts, frame.time_base)
        self._mono.add(frame, None if stamp is None else stamp - self._origin + self._shift)

    def _miss(self, count: int) -> None:
        """Switch to the next track after enough packets without output."""
        self._missed += count
        if not self._was_heard and len(self._streams) > 1 and self._missed >= MOST_MISSED_PACKETS:
            self._streams.append(self._streams.pop(0))
            self._missed = 0

    def _pass_on(self, frames: Sequence[Any], arrived: float | None) -> None:
        if arrived is None:
            self._mono.flush()
        pieces = self._mono.drain()
        for piece in pieces:
            self._ring.add(piece.start_seconds, piece.samples)
        if pieces:
            self._on_sound()
