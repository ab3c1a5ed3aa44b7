"""Audio control: do the masks of a form follow the sound as the model's do?

The reference's picture is segmented with silence, noise, and the sound of another object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.labels import labels_of
from teso_deploy.program import EXTERNAL_TENSORS
from teso_deploy.types import BLANK_PIXEL_RATE, WINDOW_SAMPLES, ImageSize
from teso_deploy.verification.parity import Arrays, Limits, compare_rows
from teso_deploy.verification.probes import ROWS

NOISE_DBFS = (-40, -25, -10)
#: Sounds whose masks are in the reference → their row.
STORED = {name: ROWS.index(name) for name in ("own", "other", "muted")}
SOUNDS = (*STORED, *(f"noise {level} dBFS" for level in NOISE_DBFS))
#: Sounds for which the masks of a trained model are blank.
BLANK_SOUNDS = tuple(name for name in SOUNDS if name.startswith(("muted", "noise")))


def make_control_inputs(reference: Arrays) -> dict[str, NDArray[Any]]:
    """Return the sounds (S, 15600) in the order of :data:`SOUNDS`, each with its cues.

    For a program that looks at N past windows they are (S, N + 1, 15600).

    A stored sound keeps the cues of its row, because PyTorch's masks of that row were made with them. The noise is the
    same in each call. It has the cues of the row "own".
    """
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(WINDOW_SAMPLES) * 10 ** (level / 20) for level in NOISE_DBFS]
    stored = [reference["waveform"][row] for row in STORED.values()]
    noise = [np.broadcast_to(samples, stored[0].shape) for samples in noise]
    rows = [*STORED.values(), *(STORED["own"] for _ in NOISE_DBFS)]
    cues = {name: reference[name][rows] for name in EXTERNAL_TENSORS["cues"] if name in reference}
    return {"waveform": np.stack([*stored, *noise]).clip(-1, 1).astype(np.float32), **cues}


@dataclass(frozen=True, slots=True)
class Heard:
    """The result of one sound for one form and one picture size: the labelled pixels of the form and of the model.

    If the reference has no masks for the sound, ``model_rate`` and ``mask_iou`` are None.
    """

    form: str
    size: ImageSize
    is_first_size: bool
    sound: str
    positive_pixel_rate: float
    model_rate: float | None
    mask_iou: float | None
    must_be_blank: bool
    pixel_rate_limit: float
    mask_iou_limit: float

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "positive_pixel_rate": self.positive_pixel_rate,
            "model_rate": self.model_rate,
            "mask_iou": self.mask_iou,
            "must_be_blank": self.must_be_blank,
            "passed": self.failure is None,
        }

    @property
    def failure(self) -> str | None:
        """Describe in words what is wrong; None if nothing is."""
        where = f"audio control ({self.form}): {self.sound}"
        leaves = f"leaves {self.positive_pixel_rate:.1%} of the pixels labelled"
        if self.must_be_blank and not self.positive_pixel_rate < BLANK_PIXEL_RATE:
            return f"{where} {leaves}, none may be"
        if self.model_rate is None or self.mask_iou is None:
            return None
        if not abs(self.positive_pixel_rate - self.model_rate) <= self.pixel_rate_limit:
            return (
                f"{where} {leaves}, {self.model_rate:.1%} in the model: it reacts to sound in another way than the "
                "model"
            )
        if not self.mask_iou >= self.mask_iou_limit:
            return f"{where} gives another mask than in the model (IoU {self.mask_iou:.4g})"
        return None


def rate_of(scores: NDArray[Any], threshold: float) -> float:
    """Return the share of labelled pixels of scores (C, h, w), at four times their size.

    NaN if a score is not a number.
    """
    if not np.isfinite(scores).all():
        return float("nan")
    labels = labels_of(scores, (scores.shape[1] * 4, scores.shape[2] * 4), threshold=threshold)
    return float(np.count_nonzero(labels)) / labels.size


def control(
    form: str,
    *,
    size: ImageSize,
    is_first_size: bool,
    heard: NDArray[Any],
    model: Sequence[NDArray[Any] | None],
    threshold: float,
    is_trained: bool,
    limits: Limits,
    least_mask_iou: float,
) -> list[Heard]:
    """Compare the masks of every sound of :data:`SOUNDS` with the model's, if the model's are known.

    Args:
        form: Name of the form.
        size: Height and width of the picture.
        is_first_size: Whether this is the bundle's first size.
        heard: Masks (S, C, h, w) of the form.
        model: Masks (C, h, w) of the model; None for sounds that the reference has no masks of.
        threshold: The lowest probability (0 … 1) that gives a label.
        is_trained: Whether the model is trained. Only then silence and noise must give blank masks.
        limits: The limits of the form's precision.
        least_mask_iou: The least IoU with the model's masks; 0 if masks are only measured.

    Returns:
        One result per sound.
    """
    # Masks of untrained weights are only measured, as in the parity check.
    rate_limit = limits.pixel_rate if least_mask_iou > 0 else float("inf")
    return [
        Heard(
            form,
            size,
            is_first_size,
            name,
            rate_of(scores, threshold),
            None if expected is None else rate_of(expected, threshold),
            None if expected is None else compare_rows(scores, expected, threshold)[0],
            is_trained and name in BLANK_SOUNDS,
            rate_limit,
            least_mask_iou,
        )
        for name, scores, expected in zip(SOUNDS, heard, model, strict=True)
    ]
