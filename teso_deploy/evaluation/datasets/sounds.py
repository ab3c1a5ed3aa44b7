"""The sound of a data set's videos, in windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teso_deploy.media.audio import WINDOW_SECONDS, read_audio


def read_windows(sample_audio: Path, count: int, hop_seconds: float = 1.0) -> NDArray[np.float32]:
    """The first ``count`` windows of a video's sound, (count, 15600) float32 in [-1, 1], 16 kHz mono.

    Window k starts at k · ``hop_seconds``: 1.0 gives each frame its own second, 0.96 the contiguous VGGish examples
    that AVSBench's log-mels are made of. What the file does not reach is zeros.

    Raises :class:`InputNotFoundError`, :class:`MediaError` (no sound that can be decoded).
    """
    track = read_audio(sample_audio)
    # A causal window ends where it is asked for.
    ends = (number * hop_seconds + WINDOW_SECONDS for number in range(count))
    return np.stack([track.window(end, "causal", hop_seconds=0.0).samples for end in ends])


def read_second(sample_audio: Path, index: int, hop_seconds: float = 1.0) -> NDArray[np.float32]:
    """Window ``index`` of :func:`read_windows`, (15600,) float32: second k of the sound, from k.0 s."""
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    track = read_audio(sample_audio)
    return track.window(index * hop_seconds + WINDOW_SECONDS, "causal", hop_seconds=0.0).samples
