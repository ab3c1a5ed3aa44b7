"""Run a protocol: samples → trials → predictions → scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice

import numpy as np

from teso_deploy.evaluation.contracts import Answered, EvaluationProtocol, Metric, Predictor, Sample, Score, TrialType


def score_protocol(
    protocol: EvaluationProtocol[TrialType],
    predict: Predictor[TrialType],
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> list[Score]:
    """Give a model all trials of a protocol, and score its answers.

    One batch of samples is in memory at a time, whatever the size of the data set.

    Args:
        protocol: The trials, and the metrics that judge the answers.
        predict: The model.
        on_sample: Called after each sample. Default: nothing.

    Returns:
        A score for each group, in the order of the samples, averaged over the group's seeds.
    """
    found: dict[str, list[Score]] = {}
    for (group, seed), samples in groupby(protocol.samples(), key=lambda sample: (sample.group, sample.seed)):
        metrics, count = protocol.metrics(group), 0
        answered = _answer(protocol, predict, samples, on_sample=on_sample)
        while batch := list(islice(answered, protocol.samples_per_batch)):
            count += len(batch)
            for metric in metrics:
                metric.add(batch)
        found.setdefault(group, []).append(_read_metrics(group, seed=seed, count=count, metrics=metrics))
    return [average_seeds(scores) for scores in found.values()]


def _answer(
    protocol: EvaluationProtocol[TrialType],
    predict: Predictor[TrialType],
    samples: Iterator[Sample],
    *,
    on_sample: Callable[[Sample], None],
) -> Iterator[Answered[TrialType]]:
    for sample in samples:
        yield [(trial, predict(trial)) for trial in protocol.trials(sample)]
        on_sample(sample)


def _read_metrics(group: str, *, seed: int, count: int, metrics: Sequence[Metric[TrialType]]) -> Score:
    values = {name: value for metric in metrics for name, value in metric.values().items()}
    class_values = {name: by_class for metric in metrics for name, by_class in metric.class_values().items()}
    return Score(group, count, values, class_values, (seed,))


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
    )


def _average_classes(scores: Sequence[Score], name: str) -> dict[str, float]:
    found = [score.class_values.get(name, {}) for score in scores]
    classes = sorted({label for by_class in found for label in by_class})
    return {label: float(np.mean([by_class[label] for by_class in found if label in by_class])) for label in classes}
