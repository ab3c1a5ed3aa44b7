"""The precision of cues against a slow, plain program written from its definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from teso_deploy.errors import DataError
from teso_deploy.evaluation.metrics import CuePrecision, compute_average_precision

WORDS = ("dog", "cat", "guitar", "piano", "man", "car")
CASES = 2000


def define_average_precision(items: Sequence[tuple[float, bool]], count: int) -> float:
    """Lower a threshold over all scores; at each one, count what is above it."""
    area, before = 0.0, 0.0
    for threshold in sorted({score for score, _ in items}, reverse=True):
        kept = [right for score, right in items if score >= threshold]
        recall = sum(kept) / count
        area += (recall - before) * sum(kept) / len(kept)
        before = recall
    return area


def test_average_precision_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(CASES):
        length = int(rng.integers(0, 7))
        scores = rng.choice([-1.0, 0.0, 0.5, 0.5, 2.0], length) if rng.random() < 0.5 else rng.normal(size=length)
        relevant = rng.random(length) < rng.random()
        count = max(1, int(relevant.sum()) + int(rng.integers(0, 3)))
        items = [(float(score), bool(right)) for score, right in zip(scores, relevant, strict=True)]
        expected = define_average_precision(items, count)
        assert compute_average_precision(scores, relevant, count) == pytest.approx(expected, abs=1e-12)


def test_both_means_are_their_definition() -> None:
    rng = np.random.default_rng(1)
    metric, before, after = CuePrecision(), [], []
    for _ in range(CASES):
        offered = [str(word) for word in rng.choice(WORDS, int(rng.integers(0, 5)), replace=False)]
        gate = rng.normal(size=4)
        sounding = [str(word) for word in rng.choice(WORDS, int(rng.integers(0, 4)), replace=False)]
        metric.add(offered, gate, sounding)
        if sounding:
            count = len(sounding)
            before.append(define_average_precision([(0.0, word in sounding) for word in offered], count))
            accepted = [(value, word in sounding) for word, value in zip(offered, gate, strict=False) if value > 0]
            after.append(define_average_precision(accepted, count))
    assert 0 < len(before) < CASES
    assert metric.values()["cue_precision"] == pytest.approx(np.mean(before), abs=1e-12)
    assert metric.values()["masked_cue_precision"] == pytest.approx(np.mean(after), abs=1e-12)


def _score(offered: Sequence[str], gate: Sequence[float], sounding: Sequence[str]) -> tuple[float | None, ...]:
    metric = CuePrecision()
    metric.add(offered, gate, sounding)
    return tuple(metric.values().values())


def test_a_mask_that_rejects_what_is_silent_is_perfect() -> None:
    assert _score(["dog", "cat"], [1.0, -1.0], ["dog"]) == (0.5, 1.0)
    assert _score(["dog", "cat"], [-1.0, 1.0], ["dog"]) == (0.5, 0.0)
    assert _score(["dog", "cat"], [0.0, 0.0], ["dog"]) == (0.5, 0.0)  # accepted only above 0


def test_what_is_not_offered_is_missed() -> None:
    assert _score(["dog"], [1.0], ["dog", "cat"]) == (0.5, 0.5)
    assert _score([], [], ["dog"]) == (0.0, 0.0)


def test_silence_is_omitted() -> None:
    assert _score(["dog"], [1.0], []) == (None, None)


def test_words_in_other_spellings_are_the_same() -> None:
    assert _score(["Dogs"], [1.0], ["dog"]) == (1.0, 1.0)
    assert _score(["hen", "chicken"], [-1.0, 1.0], ["chicken"]) == (1.0, 1.0)


def test_a_cue_without_a_gate_is_refused() -> None:
    with pytest.raises(DataError, match="give one for each"):
        _score(["dog", "cat"], [1.0], ["dog"])
