"""Reading a stream as it arrives: one thread takes packets, each decoder has a thread, and none delays another.

Times are seconds on one clock from the stream's beginning, by PTS. If the stamps leap, and after a reconnect, that
clock continues, and sound and picture leap together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from teso_deploy.errors import MediaError, TesoError
from teso_deploy.media.address import Address
from teso_deploy.media.backoff import Backoff
from teso_deploy.media.clock import LiveClock, Pace, find_fastest
from teso_deploy.media.connecting import REFUSED, choose_sound, choose_tracks, explain_failure, open_stream
from teso_deploy.media.container import SteadyClock, convert_to_seconds, get_frame_seconds, get_origin_seconds
from teso_deploy.media.decoding import AudioDecoder, Corrupt, DecoderThread, VideoDecoder
from teso_deploy.media.mailbox import Counts, LiveFrame, Mailbox
from teso_deploy.media.mono import SoundCounts
from teso_deploy.media.ring import AudioRing
from teso_deploy.media.source_health import LiveInfo, SourceHealth, State

#: How long to wait for threads at the end.
JOIN_SECONDS = 2.0
#: A separate sound source is read for this long before its time of recording is known.
SETTLE_SECONDS = 0.5
#: If pictures wait for their reader, a separate sound source is read at most this far ahead of the last picture. So the
#: ring still holds the picture's sound.
AHEAD_OF_PICTURE_SECONDS = 10.0
#: The lowest timeout in seconds. With less, a source that merely pauses would count as broken.
LEAST_TIMEOUT_SECONDS = 0.2


def start_all(readers: Sequence[LiveReader]) -> None:
    """Open all readers at once, because each may take long. Raises the first error of :meth:`LiveReader.start`."""
    with ThreadPoolExecutor(max(1, len(readers)), "teso-open") as pool:
        for opened in [pool.submit(reader.start) for reader in readers]:
            opened.result()


class LiveReader:
    """A stream as frames and sound; a context manager.

    Args:
        address: The stream.
        audio: A separate source of the sound. Its clock is tied to the video's by the arrival times of both, or, if
            both are files, by their beginnings. Default: the sound of the stream.
        timeout_seconds: Limit for opening, including the first frame, and for each later pause. Default: 10 s.
        lossless: Give every frame in order, and let the stream wait for its reader. Default: only the newest frame.
        corrupt: What to do with damaged frames.
        reconnect: Whether to reconnect after a failure. Default: True.
        realtime: Read a file at the pace of a camera. Default: False.
        video_track: Number among the video tracks, from 0. Default: the track that players choose.
        audio_track: Number among the audio tracks, of ``audio`` if that is given. Default: as above.
        backoff: Makes the waits between attempts.
        clock: The monotonic clock.

    ``on_frame`` and ``on_sound`` are called by its threads after a new frame or new sound.
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
        video_track: int | None = None,
        audio_track: int | None = None,
        backoff: Callable[[], Backoff] = Backoff,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds is {timeout_seconds}: give a positive number")
        self.address, self.audio_address = address, audio
        self.lossless, self.realtime = lossless, realtime
        self._video_track, self._audio_track = video_track, audio_track
        self.on_frame: Callable[[], None] = lambda: None
        self.on_sound: Callable[[], None] = lambda: None
        self.ring = AudioRing()
        self._timeout = max(timeout_seconds, LEAST_TIMEOUT_SECONDS)
        self._corrupt, self._reconnect, self._backoff, self._clock = corrupt, reconnect, backoff, clock
        self._live, self._counts, self._sound_counts = LiveClock(), Counts(), SoundCounts()
        self._mailbox = Mailbox(lossless, self._counts)
        self._state: State = "opening"
        self._closing = threading.Event()
        self._ready = threading.Event()
        self._threads: list[threading.Thread] = []
        self._info: LiveInfo | None = None
        self._has_audio_stream = self._has_unknown_sound = False
        self._segment = 0
        self._latest_frame: float | None = None
        self._changing = threading.Lock()
        self._audio_error: TesoError | None = None
        self.error: TesoError | None = None

    # ------------------------------------------------------------------------------------ the reader's side

    @property
    def info(self) -> LiveInfo:
        """The properties of the source. Available after :meth:`start`."""
        assert self._info is not None, "start() tells"
        return self._info

    @property
    def ended(self) -> bool:
        """Whether no frame is waiting and none will follow."""
        return self._state in ("ended", "failed") and self._mailbox.is_empty

    def start(self) -> None:
        """Open the stream and wait for its first frame.

        Raises:
            InputNotFoundError: The source does not exist.
            MediaError: It can't be read, refuses access, or gives no frame within the timeout.
        """
        deadline = self._clock() + self._timeout
        self._spawn("demux", self._run)
        if self.audio_address is not None:
            self._spawn("audio", self._run_audio)
        if not self._ready.wait(max(0.0, deadline - self._clock())):
            late = MediaError(
                f"{self.address.shown} gave no picture within {self._timeout:g} s: check that it runs and can be "
                "reached, or give it longer with --timeout"
            )
            self._end("failed", late)
            self.close(join_seconds=0.0)
            raise late
        if self.error is not None:
            self.close()
            raise self.error

    def take(self, timeout_seconds: float) -> LiveFrame | None:
        """Return the newest frame (lossless: the next one), or None if none arrives in time."""
        return self._mailbox.take(timeout_seconds)

    def now_seconds(self) -> float:
        """Return the stream time of the moment that is being filmed now."""
        return self._live.now_seconds(self._clock())

    def health(self) -> SourceHealth:
        """Return the state and counts of the source."""
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
            delay_frames=counts.delay_frames,
            audio_error=None if self._audio_error is None else str(self._audio_error),
            error=None if self.error is None else str(self.error),
            audio_note=self._describe_sound(),
            invalid_samples=self._sound_counts.invalid_samples,
        )

    def _describe_sound(self) -> str | None:
        if self._has_unknown_sound:
            return "its sound has a codec that FFmpeg can't decode here"
        return self._sound_counts.describe()

    def stop(self) -> None:
        """Stop reading. Frames that were decoded can still be taken."""
        self._closing.set()
        self._mailbox.close()

    def close(self, join_seconds: float = JOIN_SECONDS) -> None:
        """End the threads. A thread that is blocked in FFmpeg ends at its timeout and is not waited for."""
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

    def _run(self) -> None:
        backoff, is_first = self._backoff(), True
        while not self._closing.is_set():
            began = opened = self._clock()
            failure: TesoError | None = None
            is_over = is_final = False
            self._latest_frame = None
            try:
                container = open_stream(self.address, self._timeout, self._closing.is_set)
                opened = self._clock()
                try:
                    # During a break, stream time continued with real time.
                    shift = 0.0 if is_first else self._live.now_seconds(began)
                    is_over = self._read_session(container, shift)
                finally:
                    container.close()
            except Exception as error:  # of any kind: the thread that waits for frames must learn of it
                failure = explain_failure(
                    self.address, error, timeout_seconds=self._timeout, waited_seconds=self._clock() - began
                )
                is_final = isinstance(error, REFUSED) or self.address.kind in ("file", "pipe")
            backoff.note_connection((self._latest_frame or opened) - opened)
            if not self._ready.is_set():  # there was never a frame
                nothing = MediaError(f"{self.address.shown} ended before it gave a picture: give a stream with video")
                return self._end("failed", failure or nothing)
            if is_over or self._closing.is_set():
                return self._end("ended")
            if is_final or not self._reconnect:
                return self._end("failed" if failure else "ended", failure)
            self._become("reconnecting")
            is_first = False
            if self._closing.wait(backoff.next_seconds()):
                return self._end("ended")
            self._counts.reconnects += 1
            self._segment += 1
        return self._end("ended")

    def _become(self, state: State, error: TesoError | None = None) -> None:
        """Set the state. An end is final, even if a decoder that was given up still finds a frame."""
        with self._changing:
            if self._state not in ("ended", "failed"):
                self.error, self._state = error, state

    def _end(self, state: State, error: TesoError | None = None) -> None:
        self._become(state, error)
        self._mailbox.close()
        self._ready.set()
        self.on_frame()

    def _read_session(self, container: InputContainer, shift: float) -> bool:
        """Read one connection to its end; return whether all is over. Its origin is ``shift`` on our clock."""
        video, audios = choose_tracks(
            container,
            self.address,
            wants_audio=self.audio_address is None,
            video_track=self._video_track,
            audio_track=self._audio_track,
        )
        video.thread_type = "AUTO" if self.lossless else "SLICE"
        self._has_audio_stream = bool(audios)
        self._has_unknown_sound = self.audio_address is None and bool(container.streams.audio) and not audios
        origin, clock = get_origin_seconds(container), SteadyClock()
        is_finite = self.address.kind in ("file", "pipe") or (container.duration or 0) > 0
        is_paced = self.realtime or (is_finite and self.address.kind == "http" and not self.lossless)
        pictures = VideoDecoder(
            video,
            origin_seconds=origin,
            shift_seconds=shift,
            clock=clock,
            live=self._live,
            mailbox=self._mailbox,
            counts=self._counts,
            lossless=self.lossless,
            corrupt=self._corrupt,
            segment=self._segment,
            now=self._clock,
            on_frame=lambda: self._on_picture(video, pictures),
        )
        decoders: dict[int, DecoderThread] = {video.index: pictures}
        if audios:
            sounds = self._decode_sounds(audios, origin=origin, shift=shift, clock=SteadyClock(beside=clock))
            decoders |= {audio.index: sounds for audio in audios}
        failed = True
        try:
            for packet in self._read_packets(container, [video, *audios], Pace() if is_paced else None):
                decoders[packet.stream.index].put(packet, self._clock())
            failed = False
        finally:
            for decoder in dict.fromkeys(decoders.values()):
                if failed or not self._closing.is_set():
                    decoder.finish(JOIN_SECONDS if not self.lossless else 3600.0)
                else:
                    decoder.stop(JOIN_SECONDS / 2)
            self._segment = pictures.segment
        for decoder in decoders.values():
            decoder.check()
        return is_finite

    def _read_packets(
        self, container: InputContainer, streams: Sequence[Any], pace: Pace | None
    ) -> Iterator[Packet[Any]]:
        """Yield packets until there are no more or this is closed. With a pace, each one when it is due."""
        packets = container.demux(*streams)
        while not self._closing.is_set():
            try:
                packet = next(packets, None)
            except IndexError:  # see BROKEN_OFF
                self._counts.corrupt_packets += 1
                return
            if packet is None:
                return
            if not packet.size:  # added by PyAV at the end
                continue
            if pace is not None:
                stamp, duration = (convert_to_seconds(time, packet.time_base) for time in (packet.dts, packet.duration))
                duration = duration or get_frame_seconds(packet.stream)
                self._closing.wait(
                    pace.wait_seconds(packet.stream.index, stamp, duration_seconds=duration, now_seconds=self._clock())
                )
            yield packet

    def _on_picture(self, video: VideoStream, pictures: VideoDecoder) -> None:
        self._latest_frame = self._clock()
        if not self._ready.is_set():
            step = get_frame_seconds(video)
            has_audio = self._has_audio_stream or self.audio_address is not None
            self._info = LiveInfo(
                self.address.kind, *pictures.size, 1 / step if step else 0.0, has_audio, self._counts.delay_frames
            )
            self._ready.set()
        self._become("running")
        self.on_frame()

    def _run_audio(self) -> None:
        """Read a separate sound source. No thread waits for it, and it is reopened while the video runs."""
        assert self.audio_address is not None
        backoff = self._backoff()
        while not self._closing.is_set() and self._state not in ("ended", "failed"):
            before = self.ring.audio_seconds
            try:
                container = open_stream(self.audio_address, self._timeout, self._closing.is_set)
                try:
                    self._read_audio_session(container, self.audio_address)
                finally:
                    container.close()
                if self.audio_address.kind in ("file", "pipe"):
                    return
            except Exception as error:
                failure = explain_failure(self.audio_address, error, timeout_seconds=self._timeout)
                if isinstance(error, (*REFUSED, TesoError)) or not self._ready.is_set():
                    if not self._ready.is_set():
                        self._end("failed", failure)
                    self._audio_error = failure
                    return
            backoff.note_connection(self.ring.audio_seconds - before)
            if self._closing.wait(backoff.next_seconds()):
                return
            self._counts.reconnects += 1

    def _read_audio_session(self, container: InputContainer, address: Address) -> None:
        streams, is_file = choose_sound(container, address, self._audio_track), address.kind == "file"
        self._ready.wait(self._timeout)
        decoder: AudioDecoder | None = None
        if is_file and self.address.kind == "file":
            decoder = self._decode_sounds(streams, origin=get_origin_seconds(container), shift=0.0, clock=SteadyClock())
        held: list[tuple[Packet[Any], float]] = []
        ways: list[float] = []

        def settle() -> AudioDecoder:
            found = self._decode_sounds(
                streams, origin=0.0, shift=self._live.now_seconds(find_fastest(ways)), clock=SteadyClock()
            )
            for packet, arrived in held:
                found.put(packet, arrived)
            return found

        for packet in self._read_packets(container, streams, Pace() if is_file and not self.lossless else None):
            stamp, arrived = convert_to_seconds(packet.pts, packet.time_base), self._clock()
            if self._state in ("ended", "failed"):
                break
            if decoder is not None:
                self._wait_for_picture()
                decoder.put(packet, arrived)
            elif stamp is not None:
                held.append((packet, arrived))
                ways.append(arrived - stamp)
                if arrived - held[0][1] >= SETTLE_SECONDS:
                    decoder = settle()
        if decoder is None and held:
            decoder = settle()
        if decoder is not None:
            decoder.finish(JOIN_SECONDS)
            decoder.check()

    def _wait_for_picture(self) -> None:
        """Let a separate sound source wait for the picture, if the picture waits for its reader."""
        while self.lossless and not self._closing.is_set() and self._state not in ("ended", "failed"):
            if (self.ring.end_seconds or 0.0) <= (self._counts.latest_video_seconds or 0.0) + AHEAD_OF_PICTURE_SECONDS:
                return
            self._closing.wait(0.02)

    def _decode_sounds(
        self, streams: Sequence[AudioStream], *, origin: float, shift: float, clock: SteadyClock
    ) -> AudioDecoder:
        return AudioDecoder(
            streams,
            origin_seconds=origin,
            shift_seconds=shift,
            clock=clock,
            ring=self.ring,
            counts=self._counts,
            sound_counts=self._sound_counts,
            lossless=self.lossless,
            on_sound=lambda: self.on_sound(),
        )
