"""From class scores at stride 4 to labels at the size of the frame."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

#: Lower tap, upper tap, weight of the upper one, for each place of an axis.
Taps = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


@functools.lru_cache(maxsize=32)
def _taps(source: int, target: int) -> Taps:
    """Bilinear taps of an axis: half-pixel centres, edges clamped."""
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    place = place.clip(0, source - 1)
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, source - 1)
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


def labels_of(scores: NDArray[np.float32], size: tuple[int, int], threshold: float) -> NDArray[np.uint8]:
    """(C, h, w) → (height, width) uint8: 1 + argmax where the upsampled maximum ≥ threshold, else 0.

    Bilinear with half-pixel centres. A mix never exceeds what it is mixed from, so only
    classes that reach the threshold at stride 4 are upsampled, and only around where they do.
    """
    rows, columns = _taps(scores.shape[1], size[0]), _taps(scores.shape[2], size[1])
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
