"""mIoU and F-score of binary masks, as the published programs of the field compute them.

All of them share two peculiarities. A frame whose truth is blank scores the share of pixels that are predicted as
background, so a small false mask costs almost nothing. And the F-score is the maximum of a curve that is averaged over
the frames of a *batch*, so it depends on how videos are batched. A definition names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.metrics.masks import Mean
from teso_deploy.types import ImageSize

#: β² of the F-score in all published programs.
BETA_SQUARED = 0.3
_IOU_EPSILON, _F_EPSILON = 1e-7, 1e-20


def _list_thresholds() -> NDArray[np.float32]:
    """List the 255 thresholds, bit for bit those of ``torch.linspace(0, 1 - 1e-10, 255)`` in float32.

    PyTorch computes the lower half from the start and the upper half from the end, each with one rounding.
    """
    count, end = 255, np.float32(1 - 1e-10)
    step, number = float(end / np.float32(count - 1)), np.arange(count)
    return np.where(number < count // 2, step * number, end - step * (count - 1 - number)).astype(np.float32)


THRESHOLDS = _list_thresholds()


@dataclass(frozen=True, slots=True)
class BinaryDefinition:
    """How a published program scores binary masks.

    Attributes:
        name: The name for ``--protocol``.
        title: Where it is from, in a few words.
        size: Height and width, in pixels, at which masks are compared.
        threshold: A pixel is predicted if its probability is above this.
        videos_per_batch: How many videos form a batch.
        is_micro: Whether pixels are added up over the whole data set before they are divided.
    """

    name: str
    title: str
    size: ImageSize = (224, 224)
    threshold: float = 0.5
    videos_per_batch: int = 1
    is_micro: bool = False


#: Every definition by its name.
BINARY_DEFINITIONS: Mapping[str, BinaryDefinition] = {
    definition.name: definition
    for definition in (
        BinaryDefinition("avsbench", "AVSBench (Zhou et al., ECCV 2022)"),
        BinaryDefinition("gewu", "the code of GAVS, Ref-AVS and TeSO", (256, 256), 0.4, 4),
        BinaryDefinition("combo", "COMBO (Yang et al., CVPR 2024)"),
        BinaryDefinition("dataset-micro", "pixels of the whole data set", is_micro=True),
    )
}


@dataclass(frozen=True, slots=True)
class BatchScore:
    """The scores of one batch, 0 … 1."""

    miou: float
    f_score: float


@dataclass(frozen=True, slots=True)
class _Counts:
    """Pixel counts of a batch of N frames.

    ``hits`` and ``found`` are (N, 255): true and all pixels at or above each threshold.
    """

    pixels: int
    intersection: NDArray[np.int64]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    hits: NDArray[np.int64]
    found: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        return self.predicted + self.truth - self.intersection

    @property
    def has_truth(self) -> NDArray[np.bool_]:
        return self.truth > 0


def score_batch(logits: ArrayLike, truth: ArrayLike, *, protocol: str = "avsbench") -> BatchScore:
    """Score one batch of frames.

    Args:
        logits: (N, H, W), before the sigmoid.
        truth: (N, H, W), nonzero where something sounds.
        protocol: A name of ``BINARY_DEFINITIONS``. Default: ``avsbench``.

    Returns:
        The scores. ``f_score`` is 0 if the truth of every frame is blank, as in AVSBench's code.

    Raises:
        DataError: The shapes differ, a logit is NaN, or the protocol is unknown.

    >>> score_batch([[[4.0, -4.0]]], [[[1, 0]]]).miou
    0.9999999000000099
    """
    return score_probabilities(apply_sigmoid(logits), truth, protocol=protocol)


def score_probabilities(probabilities: ArrayLike, truth: ArrayLike, *, protocol: str = "avsbench") -> BatchScore:
    """Score one batch of probabilities, as :func:`score_batch` scores logits.

    Args:
        probabilities: (N, H, W) in [0, 1].
        truth: (N, H, W), nonzero where something sounds.
        protocol: A name of ``BINARY_DEFINITIONS``. Default: ``avsbench``.
    """
    scores = BinaryScores(find_definition(protocol))
    scores.add(probabilities, truth)
    values = scores.values()
    return BatchScore(values["miou"] or 0.0, values["f_score"] or 0.0)


def find_definition(name: str) -> BinaryDefinition:
    """Return a definition by its name. Raises :class:`DataError`."""
    if name not in BINARY_DEFINITIONS:
        raise DataError(f"unknown protocol {name!r} for binary masks: name one of {', '.join(BINARY_DEFINITIONS)}")
    return BINARY_DEFINITIONS[name]


def apply_sigmoid(logits: ArrayLike) -> NDArray[np.float32]:
    """Turn logits into probabilities, in float32 as the published programs do."""
    values = np.asarray(logits, np.float32)
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-values))).astype(np.float32)


class BinaryScores:
    """Adds up mIoU and F-score, batch by batch.

    Besides the published numbers it computes corrected ones, which depend neither on the batches nor on the size of a
    blank frame: ``unbiased_miou`` is the mean over all frames, where a blank frame scores 1 if nothing is predicted and
    0 otherwise. ``unbiased_f_score`` is the maximum of the curve averaged over all frames that have a truth.
    """

    def __init__(self, definition: BinaryDefinition) -> None:
        self.definition = definition
        self._miou, self._f_score, self._frame_iou = Mean(), Mean(), Mean()
        self._curve, self._curve_frames = np.zeros(len(THRESHOLDS)), 0
        self._intersection, self._union, self._truth = 0, 0, 0
        self._hits, self._found = np.zeros(len(THRESHOLDS), np.int64), np.zeros(len(THRESHOLDS), np.int64)

    def add(self, probabilities: ArrayLike, truth: ArrayLike) -> None:
        """Add a batch.

        Args:
            probabilities: (N, H, W) in [0, 1].
            truth: (N, H, W), nonzero where something sounds.

        Raises:
            DataError: The shapes differ, or a probability is NaN or outside of [0, 1].
        """
        counts = _count_pixels(probabilities, truth, self.definition.threshold)
        if not len(counts.truth):
            return
        self._miou.add(float(np.mean(_compute_published_ious(counts))))
        for iou in _compute_frame_ious(counts):
            self._frame_iou.add(float(iou))
        curves = compute_f_curve(counts.hits, counts.found, counts.truth[:, None])[counts.has_truth]
        self._f_score.add(float(curves.mean(axis=0).max()) if len(curves) else 0.0)
        self._curve += curves.sum(axis=0)
        self._curve_frames += len(curves)
        self._intersection += int(counts.intersection.sum())
        self._union += int(counts.union.sum())
        self._truth += int(counts.truth.sum())
        self._hits += counts.hits.sum(axis=0)
        self._found += counts.found.sum(axis=0)

    def values(self) -> dict[str, float | None]:
        """The scores by name; None if no batch was added."""
        published = self._micro_values() if self.definition.is_micro else (self._miou.value, self._f_score.value)
        unbiased = float(self._curve.max() / self._curve_frames) if self._curve_frames else None
        return {
            "miou": published[0],
            "f_score": published[1],
            "unbiased_miou": self._frame_iou.value,
            "unbiased_f_score": unbiased,
        }

    def _micro_values(self) -> tuple[float | None, float | None]:
        if not self._miou.count:
            return None, None
        miou = self._intersection / self._union if self._union else 1.0
        return miou, float(compute_f_curve(self._hits, self._found, np.int64(self._truth)).max())


def _compute_published_ious(counts: _Counts) -> NDArray[np.float64]:
    """IoU of each frame. A frame without a truth scores its share of background pixels."""
    background = counts.pixels - counts.predicted
    intersection = np.where(counts.has_truth, counts.intersection, background)
    union = np.where(counts.has_truth, counts.union, counts.pixels)
    return intersection / (union + _IOU_EPSILON)


def _compute_frame_ious(counts: _Counts) -> NDArray[np.float64]:
    """IoU of each frame; 1 if truth and prediction are both blank."""
    return np.where(counts.union > 0, counts.intersection / np.maximum(counts.union, 1), 1.0)


def compute_f_curve(
    hits: NDArray[np.int64], found: NDArray[np.int64], truth: NDArray[np.int64] | np.int64
) -> NDArray[np.float64]:
    """Compute the F-score at each threshold.

    Args:
        hits: (..., 255), how many true pixels are found at each threshold.
        found: (..., 255), how many pixels are found.
        truth: How many pixels are true, broadcast against ``hits``.

    Returns:
        (..., 255) in [0, 1], 0 where nothing true is found.
    """
    precision, recall = hits / (found + _F_EPSILON), hits / (truth + _F_EPSILON)
    below = BETA_SQUARED * precision + recall
    return np.divide((1 + BETA_SQUARED) * precision * recall, below, out=np.zeros_like(below), where=below > 0)


def _count_pixels(probabilities: ArrayLike, truth: ArrayLike, threshold: float) -> _Counts:
    values, true = np.asarray(probabilities, np.float32), np.asarray(truth) != 0
    if values.ndim != 3 or values.shape != true.shape:
        raise DataError(f"predictions are {values.shape} and their truth {true.shape}: both must be (N, H, W)")
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError("a probability is NaN or outside of 0 … 1: give logits to score_batch, or apply the sigmoid")
    predicted = values > np.float32(threshold)
    frames = [_count_thresholds(value, mask) for value, mask in zip(values, true, strict=True)]
    shape = (len(values), len(THRESHOLDS))
    return _Counts(
        pixels=values[0].size if len(values) else 0,
        intersection=np.count_nonzero(predicted & true, axis=(1, 2)),
        predicted=np.count_nonzero(predicted, axis=(1, 2)),
        truth=np.count_nonzero(true, axis=(1, 2)),
        hits=np.array([hits for hits, _ in frames], np.int64).reshape(shape),
        found=np.array([found for _, found in frames], np.int64).reshape(shape),
    )


def _count_thresholds(
    values: NDArray[np.float32], true: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the true pixels and all pixels of a frame at or above each threshold.

    A histogram of how many thresholds each pixel reaches replaces 255 comparisons of the picture.
    """
    reached = np.searchsorted(THRESHOLDS, values.ravel(), side="right")
    bins = len(THRESHOLDS) + 1
    found = np.bincount(reached, minlength=bins)
    hits = np.bincount(reached[true.ravel()], minlength=bins)
    # A pixel that reaches k thresholds is at or above the first k of them.
    return hits[::-1].cumsum()[::-1][1:], found[::-1].cumsum()[::-1][1:]
