"""Samples → trials → scores: the guarantees for any protocol and metric."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.evaluation.contracts import Answered, Metric, Prediction, Sample
from teso_deploy.evaluation.metrics import Mean, compute_iou, is_blank
from teso_deploy.evaluation.scoring import score_protocol


@dataclass(frozen=True, eq=False)
class Square:
    """A trial whose truth is a square of a class."""

    image: NDArray[np.uint8]
    samples: NDArray[np.float32]
    truth: NDArray[np.uint8]
    condition: str = ""


class PixelsByClass:
    """Intersection and union of each class over all trials: sums whose size does not depend on the data set."""

    def __init__(self, classes: int) -> None:
        self.intersection, self.union = np.zeros(classes, np.int64), np.zeros(classes, np.int64)

    def add(self, batch: Sequence[Answered[Square]]) -> None:
        for trial, prediction in (answer for sample in batch for answer in sample):
            for k in range(len(self.union)):
                found, truth = prediction.labels == k + 1, trial.truth == k + 1
                self.intersection[k] += np.count_nonzero(found & truth)
                self.union[k] += np.count_nonzero(found | truth)

    def values(self) -> dict[str, float | None]:
        ious = list(self.class_values()["iou"].values())
        return {"iou": float(np.mean(ious)) if ious else None}

    def class_values(self) -> dict[str, dict[str, float]]:
        ious = zip(self.intersection, self.union, strict=True)
        return {"iou": {f"class {k}": float(i / u) for k, (i, u) in enumerate(ious) if u}}


class BestOfBatch:
    """A metric that is defined per batch: the best mean probability, averaged over batches."""

    def __init__(self) -> None:
        self._mean, self.sizes = Mean(), list[int]()

    def add(self, batch: Sequence[Answered[Square]]) -> None:
        self.sizes.append(len(batch))
        means = []
        for _, prediction in (answer for sample in batch for answer in sample):
            assert prediction.probabilities is not None
            means.append(float(prediction.probabilities.mean()))
        self._mean.add(max(means))

    def values(self) -> dict[str, float | None]:
        return {"best": self._mean.value}

    def class_values(self) -> dict[str, dict[str, float]]:
        return {}


class Squares:
    """Two groups of samples with two trials each, in batches of four samples."""

    name = "squares"
    samples_per_batch = 4

    def __init__(self, count: int) -> None:
        self._count, self.made = count, list[Metric[Square]]()

    def count_samples(self) -> int:
        return 2 * self._count

    def samples(self) -> Iterator[Sample]:
        for group in ("small", "large"):
            for number in range(self._count):
                yield Sample(f"{group}/{number}", group, content=number)

    def trials(self, sample: Sample) -> Iterator[Square]:
        for k in (1, 2):
            truth = np.zeros((8, 8), np.uint8)
            truth[: 4 if sample.group == "large" else 2] = k
            yield Square(np.zeros((8, 8, 3), np.uint8), np.zeros(15_600, np.float32), truth)

    def metrics(self, group: str, condition: str) -> Sequence[Metric[Square]]:
        self.made = [PixelsByClass(3), BestOfBatch()]
        return self.made


def predict_two_rows(trial: Square) -> Prediction:
    labels = np.zeros((8, 8), np.uint8)
    labels[:2] = trial.truth[:2]
    return Prediction(labels, np.full((3, 2, 2), labels.max() / 4, np.float32))


def test_groups_are_scored_apart_by_class_and_by_batch() -> None:
    protocol, seen = Squares(6), list[str]()
    small, large = score_protocol(protocol, predict_two_rows, lambda sample: seen.append(sample.name))
    assert (small.group, small.samples, small.values) == ("small", 6, {"iou": 1.0, "best": 0.5})
    assert large.values["iou"] == 0.5 and large.class_values == {"iou": {"class 0": 0.5, "class 1": 0.5}}
    assert seen == [sample.name for sample in protocol.samples()] and len(seen) == protocol.count_samples()
    (batches,) = [metric for metric in protocol.made if isinstance(metric, BestOfBatch)]
    assert batches.sizes == [4, 2], "batches are full, and never hold samples of two groups"


def test_only_one_batch_is_in_memory() -> None:
    alive: set[weakref.ref[Square]] = set()
    most = 0

    def count(trial: Square) -> Prediction:
        nonlocal most
        alive.add(weakref.ref(trial, alive.discard))
        most = max(most, len(alive))
        return predict_two_rows(trial)

    score_protocol(Squares(30), count)
    assert most <= 2 * 2 * Squares.samples_per_batch, "the batch that is scored and the one that is made"


def test_a_mean_does_not_depend_on_order() -> None:
    numbers = np.random.default_rng(0).random(1000)
    means = []
    for order in (numbers, numbers[::-1], np.sort(numbers)):
        mean = Mean()
        for number in order:
            mean.add(float(number))
        means.append(mean.value)
    assert means[0] == means[1] == means[2] == pytest.approx(numbers.mean()) and Mean().value is None


def test_masks_are_compared() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert compute_iou(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert compute_iou(a, b) == pytest.approx(4 / 12)
    labels = np.zeros((100, 100), np.uint8)
    labels[0, :19] = 1
    assert is_blank(labels)
    labels[0, :20] = 1
    assert not is_blank(labels)
