"""Opening files with PyAV, with one clear sentence for each failure."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer

from teso_deploy.errors import InputNotFoundError, MediaError

#: Errors at the point where a file breaks off. PyAV raises IndexError at the end of a file in
#: which a damaged packet looked like a new stream.
BROKEN_OFF = (av.error.FFmpegError, IndexError)
#: Larger pictures are not decoded, because a file of kilobytes may claim gigabytes. 8K has half this many pixels.
MOST_PIXELS = 1 << 26
#: The same limit as an FFmpeg option, for probing and for decoders.
SIZE_LIMIT = {"max_pixels": str(MOST_PIXELS)}
#: Titles that are not UTF-8 (in old AVI, MP3 and MOV files) are read without their invalid bytes.
METADATA_ERRORS = "ignore"
#: A backward step of the clock, or a forward leap, that exceeds these is a discontinuity.
BACK_SECONDS, AHEAD_SECONDS = 0.5, 10.0
#: A longer announced duration may be a damaged stamp, so such a recording has no pauses beyond AHEAD_SECONDS.
MOST_ANNOUNCED_SECONDS = 86_400.0
#: Limit of remembered leaps: a stream that is damaged for hours must not slow down.
_MOST_OFFSETS = 32


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a file as a container of streams, and close it at the end.

    Raises:
        InputNotFoundError: The file does not exist.
        MediaError: FFmpeg can't read the file.
    """
    container = open_container(path)
    try:
        yield container
    finally:
        container.close()


def open_container(path: Path, hwaccel: HWAccel | None = None) -> InputContainer:
    """Open a file like :func:`open_media`; the caller closes it. ``hwaccel`` decodes its video in hardware."""
    check_readable(path)
    try:
        return open_unchecked(path, hwaccel)
    except av.error.PermissionError as error:
        raise MediaError(f"{path} can't be read ({error.strerror}): change its permissions") from error
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: PyAV can't interpret a track
        raise MediaError(
            f"{path} can't be read as video or sound ({getattr(error, 'strerror', error)}): it is of another "
            "kind, or was cut off while it was written; convert or copy it again"
        ) from error


def check_readable(path: Path) -> None:
    """Check that a path names a file. Raises :class:`InputNotFoundError`, :class:`MediaError` (folder, pipe, empty)."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise InputNotFoundError(f"no file {path}: check the path") from None
    except OSError as error:  # a link to itself, a folder without permission, a name that is too long
        raise InputNotFoundError(f"{path} can't be reached ({error.strerror}): check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path} is a folder: give a video file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path} is a pipe or a device, not a file: feed it to standard input, and give - as input")
    if status.st_size == 0:
        raise MediaError(f"{path} is empty: copy or record it again")


def open_unchecked(path: Path, hwaccel: HWAccel | None = None) -> InputContainer:
    """Open a local file. All reading of local media goes through this function.

    FFmpeg takes ``12:30.mp4`` for an address with the protocol "12", but never an absolute path. Without
    ``pattern_type`` it takes ``a%03d.png`` for a series of pictures.

    The errors are those that :func:`open_container` turns into sentences.
    """
    return av.open(
        str(path.absolute()),
        "r",
        options={"pattern_type": "none", **SIZE_LIMIT},
        metadata_errors=METADATA_ERRORS,
        hwaccel=hwaccel,
    )


def convert_to_seconds(value: int | None, time_base: Any) -> float | None:
    """Convert a time stamp to seconds. ``time_base`` is a Fraction, or in PyAV 19 an AVRational."""
    if value is None or time_base is None:
        return None
    return float(value * time_base.numerator / time_base.denominator)


def get_frame_seconds(stream: Any) -> float:
    """Return the mean time from one picture to the next; 0 if unknown, and for sound."""
    rate = getattr(stream, "average_rate", None) or getattr(stream, "guessed_rate", None)
    return float(rate.denominator / rate.numerator) if rate and rate.numerator and rate.denominator else 0.0


def get_announced_end(container: InputContainer) -> float:
    """Return the announced end of the longest stream, on the clock of :func:`get_origin_seconds`.

    Return 0 if the end is unknown or more than a day away. A damaged stamp would otherwise make a pause of years,
    which is then filled with silence. Long pauses in such a file are not kept.
    """
    announced = container.duration / av.time_base if container.duration else 0.0
    return announced if announced <= MOST_ANNOUNCED_SECONDS else 0.0


class SteadyClock:
    """Converts the time stamps of a stream to seconds that continue where the stamps leap.

    Concatenated files restart their stamps, and damage invents stamps that are hours away. After damage the old
    clock applies again.

    Args:
        end_seconds: The announced end of the file. Up to it, a forward leap is a pause, not a discontinuity.
        beside: The clock of the other stream, with the same origin. If one stream has leapt, the other leaps by the
            same amount, so that sound and picture stay together.
    """

    def __init__(self, end_seconds: float = 0.0, beside: SteadyClock | None = None) -> None:
        self._end = end_seconds
        self._offset = 0.0
        # Offsets of both streams, latest last. List methods are atomic, and readers iterate over a copy.
        self._offsets: list[float] = beside._offsets if beside is not None else [0.0]

    def place(self, stamp_seconds: float, expected_seconds: float) -> tuple[float, bool]:
        """Return (time, whether the stamps leapt) of a packet; ``expected_seconds`` is its time without a leap."""
        latest = max(expected_seconds + AHEAD_SECONDS, self._end)
        for offset in (self._offset, *reversed(self._offsets.copy())):
            if expected_seconds - BACK_SECONDS <= stamp_seconds + offset <= latest:
                leapt, self._offset = offset != self._offset, offset
                return stamp_seconds + offset, leapt
        self._offset = expected_seconds - stamp_seconds
        self._offsets.append(self._offset)
        del self._offsets[:-_MOST_OFFSETS]
        return expected_seconds, True


def get_origin_seconds(container: InputContainer) -> float:
    """Return the start of the earliest stream: zero of the clock that frames and sound share."""
    starts = [
        start
        for stream in (*container.streams.video, *container.streams.audio)
        if (start := convert_to_seconds(stream.start_time, stream.time_base)) is not None
    ]
    return min(starts, default=0.0)
