"""A video that has the size of its first picture."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.media.audio import Sound
from teso_deploy.media.writer import VideoWriter


class FittedVideo:
    """Opens a :class:`VideoWriter` with the first picture, and scales later ones to its size; a context manager.

    A source may change its size while it runs, which is not an error. Without a picture there is no file.

    Args:
        path: The video, ``.mp4``.
        fps: Frames per second that are expected.
        sound: The sound track. Default: None, no sound track.
        is_growing: The file can be played while it is written. Default: False, it appears when it is complete.
    """

    def __init__(self, path: Path, *, fps: float, sound: Sound | None = None, is_growing: bool = False) -> None:
        self._path, self._fps, self._sound, self._is_growing = path, fps, sound, is_growing
        self._writer: VideoWriter | None = None
        self._size = (0, 0)
        self._end_seconds = 0.0

    def write(self, image: NDArray[np.uint8], shown_at_seconds: float) -> None:
        """Write a picture (H, W, 3) uint8 RGB at its time. Times must increase. Raises :class:`OutputError`."""
        size = (image.shape[1], image.shape[0])
        if self._writer is None:
            self._size = size
            self._writer = VideoWriter(
                self._path, *size, fps=self._fps, sound=self._sound, is_growing=self._is_growing
            )  # fmt: skip
            self._writer.__enter__()
        if size != self._size:
            image = np.asarray(Image.fromarray(image).resize(self._size, Image.Resampling.BILINEAR))
        self._writer.write(image, shown_at_seconds)

    def hold_until(self, end_seconds: float) -> None:
        """Set the time in seconds until which the finished video shows the last picture and plays the sound."""
        self._end_seconds = end_seconds

    def close(self) -> None:
        """Finish the video. Raises :class:`OutputError`."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.hold_until(self._end_seconds)
            writer.__exit__(kind, error, trace)
