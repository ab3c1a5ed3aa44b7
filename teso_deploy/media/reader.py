"""Frames of a video file, upright, with their time on the file's clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from teso_deploy.errors import DeviceError, MediaError
from teso_deploy.media import nvdec
from teso_deploy.media.container import (
    BROKEN_OFF,
    SteadyClock,
    announced_end_seconds,
    open_container,
    origin_seconds,
    seconds_of,
)
from teso_deploy.types import Frame

#: "auto" and "nvdec": on the GPU where that can be done, else in software. They differ in what a caller makes of
#: ``decoder_note``.
Hardware = Literal["auto", "nvdec"]
#: A file that ends this much before the end it announces was cut off.
CUT_OFF_SECONDS, CUT_OFF_SHARE = 1.0, 0.05
#: These have no header that tells how long they are; FFmpeg guesses from time stamps, also damaged ones.
ESTIMATED_FORMATS = ("mpegts", "mpeg")


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

    ``hardware``: decode on an NVIDIA GPU if it can, None in software. ``decoder`` is what decodes,
    "nvdec" or "software"; ``decoder_note`` why it is not the one that was asked for, else None.
    The frames are the same.

    Raises :class:`InputNotFoundError`, :class:`MediaError` (no video, nothing decodable,
    the file ends long before the end it announces), :class:`DeviceError` (the GPU fails on the way).
    """

    def __init__(
        self, path: str | Path, *, every_nth: int = 1, fps: float | None = None, hardware: Hardware | None = None
    ) -> None:
        if every_nth < 1 or (fps is not None and fps <= 0):
            raise ValueError(f"every_nth and fps must be positive, got {every_nth} and {fps}")
        self.path = Path(path)
        self._every_nth, self._fps = every_nth, fps
        self.decoder: Literal["software", "nvdec"] = "software"
        self.decoder_note: str | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._container = open_container(self.path)
        try:
            first = self._first_on_gpu() if hardware else None
            if first is None:
                first = self._first()
        except BaseException:
            self._container.close()
            raise
        self.info = self._info(first)
        self._frames = chain((first,), self._frames)

    def _first(self) -> av.VideoFrame:
        """Begin to decode. Only a decoded frame tells how the picture is turned, and whether there is one at all."""
        self._stream = self._video_stream()
        self._stream.thread_type = "AUTO"
        self._origin = origin_seconds(self._container)
        self._announced_end = announced_end_seconds(self._container)
        self._latest_packet_end = 0.0
        self.frames_decoded = self.corrupt_frames = self.corrupt_packets = 0
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            raise MediaError(f"{self.path} holds no picture that can be decoded: copy or record it again")
        return first

    def _first_on_gpu(self) -> av.VideoFrame | None:
        """The same on the GPU; None, and why in ``decoder_note``, where it can't be done."""
        in_software = self._container
        try:
            self._container = nvdec.open_on_gpu(self.path)
            try:
                # A thread more is a surface more, of which NVDEC has 32, and decodes nothing.
                self._video_stream().codec_context.thread_count = 1
                first = self._first()
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

    def _video_stream(self) -> VideoStream:
        for stream in self._container.streams.video:
            # A cover picture is a video stream of one frame.
            if not stream.disposition & av.stream.Disposition.attached_pic:
                return stream
        kind = "only sound" if self._container.streams.audio else "neither picture nor sound"
        raise MediaError(f"{self.path} holds {kind}: give a file with a video track")

    def _info(self, first: av.VideoFrame) -> MediaInfo:
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate.numerator / rate.denominator) if rate and rate.denominator else 0.0
        duration = seconds_of(stream.duration, stream.time_base)
        if duration is None:
            duration = self._announced_end
        width, height = first.width, first.height
        if round(first.rotation / 90) % 2:
            width, height = height, width
        return MediaInfo(self.path, width, height, fps, duration, bool(self._container.streams.audio))

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
        # The sound's packets are looked at to know where the file ends.
        packets = self._container.demux(self._stream, *self._container.streams.audio)
        while True:
            try:
                packet = next(packets, None)
            except BROKEN_OFF:  # how much is missing is judged at the end
                self.corrupt_packets += 1
                packet = None
            if packet is None:
                break
            packet_end = seconds_of((packet.pts or 0) + (packet.duration or 0), packet.time_base) or 0.0
            self._latest_packet_end = max(self._latest_packet_end, packet_end - self._origin)
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

    def __iter__(self) -> Iterator[Frame]:
        step = 1 / self.info.fps if self.info.fps else 1 / 25
        last, segment, due = -step, 0, -np.inf
        clock = SteadyClock(self._announced_end)
        for frame in self._frames:
            index = self.frames_decoded
            self.frames_decoded += 1
            self.corrupt_frames += frame.is_corrupt
            seconds = seconds_of(frame.pts, frame.time_base)
            pts = last + step if seconds is None else seconds - self._origin
            if index and seconds is not None:
                pts, leapt = clock.place(pts, last + step)
                segment += leapt
            last = pts
            if index % self._every_nth or pts < due - 1e-6:
                continue
            if self._fps:
                on_grid = due + 1 / self._fps
                due = on_grid if on_grid > pts else pts + 1 / self._fps
            picture = nvdec.downloaded(frame).to_ndarray(format="rgb24")
            image = upright(np.asarray(picture, np.uint8), frame.rotation)
            yield Frame(image, float(pts), index, segment, bool(frame.is_corrupt))
        self._check_whole(last + step)

    def _check_whole(self, end_seconds: float) -> None:
        if self._container.format.name in ESTIMATED_FORMATS:
            return
        duration = seconds_of(self._stream.duration, self._stream.time_base)
        if duration is None:  # only the whole file tells how long it is, and its sound may be longer than its picture
            announced, end_seconds = self._announced_end, max(end_seconds, self._latest_packet_end)
        else:
            start = seconds_of(self._stream.start_time, self._stream.time_base)
            announced = duration + (start - self._origin if start is not None else 0.0)
        if announced - end_seconds > max(CUT_OFF_SECONDS, CUT_OFF_SHARE * announced):
            raise MediaError(
                f"{self.path} ends after {end_seconds:.1f} of the {announced:.1f} s that it announces, "
                "it was cut off: copy or record it again"
            )
