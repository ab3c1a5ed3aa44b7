"""How well two runs of a graph agree, in order of severity, and how well they have to agree.

Masks come first, because users see them. Then follow the direction of every tensor (cosine) and its largest error. All
thresholds are in :data:`LIMITS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.labels import labels_of
from teso_deploy.types import BLANK_PIXEL_RATE, Precision

Arrays = Mapping[str, NDArray[Any]]
#: If no value of two tensors is larger than this, their directions are not compared.
NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The least agreement that passes. The default is the difference between two correct fp32 implementations.

    ``max_abs_error`` is in units of the tensor's largest value if that is above 1.
    """

    pixel_agreement: float = 0.999
    mask_iou: float = 0.995
    cosine: float = 0.9999
    max_abs_error: float = 5e-3


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits for a form of one precision.

    ``pytorch``: against PyTorch's outputs. ``canonical``: against the canonical graphs in the same
    runtime, each graph with equal inputs. ``pixel_rate``: allowed difference between the share of labelled pixels and
    the model's, for any sound. ``node``: if the error of a tensor, as a share of its largest value, is at least this,
    the node that computed the tensor is named.
    """

    pytorch: Thresholds
    canonical: Thresholds
    pixel_rate: float
    node: float

    @property
    def chain(self) -> Thresholds:
        """Thresholds for comparing masks with the canonical graphs' if each graph gets the outputs of the one before.

        A pixel at the edge of the masked attention may flip, so the limit of the largest error is the one for PyTorch.
        """
        return replace(self.canonical, max_abs_error=self.pytorch.max_abs_error)


FP32 = Thresholds()
#: The limits by the precision of a form. Rounding may move a pixel across the threshold, so the limits of masks
#: tolerate changed outlines, but not a missing object. Errors of features say little. In half precision and int8 their
#: limits only exclude nonsense.
LIMITS: Mapping[Precision, Limits] = {
    "fp32": Limits(FP32, Thresholds(0.999, 0.999, 0.9999, 1e-4), pixel_rate=0.002, node=1e-3),
    "fp16": Limits(Thresholds(0.99, 0.98, 0.999, 0.25), Thresholds(0.99, 0.98, 0.999, 0.25), 0.005, node=0.05),
    "bf16": Limits(Thresholds(0.98, 0.95, 0.995, 1.0), Thresholds(0.98, 0.95, 0.995, 1.0), 0.01, node=0.2),
    "int8": Limits(Thresholds(0.98, 0.95, 0.99, 1.0), Thresholds(0.98, 0.95, 0.99, 1.0), 0.01, node=0.5),
}
#: For untrained weights in less than fp32: masks only have to be numbers.
MEASURED_ONLY = Thresholds(0.0, 0.0, 0.0, float("inf"))


@dataclass(frozen=True, slots=True)
class GraphParity:
    """The agreement of two runs of a graph. If there are several tensors, the worst one counts.

    Only graphs that compute masks have mask figures. ``scale`` is the largest value of the tensor with the largest
    error, at least 1, and ``tensor`` its name.
    """

    cosine: float
    max_abs_error: float
    mask_iou: float | None = None
    pixel_agreement: float | None = None
    scale: float = 1.0
    tensor: str = ""

    def worst(self, limits: Thresholds) -> tuple[int, str] | None:
        """Return the most severe figure that misses its threshold: its severity (0 is a mask), and a description."""
        figures = (
            (0, "pixel agreement", self.pixel_agreement, limits.pixel_agreement, 1),
            (0, "mask IoU", self.mask_iou, limits.mask_iou, 1),
            (2, "cosine", self.cosine, limits.cosine, 1),
            (3, "largest error", self.max_abs_error, limits.max_abs_error * self.scale, -1),
        )
        for severity, name, value, limit, sign in figures:
            if value is not None and not sign * value >= sign * limit:  # NaN fails
                return severity, f"{name} {value:.6g}, {'at least' if sign > 0 else 'at most'} {limit:.4g} is needed"
        return None

    def failure(self, limits: Thresholds) -> str | None:
        """Describe the most severe figure that misses its threshold; None if none does."""
        found = self.worst(limits)
        return found[1] if found else None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "mask_iou": self.mask_iou,
            "pixel_agreement": self.pixel_agreement,
            "cosine": self.cosine,
            "max_abs_error": self.max_abs_error,
        }


def compare(ours: NDArray[Any], reference: NDArray[Any]) -> tuple[float, float]:
    """Return cosine and largest absolute error of two tensors; NaN if their shapes differ."""
    if ours.shape != reference.shape:
        return float("nan"), float("nan")
    a, b = ours.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    error = float(np.abs(a - b).max(initial=0.0))
    if max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0)) <= NOTHING:
        return 1.0, error
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return (float(a @ b) / norm if norm else 0.0), error


def compare_rows(ours: NDArray[np.float32], reference: NDArray[np.float32], threshold: float) -> tuple[float, float]:
    """Compare the labels of one frame, at four times the size of the scores.

    Args:
        ours: Class scores (C, h, w).
        reference: The model's class scores (C, h, w).
        threshold: The lowest probability (0 … 1) that gives a label.

    Returns:
        IoU, and the share of equal pixels. Two frames that both count as blank have an IoU of 1.
    """
    size = (reference.shape[1] * 4, reference.shape[2] * 4)
    left, right = labels_of(ours, size, threshold=threshold), labels_of(reference, size, threshold=threshold)
    equal = left == right
    union = np.count_nonzero((left > 0) | (right > 0))
    are_blank = max(np.count_nonzero(left), np.count_nonzero(right)) < BLANK_PIXEL_RATE * left.size
    iou = 1.0 if are_blank or not union else np.count_nonzero(equal & (left > 0)) / union
    return float(iou), float(equal.mean())


def compare_masks(ours: NDArray[Any], reference: NDArray[Any], threshold: float) -> tuple[float, float]:
    """Compare the labels of several frames; see :func:`compare_rows`.

    Args:
        ours: Class scores (B, C, h, w).
        reference: The model's class scores (B, C, h, w).
        threshold: The lowest probability (0 … 1) that gives a label.

    Returns:
        The lowest IoU and the lowest share of equal pixels of any frame. NaN if shapes differ or a score is not finite.
    """
    if ours.shape != reference.shape or not np.isfinite(ours).all():
        return float("nan"), float("nan")
    rows = [compare_rows(a, b, threshold) for a, b in zip(ours, reference, strict=True)]
    return min(iou for iou, _ in rows), min(equal for _, equal in rows)


def compare_tensors(ours: Arrays, reference: Arrays, threshold: float) -> GraphParity:
    """Compare tensors with the reference's tensors of the same name, and the labels of ``masks``.

    Args:
        ours: Outputs of a graph by name.
        reference: The model's tensors by name.
        threshold: The lowest probability (0 … 1) that gives a label.

    Returns:
        The agreement.
    """
    cosines, worst = [], GraphParity(1.0, -1.0)
    for name, value in ours.items():
        expected = reference[name]
        cosine, error = compare(value, expected)
        cosines.append(cosine)
        scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
        if not error / scale <= worst.max_abs_error / worst.scale:  # NaN is the worst
            worst = GraphParity(cosine, error, scale=scale, tensor=name)
        if np.isnan(error):
            break
    masks = compare_masks(ours["masks"], reference["masks"], threshold) if "masks" in ours else (None, None)
    return replace(worst, cosine=float(np.min(cosines)), mask_iou=masks[0], pixel_agreement=masks[1])
