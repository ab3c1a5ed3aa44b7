"""FSLA, the frame-level accuracy of sound localisation of AVIS (Guo et al., CVPR 2025).

A frame is right at α if the predicted classes are the true ones and the IoU of each class's mask is above α. The
accuracy is averaged over α = 0.05 … 0.95. AVIS tracks instances; here a class has one mask, so classes and number of
masks agree together.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teso_deploy.errors import DataError
from teso_deploy.types import BLANK_PIXEL_RATE

#: The kinds of frames: in n nothing sounds, in s one class, in m several.
SourceCount = Literal["n", "s", "m"]
#: The thresholds are computed as in the published program: other roundings would decide ties differently.
ALPHAS = np.arange(0.05, 0.99, 0.05)


class FslaScores:
    """Adds up ``fsla`` and, by how many classes sound, ``fsla_n``, ``fsla_s`` and ``fsla_m``.

    Args:
        least_share: A class with a smaller share of the pixels counts as not predicted. Default: the share below which
            a frame counts as blank. 0 counts every pixel.
    """

    def __init__(self, *, least_share: float = BLANK_PIXEL_RATE) -> None:
        self._least_share = least_share
        self._right = {count: np.zeros(len(ALPHAS), np.int64) for count in get_args(SourceCount)}
        self._frames: dict[str, int] = dict.fromkeys(get_args(SourceCount), 0)

    def add(self, labels: ArrayLike, truth: ArrayLike) -> None:
        """Add frames: predicted and true classes (N, H, W), 0 is the background. Raises :class:`DataError`."""
        predicted, true = np.asarray(labels), np.asarray(truth)
        if predicted.ndim != 3 or predicted.shape != true.shape:
            raise DataError(f"labels are {predicted.shape} and their truth {true.shape}: both must be (N, H, W)")
        for one, other in zip(predicted, true, strict=True):
            self._add_frame(one, other)

    def _add_frame(self, predicted: NDArray[np.integer], true: NDArray[np.integer]) -> None:
        sounding = set(np.unique(true).tolist()) - {0}
        count: SourceCount = "n" if not sounding else "s" if len(sounding) == 1 else "m"
        self._frames[count] += 1
        values, areas = np.unique(predicted, return_counts=True)
        least = self._least_share * predicted.size
        found = {int(value) for value, area in zip(values, areas, strict=True) if value and area >= least}
        if found != sounding:
            return
        ious = [_compute_class_iou(predicted == k, true == k) for k in sorted(sounding)]
        self._right[count] += np.all(np.array(ious)[:, None] > ALPHAS, axis=0) if ious else 1

    def values(self) -> dict[str, float | None]:
        """The accuracies by name; None for a kind of frame that did not occur."""
        kinds = {
            f"fsla_{count}": float(np.mean(self._right[count] / frames)) if frames else None
            for count, frames in self._frames.items()
        }
        frames = sum(self._frames.values())
        right = sum(self._right.values(), np.zeros(len(ALPHAS), np.int64))
        return {"fsla": float(np.mean(right / frames)) if frames else None, **kinds}


def _compute_class_iou(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(predicted & true) / np.count_nonzero(predicted | true))
