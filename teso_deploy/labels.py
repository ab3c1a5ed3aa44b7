"""Turn class scores at stride 4 into labels or scores of the frame's size."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

#: Lower tap, upper tap, weight of the upper one, for each place of an axis.
Taps = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


@functools.lru_cache(maxsize=32)
def _compute_taps(extent: float, target: int) -> Taps:
    """Compute the bilinear taps of an axis, with half-pixel centres and clamped edges.

    ``extent``: how many of the scores show the picture. The last one may do so in part.
    """
    place = (np.arange(target) + 0.5) * (extent / target) - 0.5
    last = math.ceil(extent) - 1
    place = place.clip(0, last)
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, last)
    return lower, upper, (place - lower).astype(np.float32)


def _mix(scores: NDArray[np.float32], rows: Taps, columns: Taps) -> NDArray[np.float32]:
    top, bottom, down = rows
    left, right, along = columns
    # Interpolate along the columns first, because there are fewer rows before the upsampling.
    wide = scores[:, left] + (scores[:, right] - scores[:, left]) * along
    return wide[top] + (wide[bottom] - wide[top]) * down[:, None]


def _find_reached(taps: Taps, hit: NDArray[np.bool_]) -> slice:
    """Return the range of positions on an axis that are interpolated from a score at or above the threshold."""
    places = np.flatnonzero(hit[taps[0]] | hit[taps[1]])
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _cut_taps(taps: Taps, places: slice) -> Taps:
    return taps[0][places], taps[1][places], taps[2][places]


def cut_padding(
    scores: NDArray[np.float32], shares: tuple[float, float]
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Cut class scores (C, h, w) to those that show the picture.

    Args:
        scores: (C, h, w) float32.
        shares: The shares of the scores' height and width, from the top and the left, that show the picture.

    Returns:
        A view of the scores, and how many of its rows and columns show the picture. The last row and column may do so
        in part: 33.75 of 34 rows.
    """
    extent = scores.shape[1] * shares[0], scores.shape[2] * shares[1]
    return scores[:, : math.ceil(extent[0]), : math.ceil(extent[1])], extent


def resize_scores(
    scores: NDArray[np.float32], size: tuple[int, int], *, extent: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Upsample class scores as :func:`labels_of` does, without a threshold.

    Args:
        scores: (C, h, w) float32.
        size: (height, width) of the result.
        extent: How many rows and columns of the scores show the picture. Default: all.

    Returns:
        (C, height, width) float32.
    """
    large = np.empty((len(scores), *size), np.float32)
    for index, score in enumerate(_resize_each(scores, size, extent)):
        large[index] = score
    return large


def resize_highest(
    scores: NDArray[np.float32], size: tuple[int, int], *, extent: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Return the highest of the class scores that :func:`resize_scores` returns, with one class at a time in memory.

    Args:
        scores: (C, h, w) float32.
        size: (height, width) of the result.
        extent: How many rows and columns of the scores show the picture. Default: all.

    Returns:
        (height, width) float32.
    """
    each = _resize_each(scores, size, extent)
    highest = next(each).copy()
    for score in each:
        np.maximum(highest, score, out=highest)
    return highest


def _resize_each(
    scores: NDArray[np.float32], size: tuple[int, int], extent: tuple[float, float] | None
) -> Iterator[NDArray[np.float32]]:
    rows_shown, columns_shown = extent or scores.shape[1:]
    rows, columns = _compute_taps(float(rows_shown), size[0]), _compute_taps(float(columns_shown), size[1])
    for score in scores:
        yield _mix(score, rows, columns)


def labels_of(
    scores: NDArray[np.float32],
    size: tuple[int, int],
    *,
    threshold: float,
    shares: tuple[float, float] = (1.0, 1.0),
) -> NDArray[np.uint8]:
    """Upsample class scores and return labels: 1 + argmax where the maximum ≥ threshold, else 0.

    The interpolation is bilinear with half-pixel centres. An interpolated value never exceeds the values around it. So
    only classes that reach the threshold at stride 4 are upsampled, and only around the places where they do.

    Args:
        scores: (C, h, w) float32.
        size: (height, width) of the labels.
        threshold: The lowest score of a label.
        shares: The shares of the scores' height and width, from the top and the left, that show the picture. The rest
            is padding. Default: all.

    Returns:
        (height, width) uint8.
    """
    rows = _compute_taps(scores.shape[1] * shares[0], size[0])
    columns = _compute_taps(scores.shape[2] * shares[1], size[1])
    labels = np.zeros(size, np.uint8)
    best = np.full(size, -np.inf, np.float32)
    for index, score in enumerate(scores):
        hit = score >= threshold
        if not hit.any():
            continue
        where = (_find_reached(rows, hit.any(axis=1)), _find_reached(columns, hit.any(axis=0)))
        large = _mix(score, _cut_taps(rows, where[0]), _cut_taps(columns, where[1]))
        # ">", not ">=": of equal scores the first class wins, as with argmax.
        better = (large >= threshold) & (large > best[where])
        labels[where][better] = index + 1
        best[where][better] = large[better]
    return labels
