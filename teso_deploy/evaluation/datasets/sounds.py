"""Reads windows from the sound of a data set's videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.media.audio import read_audio


def read_windows(sample_audio: Path, count: int, hop_seconds: float = 1.0) -> NDArray[np.float32]:
    """Return the first windows of a video's sound. Parts beyond the end of the file are zeros.

    Args:
        sample_audio: The file of the sound.
        count: How many windows to read.
        hop_seconds: Window k starts at k times this. 1.0 gives each frame its own second. 0.96 gives the contiguous
            VGGish examples from which AVSBench made its log-mels. Default: 1.0.

    Returns:
        (count, 15600) float32 in [-1, 1], 16 kHz mono.

    Raises:
        InputNotFoundError: The file does not exist.
        MediaError: It has no sound that can be decoded.
    """
    return _read_from(sample_audio, [number * hop_seconds for number in range(count)])


def read_sample_windows(sample: VideoSample, hop_seconds: float = 1.0) -> NDArray[np.float32]:
    """Return the window of each picture of a video, as :func:`read_windows` does.

    Args:
        sample: The video.
        hop_seconds: Window k starts at k times this, unless the video says when its pictures are shown. Then a window
            starts ``FRAME_OFFSET_SECONDS`` before its picture. Default: 1.0.

    Returns:
        (frames, 15600) float32.
    """
    return _read_from(sample.audio, sample.list_window_starts(hop_seconds))


def _read_from(sample_audio: Path, starts: Sequence[float]) -> NDArray[np.float32]:
    track = read_audio(sample_audio)
    return np.stack([track.window_from(start).samples for start in starts])


def read_second(sample_audio: Path, index: int, hop_seconds: float = 1.0) -> NDArray[np.float32]:
    """Return one window of :func:`read_windows`.

    Args:
        sample_audio: The file of the sound.
        index: The number of the window, from 0.
        hop_seconds: See :func:`read_windows`. Default: 1.0.

    Returns:
        (15600,) float32.
    """
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    track = read_audio(sample_audio)
    return track.window_from(index * hop_seconds).samples
