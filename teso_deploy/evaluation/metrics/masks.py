"""Measures of masks, and the accumulators that metrics consist of."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from teso_deploy.types import BLANK_PIXEL_RATE


def compute_iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks (H, W); 1 if both are empty.

    >>> import numpy as np
    >>> compute_iou(np.array([[True, True, False]]), np.array([[False, True, True]]))
    0.3333333333333333
    """
    union = np.count_nonzero(predicted | truth)
    return float(np.count_nonzero(predicted & truth) / union) if union else 1.0


def is_blank(labels: NDArray[np.uint8]) -> bool:
    """Return whether a frame (H, W) has too few labelled pixels to count as labelled."""
    return bool(np.count_nonzero(labels) < BLANK_PIXEL_RATE * labels.size)


class Mean:
    """The mean of numbers as they come, in constant memory.

    The sum is exact, so that the mean depends neither on the order of the numbers nor on how they are batched.

    >>> mean = Mean()
    >>> for number in (0.25, 0.5, 1.0):
    ...     mean.add(number)
    >>> mean.value, mean.count
    (0.5833333333333334, 3)
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = Fraction(0)

    def add(self, number: float) -> None:
        """Add one number, which must be finite."""
        self._sum += Fraction(number)
        self.count += 1

    @property
    def value(self) -> float | None:
        """The mean; None if there are no numbers."""
        return float(self._sum / self.count) if self.count else None
