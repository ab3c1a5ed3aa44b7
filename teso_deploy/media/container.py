"""Opening files with PyAV so that every failure is one clear sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from teso_deploy.errors import InputNotFoundError, MediaError


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


def open_container(path: Path) -> InputContainer:
    """See :func:`opened`; the caller closes."""
    if not path.exists():
        raise InputNotFoundError(f"no file {path}: check the path")
    if path.is_dir():
        raise MediaError(f"{path} is a folder: give a video file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty: copy or record it again")
    try:
        return av.open(str(path), "r")
    except av.error.FFmpegError as error:
        raise MediaError(
            f"{path} is no video or sound that can be read ({error.strerror}): it is of another kind, or was cut off "
            "while it was written; convert or copy it again"
        ) from error


def seconds_of(value: int | None, time_base: Any) -> float | None:
    """A time stamp in seconds. ``time_base`` is a Fraction, or in PyAV 19 an AVRational."""
    if value is None or time_base is None:
        return None
    return float(value * time_base.numerator / time_base.denominator)


def origin_seconds(container: InputContainer) -> float:
    """The start of the earliest stream: zero of the clock that frames and sound share."""
    starts = [
        start
        for stream in (*container.streams.video, *container.streams.audio)
        if (start := seconds_of(stream.start_time, stream.time_base)) is not None
    ]
    return min(starts, default=0.0)
