"""Frames of a video file, upright, with their time on the file's clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from teso_deploy.errors import MediaError
from teso_deploy.media.container import open_container, origin_seconds, seconds_of
from teso_deploy.types import Frame

#: A step back of the clock, or a leap ahead, by more than this starts a new segment.
BACK_SECONDS, AHEAD_SECONDS = 0.5, 10.0
#: A file that ends this much before the end it announces was cut off.
CUT_OFF_SECONDS, CUT_OFF_SHARE = 1.0, 0.05


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a file says of itself. ``width`` and ``height`` of the upright picture in pixels;
    ``fps`` the average, 0 when unknown; ``duration_seconds`` 0 when unknown."""

    path: Path
    width: int
    height: int
    fps: float
    duration_seconds: float
    has_audio: bool


def upright(image: NDArray[np.uint8], rotation_degrees: int) -> NDArray[np.uint8]:
    """Turn a picture by its display matrix: degrees counterclockwise, a multiple of 90."""
    turns = round(rotation_degrees / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


class VideoReader:
    """Iterates over the frames of a file; a context manager.

    ``fps``: at most so many frames a second; ``every_nth``: every n-th frame. What is
    damaged is counted: ``corrupt_packets``, ``corrupt_frames``. Times of a new ``segment``
    (the clock leapt) go on where the last one ended.

    Raises :class:`InputNotFoundError`, :class:`MediaError` (no video, nothing decodable,
    the file ends long before the end it announces).
    """

    def __init__(self, path: str | Path, *, every_nth: int = 1, fps: float | None = None) -> None:
        if every_nth < 1 or (fps is not None and fps <= 0):
            raise ValueError(f"every_nth and fps must be positive, got {every_nth} and {fps}")
        self.path = Path(path)
        self._every_nth, self._fps = every_nth, fps
        self._container = open_container(self.path)
        try:
            self._stream = self._video_stream()
        except MediaError:
            self._container.close()
            raise
        self._stream.thread_type = "AUTO"
        self._origin = origin_seconds(self._container)
        self.frames_decoded = self.corrupt_frames = self.corrupt_packets = 0
        self.info = self._info()

    def _video_stream(self) -> VideoStream:
        for stream in self._container.streams.video:
            # A cover picture is a video stream of one frame.
            if not stream.disposition & av.stream.Disposition.attached_pic:
                return stream
        kind = "only sound" if self._container.streams.audio else "neither picture nor sound"
        raise MediaError(f"{self.path} holds {kind}: give a file with a video track")

    def _info(self) -> MediaInfo:
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate.numerator / rate.denominator) if rate and rate.denominator else 0.0
        duration = seconds_of(stream.duration, stream.time_base)
        if duration is None:
            duration = self._container.duration / av.time_base if self._container.duration else 0.0
        context = stream.codec_context
        return MediaInfo(self.path, context.width, context.height, fps, duration, bool(self._container.streams.audio))

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._container.close()

    def _decoded(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:  # the container breaks off; how much is missing is judged at the end
                self.corrupt_packets += 1
                packet = None
            if packet is None:
                break
            self.corrupt_packets += packet.is_corrupt
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                self.corrupt_packets += 1
        try:
            yield from self._stream.decode(None)
        except av.error.FFmpegError:  # already flushed
            return

    def __iter__(self) -> Iterator[Frame]:
        step = 1 / self.info.fps if self.info.fps else 1 / 25
        last, offset, segment, due = -step, 0.0, 0, -np.inf
        for frame in self._decoded():
            index = self.frames_decoded
            self.frames_decoded += 1
            self.corrupt_frames += frame.is_corrupt
            seconds = seconds_of(frame.pts, frame.time_base)
            pts = last + step if seconds is None else seconds - self._origin + offset
            if index and (pts < last - BACK_SECONDS or pts > last + AHEAD_SECONDS):
                offset += last + step - pts
                pts = last + step
                segment += 1
            last = pts
            if index % self._every_nth or pts < due - 1e-6:
                continue
            if self._fps:
                on_grid = due + 1 / self._fps
                due = on_grid if on_grid > pts else pts + 1 / self._fps
            image = upright(frame.to_ndarray(format="rgb24"), frame.rotation)
            yield Frame(image, float(pts), index, segment, bool(frame.is_corrupt))
        self._check_whole(last + step)

    def _check_whole(self, end_seconds: float) -> None:
        announced = self.info.duration_seconds
        if not self.frames_decoded:
            raise MediaError(f"{self.path} holds no picture that can be decoded: copy or record it again")
        start = seconds_of(self._stream.start_time, self._stream.time_base)
        missing = announced + (start - self._origin if start is not None else 0.0) - end_seconds
        if missing > max(CUT_OFF_SECONDS, CUT_OFF_SHARE * announced):
            raise MediaError(
                f"{self.path} ends after {end_seconds:.1f} of the {announced:.1f} s that it announces, "
                "it was cut off: copy or record it again"
            )
