"""Write a video with its sound: complete or not at all, or so that it can be played while it grows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import NDArray

from teso_deploy.errors import OutputError
from teso_deploy.media.audio import Sound
from teso_deploy.media.picture import is_hd
from teso_deploy.outputs import check_file, explain_errors, finish_file, open_growing
from teso_deploy.staging import clear_leftovers, create_file
from teso_deploy.types import SAMPLE_RATE_HZ

_TICKS_PER_SECOND = 90_000
_CHUNK_SAMPLES = 4096
#: FFmpeg uses the same number of a standard for its matrix, its primaries and its transfer function.
_BT709, _SMPTE170M = 1, 6
_LIMITED_RANGE = 1
#: Length of the pieces of a growing file. If its process is killed, the file lacks the piece that was not finished.
_PIECE_SECONDS = 1.0
#: In a growing file, sound that comes later than this is replaced by silence: a piece needs both tracks.
_LATE_SOUND_SECONDS = 1.0


class _Output:
    """The file that FFmpeg writes to, in the form that PyAV takes.

    It keeps the first error, because FFmpeg forgets errors of its last writes. It also keeps what a signal handler
    raises, which can't pass through FFmpeg: PyAV would lose Ctrl-C, and end the process at once for SystemExit.
    The file is opened by Python, because FFmpeg would take a name like ``12:30.mp4`` for an address.
    """

    name = "video.mp4"

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, content: bytes) -> int:
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise
        except BaseException as error:
            self.error = error
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return self._file.seekable()

    def open_again(self, url: str, flags: int, options: dict[str, str]) -> BinaryIO:
        """Open the file for reading. FFmpeg does this to move the index of a finished file to its front.

        Args:
            url: The name of the file, which is ignored.
            flags: FFmpeg's flags, which are ignored.
            options: FFmpeg's options, which are ignored.
        """
        return open(self._file.name, "rb", buffering=0)


class VideoWriter:
    """Writes H.264 and AAC in MP4; a context manager.

    Frames carry their own time, so a variable frame rate is kept.

    Args:
        path: The video. It appears under this name when the block ends without an error; otherwise nothing is left.
        width: Width of the pictures, in pixels. If it is odd, the video is a pixel wider.
        height: Height of the pictures, in pixels. If it is odd, the video is a pixel higher.
        fps: Frames per second that are expected; how long the last one lasts.
        sound: What the model hears, as the sound track. Default: None, no sound track.
        is_growing: For streams: the file exists from the first picture on, which is its time 0, and consists of pieces
            of a second that can be played even after the process was killed. Default: False.

    Raises:
        OutputError: The file can't be written.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        *,
        fps: float | Fraction,
        sound: Sound | None = None,
        is_growing: bool = False,
    ) -> None:
        self.path, self._is_growing = Path(path), is_growing
        target = check_file(self.path)
        if target.kind == "stream":
            raise OutputError(f"{self.path} can't be written: a video can't go to a device or a pipe; name a file")
        self._place = target.path
        self._begin_seconds = None if is_growing else 0.0
        self._width, self._height = width, height
        self._frame_seconds = float(1 / fps)
        self._track = sound
        self._sent_samples = 0
        self._last_tick = -1
        self._last_image: NDArray[np.uint8] | None = None
        self._end_seconds = 0.0
        self._next_piece_seconds = 0.0
        options = {"movflags": "+faststart"}
        if is_growing:
            options = {"movflags": "+frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
        with explain_errors(self.path):
            if not is_growing:
                clear_leftovers(self._place.parent)
            self._file = open_growing(self.path) if is_growing else create_file(self._place.parent)
        self._output = _Output(self._file)
        try:
            self._container: OutputContainer = av.open(
                self._output, "w", format="mp4", options=options, io_open=self._output.open_again
            )
            self._add_streams(fps)
        except BaseException:
            self._discard()
            raise

    def _add_streams(self, fps: float | Fraction) -> None:
        width, height = self._width, self._height
        self._video = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        # H.264 with 4:2:0 colour has even sides: an odd one is padded.
        self._video.width, self._video.height = width + width % 2, height + height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.options = {"crf": "20", "preset": "veryfast"}
        if self._is_growing:
            # A piece begins with a key frame, and _encode asks for one by time: the frame rate may be low or vary.
            self._video.options |= {"preset": "ultrafast", "tune": "zerolatency", "g": "9999", "forced-idr": "1"}
        self._video.codec_context.time_base = Fraction(1, _TICKS_PER_SECOND)
        # Without tags players guess, and assume BT.709 for large pictures.
        self._matrix = "ITU709" if is_hd(width, height) else "ITU601"
        context, tag = self._video.codec_context, _BT709 if is_hd(width, height) else _SMPTE170M
        context.colorspace = context.color_primaries = context.color_trc = tag
        context.color_range = _LIMITED_RANGE
        self._sound = None
        if self._track is not None:
            self._sound = self._container.add_stream("aac", rate=SAMPLE_RATE_HZ)
            self._sound.codec_context.layout = "mono"
            self._sound.codec_context.bit_rate = 96_000

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, image: NDArray[np.uint8], pts_seconds: float) -> None:
        """Write a picture (height, width, 3) uint8 RGB at its time in seconds; times must grow.

        Raises :class:`OutputError` (the disk is full, say), :class:`ValueError` (another size).
        """
        if image.shape != (self._height, self._width, 3):
            raise ValueError(f"expected a picture of {self._width}x{self._height}, got {image.shape}")
        pad = (self._height % 2, self._width % 2)
        if any(pad):
            image = np.pad(image, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")
        self._encode(image, pts_seconds)

    def _encode(self, image: NDArray[np.uint8], pts_seconds: float) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=self._matrix, dst_color_range="MPEG")
        self._last_image = image
        if self._begin_seconds is None:
            self._begin_seconds = pts_seconds
        pts_seconds -= self._begin_seconds
        self._last_tick = max(self._last_tick + 1, round(pts_seconds * _TICKS_PER_SECOND))
        frame.pts = self._last_tick
        frame.time_base = Fraction(1, _TICKS_PER_SECOND)
        if self._is_growing and pts_seconds >= self._next_piece_seconds:
            frame.pict_type = av.video.frame.PictureType.I
            self._next_piece_seconds = pts_seconds + _PIECE_SECONDS
        with self._explain_errors():
            self._container.mux(self._video.encode(frame))
            self._write_sound(pts_seconds)

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        with explain_errors(self.path):
            try:
                yield
            except av.error.FFmpegError as error:
                raise OSError(error.errno, error.strerror) from error
            if self._output.error is not None:
                raise self._output.error

    def _write_sound(self, until_seconds: float) -> None:
        """Write the sound up to a time, so that picture and sound of the same time are close together in the file."""
        begin = self._begin_seconds or 0.0
        if self._sound is None or self._track is None:
            return
        end = begin if self._track.end_seconds is None else self._track.end_seconds
        if self._is_growing:
            end = max(end, begin + until_seconds - _LATE_SOUND_SECONDS)
        until = min(round((end - begin) * SAMPLE_RATE_HZ), round(until_seconds * SAMPLE_RATE_HZ))
        while self._sent_samples < until:
            last = min(self._sent_samples + _CHUNK_SAMPLES, until)
            part = self._track.read(begin + self._sent_samples / SAMPLE_RATE_HZ, begin + last / SAMPLE_RATE_HZ)
            part = np.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0)  # the encoder refuses these
            frame = av.AudioFrame.from_ndarray(part[None].clip(-1, 1), format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE_HZ
            frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
            frame.pts = self._sent_samples
            self._container.mux(self._sound.encode(frame))
            self._sent_samples = last

    def hold_until(self, end_seconds: float) -> None:
        """Set the time in seconds until which the finished file shows the last picture and plays the sound."""
        self._end_seconds = end_seconds

    def _finish(self) -> None:
        end = self._last_tick / _TICKS_PER_SECOND + self._frame_seconds
        held = self._end_seconds - (self._begin_seconds or 0.0)
        if self._last_image is not None and held - end > self._frame_seconds / 2:
            # Encoders reorder frames. Only a second picture states reliably in MP4 how long the last one lasts.
            self._encode(self._last_image, self._end_seconds - self._frame_seconds)
        self._write_sound(max(end, held))
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._sound.encode(None))
        self._container.close()
        if self._output.error is not None:
            raise self._output.error
        if self._is_growing:
            os.fsync(self._file.fileno())
            self._file.close()
        else:
            finish_file(self._file, self._place)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._explain_errors():
                    self._finish()
        finally:
            with contextlib.suppress(OSError, av.error.FFmpegError, ValueError):
                self._container.close()
            self._discard()

    def _discard(self) -> None:
        """Close the file, and remove it if it does not have its final name yet."""
        if not self._is_growing:
            with contextlib.suppress(OSError):
                os.unlink(self._file.name)
        with contextlib.suppress(OSError):
            self._file.close()
