"""Run a protocol: samples → trials → predictions → scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Generic

import numpy as np

from teso_deploy.errors import DataError, InputNotFoundError, MediaError
from teso_deploy.evaluation.contracts import (
    Answered,
    EvaluationProtocol,
    Metric,
    Prediction,
    Predictor,
    Sample,
    Score,
    TrialType,
)
from teso_deploy.evaluation.metric_state import dump_state, load_state

#: What a sample raises whose files are missing or damaged.
_BAD_SAMPLE = (DataError, MediaError, InputNotFoundError)
#: The answers to a sample's trials by the name of their condition.
AnswersByCondition = Mapping[str, Answered[TrialType]]


@dataclass(frozen=True, slots=True)
class SampleResult(Generic[TrialType]):
    """The answers to the trials of one sample.

    Attributes:
        sample: The sample.
        answers: The answers by condition.
        lines: What the protocol says about the sample alone, ready for JSON.
        problem: Why the sample can't be read, in a sentence; empty if it can.
    """

    sample: Sample
    answers: AnswersByCondition[TrialType] = field(default_factory=dict)
    lines: Sequence[Mapping[str, Any]] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of an evaluation after a batch. It is all that is needed to continue.

    Attributes:
        samples: How many samples are done, with the skipped ones.
        group: Name and seed of the group that is being scored; None at the beginning.
        counts: Condition → how many samples and frames of this group are scored.
        metrics: Condition → the states of the group's metrics.
        scores: The scores of the groups that are complete, one for each seed.
        problems: Why samples were skipped.
    """

    samples: int = 0
    group: tuple[str, int] | None = None
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    scores: Sequence[Score] = ()
    problems: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the state, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Progress:
        """Read what :meth:`as_dict` made."""
        scores = [Score(**{**score, "seeds": tuple(score["seeds"])}) for score in state["scores"]]
        group = None if state["group"] is None else (state["group"][0], state["group"][1])
        return cls(**{**state, "scores": scores, "group": group})


class ScoringObserver(Generic[TrialType]):
    """Sees an evaluation as it runs. Subclasses override what they need."""

    def see_sample(self, result: SampleResult[TrialType]) -> None:
        """See the answers to a sample, in the order of the samples."""

    def see_batch(self, get_progress: Callable[[], Progress]) -> None:
        """See that a batch was scored. ``get_progress`` returns the state, which takes a few milliseconds."""

    def see_end(self, get_progress: Callable[[], Progress]) -> None:
        """See that all samples were scored."""


def score_protocol(
    protocol: EvaluationProtocol[TrialType],
    predict: Predictor[TrialType],
    on_sample: Callable[[Sample], None] = lambda sample: None,
    *,
    jobs: int = 1,
    skip_bad: bool = False,
    describe: Callable[[Sample, AnswersByCondition[TrialType]], Sequence[Mapping[str, Any]]] | None = None,
    observer: ScoringObserver[TrialType] | None = None,
    resume: Progress | None = None,
) -> list[Score]:
    """Give a model all trials of a protocol, and score its answers.

    A few samples are in memory at a time, whatever the size of the data set. The scores depend neither on ``jobs`` nor
    on whether the evaluation was interrupted.

    Args:
        protocol: The trials, and the metrics that judge the answers.
        predict: The model. If there are several jobs, several threads call it at the same time.
        on_sample: Called after each sample. Default: nothing.
        jobs: How many samples are answered at the same time. Default: 1.
        skip_bad: If True, samples that can't be read are skipped, and ``observer`` sees why. Default: False.
        describe: Makes the lines of a :class:`SampleResult`. Default: there are none.
        observer: Sees the results of samples, and states to resume from. Default: nothing.
        resume: The state of an interrupted evaluation with the same protocol and model. Default: the beginning.

    Returns:
        A score for each group and condition, in the order of the samples, averaged over the group's seeds.

    Raises:
        DataError: A sample can't be read, and ``skip_bad`` is False. :class:`MediaError` and
            :class:`InputNotFoundError` likewise. Or all samples were skipped.
    """
    scoring, observer = _Scoring(protocol, resume or Progress()), observer or ScoringObserver()

    def answer(sample: Sample) -> SampleResult[TrialType]:
        try:
            answers = answer_sample(protocol, predict, sample)
        except _BAD_SAMPLE as error:
            if not skip_bad:
                raise
            return SampleResult(sample, problem=str(error))
        return SampleResult(sample, answers, () if describe is None else describe(sample, answers))

    remaining = islice(protocol.samples(), scoring.samples, None)
    for result in _map_in_order(answer, remaining, jobs):
        observer.see_sample(result)
        if scoring.take(result):
            observer.see_batch(scoring.get_progress)
        on_sample(result.sample)
    scores = scoring.finish()
    if not scores and scoring.problems:
        raise DataError(f"none of the {len(scoring.problems)} samples can be read; the first: {scoring.problems[0]}")
    observer.see_end(scoring.get_progress)
    return scores


