"""The published measures as metrics of clips: each adapts an accumulator of :mod:`teso_deploy.evaluation.metrics`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.evaluation.clip_trials import ClipTrial
from teso_deploy.evaluation.contracts import Answered, Prediction
from teso_deploy.evaluation.metrics import (
    BinaryDefinition,
    BinaryScores,
    CuePrecision,
    FslaScores,
    Mean,
    NegativeScores,
    PositiveIous,
    SemanticScores,
    compute_iou,
    is_blank,
)
from teso_deploy.types import ImageSize

Batch = Sequence[Answered[ClipTrial]]
#: The size at which AVSBench's program compares classes. It resizes truth to the nearest pixel.
SEMANTIC_SIZE: ImageSize = (224, 224)


def _list_answers(batch: Batch) -> Iterator[tuple[ClipTrial, Prediction]]:
    return (answer for sample in batch for answer in sample)


def resize_mask(mask: NDArray[np.uint8], size: ImageSize) -> NDArray[np.uint8]:
    """Resize a mask to a height and width by taking the nearest pixels."""
    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def get_foreground(prediction: Prediction) -> NDArray[np.float32]:
    """Return the probability (h, w) that anything sounds at a pixel: the largest of all classes."""
    assert prediction.probabilities is not None, "the predictor of a binary protocol gives probabilities"
    foreground: NDArray[np.float32] = prediction.probabilities.max(axis=0)
    return foreground


class _NoClasses:
    def class_values(self) -> dict[str, dict[str, float]]:
        """Nothing: the measure has no values per class."""
        return {}


class BinaryMasks(_NoClasses):
    """mIoU and F-score of binary masks, as a published program computes them.

    Args:
        definition: The program's definition.
    """

    def __init__(self, definition: BinaryDefinition) -> None:
        self._definition, self._scores = definition, BinaryScores(definition)

    def add(self, batch: Batch) -> None:
        """Add a batch of clips."""
        answers = list(_list_answers(batch))
        truth = [resize_mask(trial.truth, self._definition.size) for trial, _ in answers]
        self._scores.add(np.stack([get_foreground(prediction) for _, prediction in answers]), np.stack(truth))

    def values(self) -> dict[str, float | None]:
        """The published scores, and those that depend neither on batches nor on blank frames (``unbiased_…``)."""
        return self._scores.values()


class WordIous:
    """``miou`` of each word: the mean IoU of the frames of clips that have the word. Its ``values`` are empty."""

    def __init__(self, definition: BinaryDefinition, words: Sequence[str]) -> None:
        self._definition, self._means = definition, {word: Mean() for word in words}

    def add(self, batch: Batch) -> None:
        """Add a batch of clips."""
        for trial, prediction in _list_answers(batch):
            if trial.words:
                truth = resize_mask(trial.truth, self._definition.size) != 0
                iou = compute_iou(get_foreground(prediction) > self._definition.threshold, truth)
                for word in trial.words:
                    self._means[word].add(iou)

    def values(self) -> dict[str, float | None]:
        """Nothing: the published mIoU is in :class:`BinaryMasks`."""
        return {}

    def class_values(self) -> dict[str, dict[str, float]]:
        """Word → its mean."""
        found = {word: mean.value for word, mean in sorted(self._means.items())}
        known = {word: value for word, value in found.items() if value is not None}
        return {"miou": known} if known else {}


class SemanticMasks:
    """mIoU and F-score of classes, as AVSBench-semantic defines them.

    Args:
        names: The names of the classes, the background first.
        mistakes: If True, the published numbers "without background" that omit the last class are given too.
    """

    def __init__(self, names: Sequence[str], *, mistakes: bool = False) -> None:
        self._names = tuple(names)
        self._scores = SemanticScores(len(names), repeat_mistakes=mistakes)

    def add(self, batch: Batch) -> None:
        """Add a batch of clips."""
        for trial, prediction in _list_answers(batch):
            labels, truth = (resize_mask(mask, SEMANTIC_SIZE) for mask in (prediction.labels, trial.truth))
            self._scores.add(labels[None], truth[None])

    def values(self) -> dict[str, float | None]:
        """The scores, with those over the classes that occur (``unbiased_…``)."""
        return self._scores.values()

    def class_values(self) -> dict[str, dict[str, float]]:
        """IoU and F-score of the classes that occur."""
        return self._scores.name_classes(self._names)

    def class_sums(self) -> dict[str, dict[str, tuple[float, int]]]:
        """IoU and F-score of the classes that occur, each as a sum and the number of frames that it is over."""
        return self._scores.class_sums(self._names)


class NumbersOfClips(_NoClasses):
    """The numbers of some clips alone, for a condition that not all clips have.

    Args:
        metric: Adds up the numbers.
        clips: The names of the clips.
        prefix: It comes before the names of the numbers.
    """

    def __init__(self, metric: BinaryMasks | SemanticMasks, clips: Collection[str], prefix: str) -> None:
        self._metric, self._clips, self._prefix = metric, frozenset(clips), prefix

    def add(self, batch: Batch) -> None:
        """Add those clips of a batch."""
        if chosen := [sample for sample in batch if sample and sample[0][0].clip.uid in self._clips]:
            self._metric.add(chosen)

    def values(self) -> dict[str, float | None]:
        """The numbers."""
        return {f"{self._prefix}{name}": value for name, value in self._metric.values().items()}


class FrameAccuracy(_NoClasses):
    """FSLA: the share of frames with the right classes and good masks. The truth of a negative sound is blank."""

    def __init__(self) -> None:
        self._scores = FslaScores()

    def add(self, batch: Batch) -> None:
        """Add a batch of clips."""
        for trial, prediction in _list_answers(batch):
            truth = np.zeros_like(trial.truth) if trial.is_negative else trial.truth
            self._scores.add(prediction.labels[None], truth[None])

    def values(self) -> dict[str, float | None]:
        """The accuracies of the kinds of frames that occur."""
        return {name: value for name, value in self._scores.values().items() if value is not None}


class CueNames(_NoClasses):
    """``cue_precision`` and ``masked_cue_precision``: whether the cues name what sounds (REC#1 and REC#2).

    Frames of clips without words, and answers of methods without text, are omitted. If no cue was offered, all words of
    the frame count as missed.
    """

    def __init__(self) -> None:
        self._scores = CuePrecision()

    def add(self, batch: Batch) -> None:
        """Add a batch of clips."""
        for trial, prediction in _list_answers(batch):
            if prediction.cues is not None and prediction.cue_gate is not None:
                gates = prediction.cue_gate[prediction.cues.valid]
                self._scores.add(prediction.cues.names, gates, trial.words)

    def values(self) -> dict[str, float | None]:
        """The measures."""
        return self._scores.values()


class FalseMasks(_NoClasses):
    """What is predicted although nothing in the picture sounds: FPR, S, pIA, AUC_N and the rate of blank frames.

    Args:
        threshold: The probability above which a pixel is predicted; None: every labelled pixel is.
    """

    def __init__(self, threshold: float | None) -> None:
        self._threshold, self._scores = threshold, NegativeScores()

    def add(self, batch: Batch) -> None:
        """Add a batch of clips. Those whose frames have the same size are one batch of the measure S."""
        masks = [find_mask(prediction, self._threshold) for _, prediction in _list_answers(batch)]
        for size in dict.fromkeys(mask.shape for mask in masks):
            self._scores.add(np.stack([mask for mask in masks if mask.shape == size]))

    def values(self) -> dict[str, float | None]:
        """The measures."""
        return self._scores.values()


class TrueMasks(_NoClasses):
    """``auc``, the area below the curve of the share of frames whose IoU is at least t, and ``blank_rate``.

    Args:
        threshold: As for :class:`FalseMasks`. Both must have the same.
    """

    def __init__(self, threshold: float | None) -> None:
        self._threshold, self._ious, self._blank = threshold, PositiveIous(), Mean()

    def add(self, batch: Batch) -> None:
        """Add a batch of clips."""
        for trial, prediction in _list_answers(batch):
            mask = find_mask(prediction, self._threshold)
            self._ious.add(mask[None], resize_mask(trial.truth, (mask.shape[0], mask.shape[1]))[None])
            self._blank.add(is_blank(mask.astype(np.uint8)))

    def values(self) -> dict[str, float | None]:
        """The measures."""
        return {**self._ious.values(), "blank_rate": self._blank.value}


def find_mask(prediction: Prediction, threshold: float | None) -> NDArray[np.bool_]:
    """Return the pixels (h, w) that are predicted to sound."""
    return prediction.labels > 0 if threshold is None else get_foreground(prediction) > np.float32(threshold)
