"""Greedy decoding on preset logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.language.decoder import Cache
from teso_deploy.cues.language.generation import LOOP_TOKENS, generate, is_looping


def one_hot(token: int) -> NDArray[np.float32]:
    return np.eye(100, dtype=np.float32)[token]


def said(wanted: list[int], limit: int = 1000, end: tuple[int, ...] = (99,)) -> tuple[list[int], int]:
    """Return what is generated from a model that prefers these tokens, and how often it ran."""
    steps = 0

    def step(cache: Cache, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float32], Cache]:
        nonlocal steps
        assert tokens.tolist() == [wanted[steps]] and cache.tokens == steps
        steps += 1
        return one_hot(wanted[steps] if steps < len(wanted) else 99), Cache(steps, {})

    return generate(step, one_hot(wanted[0]), Cache(0, {}), end=end, max_new_tokens=limit), steps


def test_up_to_the_end() -> None:
    assert said([5, 6, 7]) == ([5, 6, 7], 3)
    assert said([99]) == ([], 0)


def test_up_to_a_limit_without_a_step_for_nothing() -> None:
    assert said([5, 6, 7, 8], limit=3) == ([5, 6, 7], 2)
    assert said([5, 6], limit=0) == ([], 0)


def test_loops_end_and_repetition_does_not() -> None:
    endless = [1, 2, 3] * 200
    assert len(said(endless)[0]) == LOOP_TOKENS
    long_period = list(range(40)) * 5
    assert said(long_period)[0] == long_period
    assert not is_looping([1, 2, 3] * (LOOP_TOKENS // 3 - 1))
    assert is_looping([9, *[1, 2] * (LOOP_TOKENS // 2)])
    assert not is_looping([*[1, 2] * (LOOP_TOKENS // 2), 9])


def test_it_can_be_stopped() -> None:
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count > 4

    found = generate(
        lambda cache, tokens: (one_hot(int(tokens[0]) + 1), cache), one_hot(1), Cache(0, {}), end=(), max_new_tokens=50,
        should_stop=stop,
    )  # fmt: skip
    assert found == [1, 2, 3, 4]