def answer_sample(
    protocol: EvaluationProtocol[TrialType], predict: Predictor[TrialType], sample: Sample
) -> dict[str, Answered[TrialType]]:
    """Answer all trials of a sample.

    Args:
        protocol: It makes the trials.
        predict: The model.
        sample: The sample.

    Returns:
        Condition → its trials and their predictions, in order.
    """
    answers: dict[str, list[tuple[TrialType, Prediction]]] = {}
    for trial in protocol.trials(sample):
        answers.setdefault(trial.condition, []).append((trial, predict(trial)))
    return dict(answers)


def _map_in_order(
    function: Callable[[Sample], SampleResult[TrialType]], samples: Iterator[Sample], jobs: int
) -> Iterator[SampleResult[TrialType]]:
    """Call a function for each sample in several threads. Only a few results wait for their turn."""
    if jobs == 1:
        yield from map(function, samples)
        return
    pool, waiting = ThreadPoolExecutor(jobs, "evaluation"), deque[Future[SampleResult[TrialType]]]()
    try:
        for sample in samples:
            waiting.append(pool.submit(function, sample))
            if len(waiting) > jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Scoring(Generic[TrialType]):
    """Adds results to the metrics of their group, batch by batch."""

    def __init__(self, protocol: EvaluationProtocol[TrialType], resume: Progress) -> None:
        self._protocol, self.samples, self._group = protocol, resume.samples, resume.group
        self._scores, self.problems = list(resume.scores), list(resume.problems)
        self._metrics: dict[str, Sequence[Metric[TrialType]]] = {}
        self._counts = {name: (samples, frames) for name, (samples, frames) in resume.counts.items()}
        self._batch: list[AnswersByCondition[TrialType]] = []
        for condition, states in resume.metrics.items():
            assert self._group is not None
            for metric, state in zip(self._open_metrics(condition), states, strict=True):
                load_state(metric, state)

    def take(self, result: SampleResult[TrialType]) -> bool:
        """Take a result. Returns whether nothing waits for the rest of its batch."""
        key = (result.sample.group, result.sample.seed)
        if key != self._group:
            self._close_group()
            self._group = key
        self.samples += 1
        if result.problem:
            self.problems.append(result.problem)
        else:
            self._batch.append(result.answers)
        if len(self._batch) == self._protocol.samples_per_batch:
            self._add_batch()
        return not self._batch

    def get_progress(self) -> Progress:
        """Return the state. The last batch must be complete."""
        states = {name: [dump_state(metric) for metric in metrics] for name, metrics in self._metrics.items()}
        return Progress(self.samples, self._group, dict(self._counts), states, self._scores, self.problems)

    def finish(self) -> list[Score]:
        """Return the scores, averaged over the seeds of each group."""
        self._close_group()
        found: dict[tuple[str, str], list[Score]] = {}
        for score in self._scores:
            found.setdefault((score.group, score.condition), []).append(score)
        return [average_seeds(scores) for scores in found.values()]

    def _open_metrics(self, condition: str) -> Sequence[Metric[TrialType]]:
        if condition not in self._metrics:
            assert self._group is not None
            self._metrics[condition] = self._protocol.metrics(self._group[0], condition)
        return self._metrics[condition]

    def _add_batch(self) -> None:
        for condition in dict.fromkeys(name for answers in self._batch for name in answers):
            batch = [answers[condition] for answers in self._batch if condition in answers]
            for metric in self._open_metrics(condition):
                metric.add(batch)
            samples, frames = self._counts.get(condition, (0, 0))
            self._counts[condition] = samples + len(batch), frames + sum(map(len, batch))
        self._batch = []

    def _close_group(self) -> None:
        if self._batch:
            self._add_batch()
        if self._group is not None:
            for condition, metrics in self._metrics.items():
                self._scores.append(self._read_metrics(condition, metrics))
        self._group, self._metrics, self._counts = None, {}, {}

    def _read_metrics(self, condition: str, metrics: Sequence[Metric[TrialType]]) -> Score:
        assert self._group is not None
        (group, seed), (samples, frames) = self._group, self._counts[condition]
        values = {name: value for metric in metrics for name, value in metric.values().items()}
        class_values = {name: by_class for metric in metrics for name, by_class in metric.class_values().items()}
        return Score(group, samples, values, class_values, (seed,), condition=condition, frames=frames)


def average_seeds(scores: Sequence[Score]) -> Score:
    """Average the scores of one group over its seeds, and add their spread.

    A number that is None for some seeds is averaged over the others. A single score is returned with the same values.
    """
    names = list(dict.fromkeys(name for score in scores for name in score.values))
    values = {name: [v for score in scores if (v := score.values.get(name)) is not None] for name in names}
    return Score(
        scores[0].group,
        scores[0].samples,
        {name: float(np.mean(found)) if found else None for name, found in values.items()},
        {name: _average_classes(scores, name) for name in dict.fromkeys(n for s in scores for n in s.class_values)},
        tuple(seed for score in scores for seed in score.seeds),
        {name: float(np.std(found, ddof=1)) for name, found in values.items() if len(found) > 1},
        condition=scores[0].condition,
        frames=scores[0].frames,
    )


def _average_classes(scores: Sequence[Score], name: str) -> dict[str, float]:
    found = [score.class_values.get(name, {}) for score in scores]
    classes = sorted({label for by_class in found for label in by_class})
    return {label: float(np.mean([by_class[label] for by_class in found if label in by_class])) for label in classes}
