"""From class scores at stride 4 to labels at the size of the frame."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

#: Lower tap, upper tap, weight of the upper one, for each place of an axis.
Taps = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


@functools.lru_cache(maxsize=32)
def _taps(source: int, target: int, share: float) -> Taps:
    """Bilinear taps of an axis of which a share holds the picture: half-pixel centres, edges clamped."""
    place = (np.arange(target) + 0.5) * (source * share / target) - 0.5
    last = math.ceil(source * share) - 1
    place = place.clip(0, last)
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, last)
    return lower, upper, (place - lower).astype(np.float32)


def _mix(scores: NDArray[np.float32], rows: Taps, columns: Taps) -> NDArray[np.float32]:
    top, bottom, down = rows
    left, right, along = columns
    # Columns first: at that point there are few rows.
    wide = scores[:, left] + (scores[:, right] - scores[:, left]) * along
    return wide[top] + (wide[bottom] - wide[top]) * down[:, None]


def _reached(taps: Taps, hit: NDArray[np.bool_]) -> slice:
    """The places of an axis, from the first to the last, that touch a tap which is hit."""
    places = np.flatnonzero(hit[taps[0]] | hit[taps[1]])
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _part(taps: Taps, places: slice) -> Taps:
    return taps[0][places], taps[1][places], taps[2][places]


def labels_of(
    scores: NDArray[np.float32],
    size: tuple[int, int],
    threshold: float,
    shares: tuple[float, float] = (1.0, 1.0),
) -> NDArray[np.uint8]:
    """(C, h, w) → (height, width) uint8: 1 + argmax where the upsampled maximum ≥ threshold, else 0.

    ``shares``: of the scores' height and width, from the top and the left, that show the picture;
    the rest is padding. Bilinear with half-pixel centres. A mix never exceeds what it is mixed from, so only
    classes that reach the threshold at stride 4 are upsampled, and only around where they do.
    """
    rows = _taps(scores.shape[1], size[0], shares[0])
    columns = _taps(scores.shape[2], size[1], shares[1])
    labels = np.zeros(size, np.uint8)
    best = np.full(size, -np.inf, np.float32)
    for index, score in enumerate(scores):
        hit = score >= threshold
        if not hit.any():
            continue
        where = (_reached(rows, hit.any(axis=1)), _reached(columns, hit.any(axis=0)))
        large = _mix(score, _part(rows, where[0]), _part(columns, where[1]))
        # Strictly: of equal scores the first class wins, as argmax has it.
        better = (large >= threshold) & (large > best[where])
        labels[where][better] = index + 1
        best[where][better] = large[better]
    return labels
