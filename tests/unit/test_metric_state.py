"""A metric that is stored as JSON and read again goes on as if nothing had happened."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from teso_deploy.evaluation.metric_state import dump_state, load_state
from teso_deploy.evaluation.metrics import (
    BINARY_DEFINITIONS,
    BinaryScores,
    FslaScores,
    Mean,
    NegativeScores,
    PositiveIous,
    SemanticScores,
)


class Outer:
    """A metric that holds others, as those of protocols do."""

    def __init__(self) -> None:
        self.name, self.is_on, self.limits = "outer", True, (1, 2)
        self._mean, self._by_word = Mean(), {"dog": Mean(), "cat": Mean()}
        self._lists: dict[str, array[float]] = {}

    def add(self, number: float) -> None:
        self._mean.add(number)
        self._by_word["dog"].add(number / 3)
        self._lists.setdefault("new", array("d")).append(number)

    def values(self) -> dict[str, Any]:
        return {"mean": self._mean.value, "dog": self._by_word["dog"].value, "lists": list(self._lists["new"])}


def add_labels(metric: Any, rng: np.random.Generator) -> None:
    metric.add(rng.integers(0, 5, (2, 8, 8)), rng.integers(0, 5, (2, 8, 8)))


def add_probabilities(metric: Any, rng: np.random.Generator) -> None:
    metric.add(rng.random((2, 8, 8), np.float32), rng.random((2, 8, 8)) > 0.5)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any, np.random.Generator], None]]] = {
    **{
        name: (lambda definition=definition: BinaryScores(definition), add_probabilities)  # type: ignore[misc]
        for name, definition in BINARY_DEFINITIONS.items()
    },
    "semantic": (lambda: SemanticScores(5), add_labels),
    "negative": (NegativeScores, lambda metric, rng: metric.add(rng.random((2, 8, 8)) > 0.9)),
    "positive": (PositiveIous, add_labels),
    "fsla": (FslaScores, add_labels),
    "mean": (Mean, lambda metric, rng: metric.add(rng.random())),
    "outer": (Outer, lambda metric, rng: metric.add(rng.random())),
}


def read(metric: Any) -> Any:
    return metric.value if isinstance(metric, Mean) else metric.values()


@pytest.mark.parametrize("name", CASES)
def test_a_stored_metric_goes_on_exactly(name: str) -> None:
    make, add = CASES[name]
    whole, rng = make(), np.random.default_rng(3)
    current, same = make(), np.random.default_rng(3)
    for _ in range(6):
        add(whole, rng)
        add(current, same)
        stored = json.loads(json.dumps(dump_state(current)))
        current = make()
        load_state(current, stored)
    assert read(current) == read(whole)
    assert json.dumps(dump_state(current)) == json.dumps(dump_state(whole))


def test_a_state_of_another_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="the state has"):
        load_state(Mean(), dump_state(NegativeScores()))
