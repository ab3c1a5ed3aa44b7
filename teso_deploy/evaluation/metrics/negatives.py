"""Measures for sounds that belong to nothing in the picture: what is predicted is false.

FPR is that of AVSBench-Robust (Li et al., 2025), S that of the null set of Ref-AVS (Wang et al., ECCV 2024). pIA,
AUC_N and F are those of sound localisation with negative audio (Juanola et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.metrics.masks import Mean
from teso_deploy.types import BLANK_PIXEL_RATE

#: The levels at which the curves of pIA and IoU are read.
LEVELS = np.arange(21) / 20


class NegativeScores:
    """Adds up the measures of frames whose truth is blank.

    ``fpr``: the mean share of pixels that are predicted. ``s``: the root of the share of predicted pixels in a batch,
    averaged over batches; 1 % false pixels give 0.1. ``auc_n``: the area below the curve of the share of frames whose
    predicted share is at most t. ``blank_rate``: the share of frames with less than 0.2 % of predicted pixels.
    ``pia`` is the same number as ``fpr``, under the name that sound localisation uses.
    """

    def __init__(self) -> None:
        self._share, self._root, self._blank = Mean(), Mean(), Mean()
        self._at_most = np.zeros(len(LEVELS), np.int64)

    def add(self, predicted: ArrayLike) -> None:
        """Add a batch of predicted masks (N, H, W), nonzero where something sounds. Raises :class:`DataError`."""
        masks = _check_masks(predicted)
        if not len(masks):
            return
        shares = masks.mean(axis=(1, 2))
        self._root.add(float(np.sqrt(masks.mean())))
        for share in shares:
            self._share.add(float(share))
            self._blank.add(bool(share < BLANK_PIXEL_RATE))
        self._at_most += (shares[:, None] <= LEVELS).sum(axis=0)

    def values(self) -> dict[str, float | None]:
        """The measures by name; None if no frame was added."""
        frames = self._share.count
        return {
            "fpr": self._share.value,
            "s": self._root.value,
            "pia": self._share.value,
            "auc_n": _integrate(self._at_most / frames) if frames else None,
            "blank_rate": self._blank.value,
        }


class PositiveIous:
    """Adds up ``auc``, the area below the curve of the share of frames whose IoU is at least t."""

    def __init__(self) -> None:
        self._frames = 0
        self._at_least = np.zeros(len(LEVELS), np.int64)

    def add(self, predicted: ArrayLike, truth: ArrayLike) -> None:
        """Add a batch of predicted and true masks (N, H, W). Raises :class:`DataError`."""
        masks, true = _check_masks(predicted), _check_masks(truth)
        if masks.shape != true.shape:
            raise DataError(f"masks are {masks.shape} and their truth {true.shape}: they must agree")
        union = (masks | true).sum(axis=(1, 2))
        ious = np.where(union > 0, (masks & true).sum(axis=(1, 2)) / np.maximum(union, 1), 1.0)
        self._at_least += (ious[:, None] >= LEVELS).sum(axis=0)
        self._frames += len(masks)

    def values(self) -> dict[str, float | None]:
        """The area under the curve; None if no frame was added."""
        return {"auc": _integrate(self._at_least / self._frames) if self._frames else None}


def combine_auc(auc: float, negatives: Sequence[float]) -> float:
    """Return F: the harmonic mean of AUC and of the mean AUC_N over the kinds of negative sound.

    One threshold must have been used for positives and negatives.

    >>> combine_auc(0.5, [1.0, 1.0, 1.0])
    0.6666666666666666
    """
    mean = float(np.mean(negatives))
    return 2 * auc * mean / (auc + mean) if auc + mean > 0 else 0.0


def _integrate(curve: NDArray[np.float64]) -> float:
    """Integrate a curve over ``LEVELS`` by the trapezoidal rule."""
    return float(((curve[1:] + curve[:-1]) / 2 * np.diff(LEVELS)).sum())


def _check_masks(masks: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(masks)
    if array.ndim != 3:
        raise DataError(f"masks are {array.shape}: they must be (N, H, W)")
    return array != 0
