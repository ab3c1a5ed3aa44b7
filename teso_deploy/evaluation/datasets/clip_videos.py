"""Pictures of a video at given times, kept in this user's cache so that a data set names files only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError, MediaError, OutputError
from teso_deploy.media.reader import VideoReader
from teso_deploy.resources import cache_folder
from teso_deploy.staging import create_folder, put_in_place

#: A picture may be requested this long after the last one.
_HELD_SECONDS = 1.0


def extract_pictures(video: Path, times: Sequence[float]) -> tuple[Path, ...]:
    """Write the pictures that a video shows at these times, unless they are in the cache, and return their files.

    Args:
        video: The file. It must have sound.
        times: In seconds from the start of the file.

    Raises:
        DataError: The video can't be decoded, has no sound, or ends more than a second before one of the times.
        OutputError: The cache can't be written.
    """
    seen = video.stat()
    key = f"{video.resolve()} {seen.st_mtime_ns} {seen.st_size} {tuple(times)}"
    home = cache_folder("clips") / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not home.is_dir():
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with create_folder(home.parent) as staged:
                for number, image in _choose_pictures(video, times):
                    Image.fromarray(image).save(staged / f"{number}.png", compress_level=1)
                put_in_place(staged, home)
        except MediaError as error:
            raise DataError(str(error)) from error
        except OSError as error:
            raise OutputError(
                f"{home.parent} can't be written ({error}): set XDG_CACHE_HOME to another folder"
            ) from error
    return tuple(home / f"{number}.png" for number in range(len(times)))


def _choose_pictures(video: Path, times: Sequence[float]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the number of each time, and the picture that is shown then."""
    waiting = sorted(range(len(times)), key=lambda number: times[number], reverse=True)
    shown = None
    with VideoReader(video) as reader:
        if not reader.info.has_audio:
            raise DataError(f"{video} has no sound: its clip needs sound")
        for frame in reader:
            while waiting and shown is not None and times[waiting[-1]] < frame.pts_seconds - 1e-6:
                yield waiting.pop(), shown.image
            if not waiting:
                return
            shown = frame
        end = reader.end_seconds
    for number in reversed(waiting):
        if shown is None or times[number] > end + _HELD_SECONDS:
            raise DataError(f"{video} ends at {end:.2f} s, before the picture at {times[number]:.2f} s")
        yield number, shown.image
