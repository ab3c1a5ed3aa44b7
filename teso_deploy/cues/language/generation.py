"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.language.decoder import Cache

#: If the last ``LOOP_TOKENS`` tokens repeat a sequence of fewer than ``LOOP_PERIOD`` tokens, the model will not stop
#: repeating it.
LOOP_TOKENS, LOOP_PERIOD = 96, 33

Step = Callable[[Cache, NDArray[np.int64]], tuple[NDArray[np.float32], Cache]]


class Constraint(Protocol):
    """Chooses the next token."""

    def choose(self, logits: NDArray[np.float32], tokens_left: int) -> int | None:
        """Return the most likely token of (V,) that is allowed; None if the answer is complete."""


def is_looping(tokens: Sequence[int]) -> bool:
    """Return whether the end of a sequence repeats itself."""
    if len(tokens) < LOOP_TOKENS:
        return False
    tail = tokens[-LOOP_TOKENS:]
    return any(all(tail[k] == tail[k - period] for k in range(period, LOOP_TOKENS)) for period in range(1, LOOP_PERIOD))


def generate(
    step: Step,
    logits: NDArray[np.float32],
    cache: Cache,
    *,
    end: Collection[int],
    max_new_tokens: int,
    constraint: Constraint | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Return the most likely tokens, up to an end token (omitted), the limit or a loop.

    Args:
        step: Runs the decoder over the tokens that were chosen.
        logits: (V,), the scores after the prompt.
        cache: The state after the prompt.
        end: The tokens that end an answer.
        max_new_tokens: The longest answer in tokens.
        constraint: Chooses the tokens. Default: no constraint.
        should_stop: Asked before each token; True ends the answer early. Default: never.
    """
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and not should_stop():
        left = max_new_tokens - len(tokens)
        token = int(np.argmax(logits)) if constraint is None else constraint.choose(logits, left)
        if token is None or (constraint is None and (token in end or is_looping(tokens))):
            break
        tokens.append(token)
        if len(tokens) < max_new_tokens:
            logits, cache = step(cache, np.array([token], np.int64))
    return tokens
