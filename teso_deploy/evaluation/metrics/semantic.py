"""mIoU and F-score of semantic masks, as AVSBench-semantic (Zhou et al., IJCV 2024) defines them.

IoU and F of a class are averaged over the frames in which the class is predicted or true. The mean over the classes
includes the background. A class that occurs in no frame counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.metrics.binary import BETA_SQUARED


class SemanticScores:
    """Adds up IoU and F-score of every class, frame by frame.

    ``miou`` and ``f_score`` are the published numbers. ``miou_without_background`` omits class 0. The published program
    omits the *last* class where it says "without background" (``[:-1]``), a mistake that ``repeat_mistakes`` repeats as
    ``miou_no_bg`` and ``f_score_no_bg``. ``unbiased_miou`` averages only the classes that occur.

    Args:
        classes: How many classes there are, with the background as class 0. AVSS has 71.
        repeat_mistakes: Whether the two mistaken numbers are given too.
    """

    def __init__(self, classes: int = 71, *, repeat_mistakes: bool = False) -> None:
        self._classes, self._repeat_mistakes = classes, repeat_mistakes
        self._iou_sums, self._f_sums = np.zeros(classes), np.zeros(classes)
        self._frames_with = np.zeros(classes, np.int64)
        self._frames = 0

    def add(self, labels: ArrayLike, truth: ArrayLike) -> None:
        """Add frames.

        Args:
            labels: (N, H, W), the predicted class of each pixel.
            truth: (N, H, W), its true class.

        Raises:
            DataError: The shapes differ, or a class is outside of the range.
        """
        predicted, true = np.asarray(labels), np.asarray(truth)
        if predicted.ndim != 3 or predicted.shape != true.shape:
            raise DataError(f"labels are {predicted.shape} and their truth {true.shape}: both must be (N, H, W)")
        for one, other in zip(predicted, true, strict=True):
            self._add_frame(self._check_classes(one), self._check_classes(other))

    def _check_classes(self, labels: NDArray[np.integer]) -> NDArray[np.int64]:
        if labels.size and not 0 <= labels.min() <= labels.max() < self._classes:
            raise DataError(f"classes are {labels.min()} to {labels.max()}: they must be 0 to {self._classes - 1}")
        return labels.ravel().astype(np.int64)

    def _add_frame(self, predicted: NDArray[np.int64], true: NDArray[np.int64]) -> None:
        intersection = np.bincount(true[predicted == true], minlength=self._classes)
        found = np.bincount(predicted, minlength=self._classes)
        there = np.bincount(true, minlength=self._classes)
        union = found + there - intersection
        self._iou_sums += intersection / np.maximum(union, 1)
        below = BETA_SQUARED * there + found
        # (1 + β²) P R / (β² P + R) with P = I / found and R = I / there. Without an intersection it is 0.
        self._f_sums += np.divide(
            (1 + BETA_SQUARED) * intersection, below, out=np.zeros(self._classes), where=intersection > 0
        )
        self._frames_with += union > 0
        self._frames += 1

    def values(self) -> dict[str, float | None]:
        """The scores by name; None if no frame was added."""
        ious, f_scores = self.class_ious(), self.class_f_scores()
        occurs = self._frames_with > 0
        values = {
            "miou": ious.mean(),
            "f_score": f_scores.mean(),
            "miou_without_background": ious[1:].mean(),
            "f_score_without_background": f_scores[1:].mean(),
            "unbiased_miou": ious[occurs].mean() if occurs.any() else np.nan,
            "unbiased_f_score": f_scores[occurs].mean() if occurs.any() else np.nan,
        }
        if self._repeat_mistakes:
            values |= {"miou_no_bg": ious[:-1].mean(), "f_score_no_bg": f_scores[:-1].mean()}
        return {name: float(value) if self._frames else None for name, value in values.items()}

    def class_ious(self) -> NDArray[np.float64]:
        """The mean IoU of each class (classes,), 0 for one that does not occur."""
        return self._iou_sums / np.maximum(self._frames_with, 1)

    def class_f_scores(self) -> NDArray[np.float64]:
        """The mean F-score of each class (classes,), 0 for one that does not occur."""
        return self._f_sums / np.maximum(self._frames_with, 1)

    def name_classes(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return IoU and F-score by the names of the classes that occur; ``names`` begins with the background."""
        occurring = [int(k) for k in np.flatnonzero(self._frames_with)]
        return {
            "miou": {names[k]: float(self.class_ious()[k]) for k in occurring},
            "f_score": {names[k]: float(self.class_f_scores()[k]) for k in occurring},
        }

    def class_sums(self, names: Sequence[str]) -> dict[str, dict[str, tuple[float, int]]]:
        """Return the sums that :meth:`name_classes` divides, and how many frames each is over."""
        occurring = [int(k) for k in np.flatnonzero(self._frames_with)]
        sums = {"class_ious": self._iou_sums, "class_f_scores": self._f_sums}
        return {
            name: {names[k]: (float(of_class[k]), int(self._frames_with[k])) for k in occurring}
            for name, of_class in sums.items()
        }
