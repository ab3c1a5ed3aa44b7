"""Reading the frames of a video file, upright, with their time on the file's clock."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

from teso_deploy.errors import DeviceError, MediaError
from teso_deploy.media import nvdec
from teso_deploy.media.container import (
    BROKEN_OFF,
    MOST_PIXELS,
    SteadyClock,
    convert_to_seconds,
    get_announced_end,
    get_origin_seconds,
    open_container,
)
from teso_deploy.media.picture import Presenter, to_rgb
from teso_deploy.media.tracks import choose_video_track, list_audio_candidates
from teso_deploy.types import Frame

#: Both values decode on the GPU if possible, otherwise in software. They differ in how the caller treats
#: ``decoder_note``: a note is a warning for "nvdec", and information for "auto".
Hardware = Literal["auto", "nvdec"]
#: A file that ends this long before its announced end was cut off.
CUT_OFF_SECONDS, CUT_OFF_SHARE = 1.0, 0.05
#: A last picture is shown for at most this long; a longer duration is a mistake in a header.
MOST_HELD_SECONDS = 6 * 3600.0
#: These formats have no header with a duration; FFmpeg guesses it from time stamps, damaged ones included.
ESTIMATED_FORMATS = ("mpegts", "mpeg")


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """Properties that a file announces.

    Attributes:
        path: The file.
        width: Width of the picture as it is shown: upright, in square pixels.
        height: Height of the same picture.
        fps: Mean frame rate; 0 if unknown.
        duration_seconds: 0 if unknown.
        has_audio: Whether it has an audio track.
    """

    path: Path
    width: int
    height: int
    fps: float
    duration_seconds: float
    has_audio: bool


class VideoReader:
    """Iterates over the frames of a file; a context manager.

    Damage is counted in ``corrupt_packets`` and ``corrupt_frames``. If the clock leaps, a new ``segment`` starts,
    whose times continue where the previous one ended. ``end_seconds`` is the end of the last decoded frame.
    ``decoder`` is "nvdec" or "software", and ``decoder_note`` says why it is not the requested one, else None.
    Both give the same frames.

    Args:
        path: The file.
        every_nth: Yield every n-th frame. Default: 1.
        fps: Yield at most this many frames per second. Default: all.
        hardware: Decode on an NVIDIA GPU if possible. Default: in software.
        video_track: Number among the video tracks, from 0. Default: the track that players choose.

    Raises:
        InputNotFoundError: The file does not exist.
        MediaError: The file has no video that can be decoded, or ends long before its announced end.
        DeviceError: The GPU fails while decoding.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every_nth: int = 1,
        fps: float | None = None,
        hardware: Hardware | None = None,
        video_track: int | None = None,
    ) -> None:
        if every_nth < 1 or (fps is not None and fps <= 0):
            raise ValueError(f"every_nth and fps must be positive, got {every_nth} and {fps}")
        self.path, self._video_track = Path(path), video_track
        self._every_nth, self._fps = every_nth, fps
        self.decoder: Literal["software", "nvdec"] = "software"
        self.decoder_note: str | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._container = open_container(self.path)
        try:
            first = self._start_on_gpu() if hardware else None
            if first is None:
                first = self._start()
        except BaseException:
            self._container.close()
            raise
        self.info = self._make_info(first)
        self._frames = chain((first,), self._frames)

    def _start(self) -> av.VideoFrame:
        """Start decoding. Only a decoded frame shows the orientation, and whether a picture exists at all."""
        self._stream = self._find_video_stream()
        self._stream.thread_type = "AUTO"
        self._presenter = Presenter(self._stream)
        self._origin = get_origin_seconds(self._container)
        self._announced_end = get_announced_end(self._container)
        #: For each track: how many packets were read, and where the last of them ends.
        self._packets: Counter[int] = Counter()
        self._packet_ends: dict[int, float] = {}
        self.end_seconds = 0.0
        self.frames_decoded = self.corrupt_frames = self.corrupt_packets = 0
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise MediaError(
                f"{self.path} holds no picture that can be decoded, or one of more than {MOST_PIXELS:,} pixels: copy "
                "or record it again, or scale it"
            )
        return first

    def _start_on_gpu(self) -> av.VideoFrame | None:
        """Start decoding on the GPU. If that fails, return None and set ``decoder_note``."""
        in_software = self._container
        try:
            self._container = nvdec.open_on_gpu(self.path)
            try:
                # An extra thread decodes nothing, and takes one of NVDEC's 32 surfaces.
                self._find_video_stream().codec_context.thread_count = 1
                first = self._start()
                nvdec.check_on_gpu(first, self._stream.codec_context.name)
            except BaseException:
                self._container.close()
                raise
        except (DeviceError, MediaError) as error:
            self._container, self.decoder_note = in_software, str(error)
            return None
        in_software.close()
        self.decoder = "nvdec"
        return first

    def _find_video_stream(self) -> VideoStream:
        return choose_video_track(self._container, str(self.path), self._video_track)

    def _make_info(self, first: av.VideoFrame) -> MediaInfo:
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate.numerator / rate.denominator) if rate and rate.denominator else 0.0
        duration = convert_to_seconds(stream.duration, stream.time_base)
        if duration is None:
            duration = self._announced_end
        return MediaInfo(
            self.path, *self._presenter.look_at(first).size, fps, duration, bool(self._container.streams.audio)
        )

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode(self) -> Iterator[av.VideoFrame]:
        # Demux the packets of all tracks, to know where the file ends.
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets, None)
            except BROKEN_OFF:  # _check_whole finds out how much is missing
                self.corrupt_packets += 1
                packet = None
            if packet is None:
                break
            self._note_end(packet)
            if packet.stream.index != self._stream.index:
                continue
            self.corrupt_packets += packet.is_corrupt
            try:
                yield from self._stream.decode(packet)
            except av.error.FFmpegError:
                self.corrupt_packets += 1
        try:
            yield from self._stream.decode(None)
        except av.error.FFmpegError:  # already flushed
            return

    def _note_end(self, packet: Packet[Any]) -> None:
        index, stamp = packet.stream.index, packet.pts if packet.pts is not None else packet.dts
        end = convert_to_seconds((stamp or 0) + (packet.duration or 0), packet.time_base)
        if packet.size and stamp is not None and end is not None:
            self._packets[index] += 1
            self._packet_ends[index] = max(self._packet_ends.get(index, -math.inf), end - self._origin)

    def __iter__(self) -> Iterator[Frame]:
        step = 1 / self.info.fps if self.info.fps else 1 / 25
        last, segment, due = -step, 0, -np.inf
        clock = SteadyClock(self._announced_end)
        for frame in self._frames:
            index = self.frames_decoded
            self.frames_decoded += 1
            self.corrupt_frames += frame.is_corrupt
            seconds = convert_to_seconds(frame.pts, frame.time_base)
            pts = last + step if seconds is None else seconds - self._origin
            if index and seconds is not None:
                pts, leapt = clock.place(pts, last + step)
                segment += leapt
            last = pts
            lasts = convert_to_seconds(frame.duration, frame.time_base) or step
            self.end_seconds = max(self.end_seconds, pts + min(max(lasts, step), MOST_HELD_SECONDS))
            if index % self._every_nth or pts < due - 1e-6:
                continue
            if self._fps:
                on_grid = due + 1 / self._fps
                due = on_grid if on_grid > pts else pts + 1 / self._fps
            image = to_rgb(nvdec.download(frame), self._presenter.look_at(frame))
            yield Frame(image, float(pts), index, segment, bool(frame.is_corrupt))
        self._check_whole()

    def _check_whole(self) -> None:
        """Raise :class:`MediaError` if the ends of picture and sound, or the index, show that the file was cut off."""
        if self._container.format.name in ESTIMATED_FORMATS:
            return
        tracks = [self._stream, *list_audio_candidates(self._container, str(self.path), video=self._stream)[:1]]
        # In a fragmented file, a track without packets and without an index entry may still announce a duration.
        has_packets = [track for track in tracks if self._packets[track.index] or track.frames]
        timed = [track for track in has_packets if track.duration]
        for track in timed:
            duration, start = (
                convert_to_seconds(t, track.time_base) or 0.0 for t in (track.duration, track.start_time)
            )
            announced = duration + (start - self._origin if track.start_time is not None else 0.0)
            if not 0 < track.frames <= self._packets[track.index]:  # in some kinds of files the index counts packets
                self._check_end(self._packet_ends.get(track.index, 0.0), announced)
        if self._stream not in timed:  # only the duration of the whole file is known, all kinds of tracks included
            self._check_end(max(self._packet_ends.values(), default=0.0), self._announced_end)

    def _check_end(self, end_seconds: float, announced: float) -> None:
        if announced - end_seconds > max(CUT_OFF_SECONDS, CUT_OFF_SHARE * announced):
            raise MediaError(
                f"{self.path} announces {announced:.1f} s but ends after {end_seconds:.1f} s, so "
                "it was cut off: copy or record it again"
            )
