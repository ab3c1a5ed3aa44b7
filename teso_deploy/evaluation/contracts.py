"""How an evaluation is put together: samples → trials → scores → report.

A *data set* is read as samples. A *protocol* makes trials of a sample and says which metrics judge them. The model
answers a trial with a prediction. Metrics add up what they need and forget the pictures, so that a data set of any size
is scored in constant memory (:func:`teso_deploy.evaluation.scoring.score_protocol`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from teso_deploy.types import Cues


@dataclass(frozen=True, slots=True)
class Sample:
    """One entry of a data set: a scene, or a video with its masks. It names files and holds no pixels.

    Attributes:
        name: Unique in the data set; files of cues know it by this name.
        group: The samples of a group are scored together, and reported in one line: a kind of scene, a subset.
        seed: The random seed, if the sample is made at random. The scores of a group are averaged over its seeds.
        content: Data from which the protocol makes the trials.
    """

    name: str
    group: str
    seed: int = 0
    content: Any = None


class Trial(Protocol):
    """One question to the model. Each protocol adds its ground truth in a class of its kind.

    ``image`` is (H, W, 3) uint8 RGB, ``samples`` (15600,) float32 in [-1, 1] at 16 kHz. Trials with the same
    ``condition`` are scored together, apart from the others; it is "" if the protocol has no conditions.
    """

    @property
    def condition(self) -> str: ...

    @property
    def image(self) -> NDArray[np.uint8]: ...

    @property
    def samples(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer to a trial.

    Attributes:
        labels: (H, W) uint8 at the picture's size: 0 is background, k the k-th class.
        probabilities: (C, h, w) float32, for metrics that choose their threshold themselves; None if the protocol has
            no such metric.
        cues: The cues that were offered; None if the protocol does not look at them, or the method takes no text.
        cue_gate: (N_T,) float32, ξ of the paper; None likewise.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None = None
    cues: Cues | None = None
    cue_gate: NDArray[np.float32] | None = None


TrialType = TypeVar("TrialType", bound=Trial)
AnyTrial = TypeVar("AnyTrial", bound=Trial, contravariant=True)
#: The answers to all trials of one sample, in order.
Answered = Sequence[tuple[TrialType, Prediction]]
#: A model under test, with its cues already chosen.
Predictor = Callable[[TrialType], Prediction]


class Metric(Protocol[AnyTrial]):
    """Adds up one or several numbers over the samples of a group, and possibly one number per class.

    Its memory must not grow with the number of samples: keep sums and counts, not pictures.
    """

    def add(self, batch: Sequence[Sequence[tuple[AnyTrial, Prediction]]]) -> None:
        """Add a batch of samples, each with the answers to all of its trials.

        A batch holds ``samples_per_batch`` samples of the protocol. The last batch of a group may hold fewer. A metric
        that is defined per batch averages over calls. Every other metric must not depend on how samples are batched.
        """

    def values(self) -> Mapping[str, float | None]:
        """The numbers by name; None if no trial had anything to measure."""

    def class_values(self) -> Mapping[str, Mapping[str, float]]:
        """Number → class → its value; empty if the metric has no values per class."""


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of one group in one condition.

    Attributes:
        group: See :class:`Sample`.
        samples: How many samples there were, for each seed.
        values: Number → value; None if it means nothing for this group.
        class_values: Number → class → value.
        seeds: The seeds that were averaged.
        spread: Number → standard deviation over the seeds; only if there are several.
        condition: The condition of the trials; "" if the protocol has none.
        frames: How many trials there were, for each seed.
    """

    group: str
    samples: int
    values: Mapping[str, float | None]
    class_values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    spread: Mapping[str, float] = field(default_factory=dict)
    condition: str = ""
    frames: int = 0


class EvaluationProtocol(Protocol[TrialType]):
    """The trials that a model is given, and the metrics that judge its answers.

    Attributes:
        name: The protocol's name in reports.
        samples_per_batch: How many samples a metric is given at a time. Published scores may depend on it.
    """

    name: str
    samples_per_batch: int

    def count_samples(self) -> int:
        """How many samples there are, for a progress bar."""

    def samples(self) -> Iterator[Sample]:
        """All samples. Samples of the same group and seed come one after another."""

    def trials(self, sample: Sample) -> Iterable[TrialType]:
        """Read or make the trials of a sample."""

    def metrics(self, group: str, condition: str) -> Sequence[Metric[TrialType]]:
        """New metrics for a condition of a group."""
