"""Opening files with PyAV so that every failure is one clear sentence."""

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

#: What reading on raises where a file breaks off. IndexError: PyAV at the end of a file in
#: which a damaged packet looked like a new stream.
BROKEN_OFF = (av.error.FFmpegError, IndexError)
#: Larger pictures are not decoded: a file of kilobytes may claim gigabytes. 8K has half as many pixels.
MOST_PIXELS = 1 << 26
#: The same for FFmpeg, while it looks into a file and for a decoder.
SIZE_LIMIT = {"max_pixels": str(MOST_PIXELS)}
#: Titles that are not UTF-8 (old AVI, MP3 and MOV files have such) are read without the bytes that are wrong.
METADATA_ERRORS = "ignore"
#: A step back of the clock, or a leap ahead, by more than this is a discontinuity.
BACK_SECONDS, AHEAD_SECONDS = 0.5, 10.0
#: Longer recordings have no pauses that are longer than AHEAD_SECONDS: what they announce may be a damaged stamp.
MOST_ANNOUNCED_SECONDS = 86_400.0
#: Leaps that are remembered: a stream that is damaged for hours must not slow down.
_MOST_OFFSETS = 32


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """A file as a container of streams.

    Raises :class:`InputNotFoundError`, :class:`MediaError` (nothing FFmpeg can read).
    """
    container = open_container(path)
    try:
        yield container
    finally:
        container.close()


def open_container(path: Path, hwaccel: HWAccel | None = None) -> InputContainer:
    """See :func:`opened`; the caller closes. ``hwaccel``: what decodes its video."""
    check_readable(path)
    try:
        return open_unchecked(path, hwaccel)
    except av.error.PermissionError as error:
        raise MediaError(f"{path} may not be read ({error.strerror}): change its permissions") from error
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: a track that PyAV can't make anything of
        raise MediaError(
            f"{path} is not a video or sound that can be read ({getattr(error, 'strerror', error)}): it is of another "
            "kind, or was cut off while it was written; convert or copy it again"
        ) from error


def check_readable(path: Path) -> None:
    """Check what a path names. Raises :class:`InputNotFoundError`, :class:`MediaError` (a folder, a pipe, empty)."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise InputNotFoundError(f"no file {path}: check the path") from None
    except OSError as error:  # a link to itself, a folder that may not be entered, a name that is too long
        raise InputNotFoundError(f"{path} can't be reached ({error.strerror}): check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path} is a folder: give a video file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path} is a pipe or a device, not a file: feed it to standard input, and give - as input")
    if status.st_size == 0:
        raise MediaError(f"{path} is empty: copy or record it again")


def open_unchecked(path: Path, hwaccel: HWAccel | None = None) -> InputContainer:
    """Open a local file. Everything that reads local media comes through here.

    FFmpeg would take ``12:30.mp4`` for an address of a protocol "12", but never an absolute path. Without
    ``pattern_type`` it would take ``a%03d.png`` for a series of pictures.

    Raises what :func:`open_container` makes sentences of.
    """
    return av.open(
        str(path.absolute()),
        "r",
        options={"pattern_type": "none", **SIZE_LIMIT},
        metadata_errors=METADATA_ERRORS,
        hwaccel=hwaccel,
    )


def seconds_of(value: int | None, time_base: Any) -> float | None:
    """A time stamp in seconds. ``time_base`` is a Fraction, or in PyAV 19 an AVRational."""
    if value is None or time_base is None:
        return None
    return float(value * time_base.numerator / time_base.denominator)


def frame_seconds(stream: Any) -> float:
    """From one picture to the next on average; 0 when unknown, or of sound."""
    rate = getattr(stream, "average_rate", None) or getattr(stream, "guessed_rate", None)
    return float(rate.denominator / rate.numerator) if rate and rate.numerator and rate.denominator else 0.0


def announced_end_seconds(container: InputContainer) -> float:
    """The end of the longest stream on the clock of :func:`origin_seconds`, as the file tells it.

    0 when unknown, and when it is more than a day: a damaged stamp would make a pause of years, which is then filled
    with silence. Such a file has no long pauses.
    """
    announced = container.duration / av.time_base if container.duration else 0.0
    return announced if announced <= MOST_ANNOUNCED_SECONDS else 0.0


class SteadyClock:
    """Time stamps of one stream → seconds that go on where the stamps leap.

    Files put one after the other start their stamps anew, and damage invents some that are
    hours away. After damage the old clock holds again. ``end_seconds``: up to there, as the file
    announces it, a leap ahead is a pause and no discontinuity. ``beside``: the clock of the
    other stream, from the same origin; where one has leapt, the other leaps by as much, so that
    sound and picture stay together.
    """

    def __init__(self, end_seconds: float = 0.0, beside: SteadyClock | None = None) -> None:
        self._end = end_seconds
        self._offset = 0.0
        # Of both streams, the latest last. A list's methods are atomic, and a copy is what is looked through.
        self._offsets: list[float] = beside._offsets if beside is not None else [0.0]

    def place(self, stamp_seconds: float, expected_seconds: float) -> tuple[float, bool]:
        """(when it is, whether the stamps leapt), given when it would be if nothing was amiss."""
        latest = max(expected_seconds + AHEAD_SECONDS, self._end)
        for offset in (self._offset, *reversed(self._offsets.copy())):
            if expected_seconds - BACK_SECONDS <= stamp_seconds + offset <= latest:
                leapt, self._offset = offset != self._offset, offset
                return stamp_seconds + offset, leapt
        self._offset = expected_seconds - stamp_seconds
        self._offsets.append(self._offset)
        del self._offsets[:-_MOST_OFFSETS]
        return expected_seconds, True


def origin_seconds(container: InputContainer) -> float:
    """The start of the earliest stream: zero of the clock that frames and sound share."""
    starts = [
        start
        for stream in (*container.streams.video, *container.streams.audio)
        if (start := seconds_of(stream.start_time, stream.time_base)) is not None
    ]
    return min(starts, default=0.0)
