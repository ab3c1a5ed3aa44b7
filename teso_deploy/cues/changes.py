"""Detects a new scene in pictures and a new kind of sound in windows. Both are cheap enough for every frame.

A change is reported once, after it has lasted for some pictures or windows. So a flash or a click is not a change.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

#: The grid of cells (rows, columns) whose mean grey is compared, and the pixels (rows, columns) that are sampled per
#: cell.
_CELLS, _SAMPLES = (12, 16), (4, 4)
#: A variance in squared grey levels: the second constant of SSIM. Noise and faint contrasts have smaller variances.
_FAINT_VARIANCE = (0.03 * 255) ** 2
#: Pictures with at least this distance (:meth:`_Look.distance`) are of two scenes. 1.3 % of pairs of unrelated
#: photographs are below it. So are pairs of a picture and the same picture, panned by a tenth or 1.5 times as bright.
SCENE_DISTANCE = 0.9
#: A new scene counts if it lasts for this many pictures with at most this distance between them. After a dissolve or a
#: pan, it takes some pictures until the distances are that small.
SCENE_PICTURES, SETTLED_DISTANCE = 3, 0.2

#: Windows of sound with at least this cosine distance are of two kinds. In one recording, 1 % of consecutive windows
#: have a distance above 0.2. In recordings of two kinds, 5 % have one below 0.46.
SOUND_DISTANCE = 0.4
#: A new kind of sound counts if it lasts for this many windows.
SOUND_WINDOWS = 3
#: A window with a lower RMS level is silent, whatever the encoder computes for it.
SILENCE_DBFS = -50.0
#: How many of the latest kinds of sound are remembered.
KNOWN_SOUNDS = 8
#: The weight of a new window in the running mean of the features of its kind of sound.
_SHARE = 0.1


class _Look:
    """Features of a picture (H, W, 3): where it is bright, and how its pixels spread over 64 colours."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        rows, columns = (
            np.linspace(0, length - 1, cells * samples).astype(np.intp)
            for length, cells, samples in zip(image.shape[:2], _CELLS, _SAMPLES, strict=True)
        )
        pixels = image[rows[:, None], columns]
        tops = (pixels >> 6) @ np.array([16, 4, 1], np.uint8)
        self._colours = np.bincount(tops.ravel(), minlength=64) / tops.size
        grey = pixels.sum(axis=2, dtype=np.float32).reshape(_CELLS[0], _SAMPLES[0], _CELLS[1], _SAMPLES[1])
        cells = grey.sum(axis=(1, 3)).ravel() / (3 * _SAMPLES[0] * _SAMPLES[1])
        self._grey = cells - cells.mean()

    def distance(self, other: _Look) -> float:
        """Return a distance from 0 (equal) to 2 or a little more. It has two terms.

        The first is 1 minus SSIM's contrast and structure over cells, so that brightness alone does not count. The
        second is the share of pixels whose colours are not in the other picture, so that movement alone counts little.
        """
        mine, others = self._grey, other._grey
        alike = (2 * float(mine @ others) / mine.size + _FAINT_VARIANCE) / (
            float(mine @ mine + others @ others) / mine.size + _FAINT_VARIANCE
        )
        return 1 - alike + 1 - float(np.minimum(self._colours, other._colours).sum())


class SceneChange:
    """Compares each picture of a stream with the first one of its scene."""

    def __init__(self) -> None:
        self._scene: _Look | None = None
        self._next: _Look | None = None
        self._lasted = 0

    def is_changed(self, image: NDArray[np.uint8]) -> bool:
        """Return whether a new scene has certainly begun by this picture (H, W, 3). The first scene does not count."""
        look = _Look(image)
        if self._scene is None:
            self._scene = look
        if look.distance(self._scene) < SCENE_DISTANCE:
            self._next, self._lasted = None, 0
            return False
        if self._next is None or look.distance(self._next) > SETTLED_DISTANCE:
            self._next, self._lasted = look, 0
        self._lasted += 1
        if self._lasted < SCENE_PICTURES:
            return False
        self._scene, self._next, self._lasted = look, None, 0
        return True


class SoundChange:
    """Compares the audio encoder's features of each window with the kinds of sound that occurred lately."""

    def __init__(self) -> None:
        self._known: deque[NDArray[np.float32]] = deque(maxlen=KNOWN_SOUNDS)
        self._next: NDArray[np.float32] | None = None
        self._lasted = 0

    def is_changed(self, features: NDArray[np.float32], samples: NDArray[np.float32]) -> bool:
        """Return whether a new kind of sound has certainly begun by this window.

        The first sound of a stream is new. Silence never is.

        Args:
            features: (d_A,), the output of the audio encoder for the window.
            samples: (N,), the window.
        """
        length = float(np.linalg.norm(features))
        if float(np.dot(samples, samples)) < len(samples) * 10 ** (SILENCE_DBFS / 10) or not 0 < length < np.inf:
            self._next, self._lasted = None, 0
            return False
        window = features / np.float32(length)
        distances = [_compute_distance(window, known) for known in self._known]
        if distances and min(distances) < SOUND_DISTANCE:
            nearest = int(np.argmin(distances))
            known = (1 - _SHARE) * self._known[nearest] + _SHARE * window
            del self._known[nearest]
            self._known.append(known)
            self._next, self._lasted = None, 0
            return False
        if self._next is None or _compute_distance(window, self._next) > SOUND_DISTANCE:
            self._next, self._lasted = window, 0
        else:
            self._next = self._next + (window - self._next) / np.float32(self._lasted + 1)
        self._lasted += 1
        if self._lasted < SOUND_WINDOWS:
            return False
        self._known.append(self._next)
        self._next, self._lasted = None, 0
        return True


def _compute_distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Cosine distance, 0 to 2."""
    return 1 - float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
