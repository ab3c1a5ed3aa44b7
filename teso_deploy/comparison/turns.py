"""Alternating turns: everything is compared in one run, so that disturbances of the machine affect all equally."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from teso_deploy.errors import TesoError

#: (entrant, stage that is timed).
Key = tuple[str, str]
#: Runs a stage a few times and returns the seconds of each run.
Turn = Callable[[], list[float]]

TURN_SECONDS = 0.1
WARM_UP_ROUNDS, LEAST_ROUNDS = 2, 10


class TurnFailedError(TesoError, RuntimeError):
    """An entrant can't continue; the message says why. The others continue."""

    exit_code = 1


@dataclass
class Timings:
    """Seconds of every timed run by entrant and stage, the failures with reasons, and the number of rounds."""

    seconds: dict[Key, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    rounds: int = 0


def one_turn(run: Callable[[], object]) -> list[float]:
    """Run for a tenth of a second, or once if that takes longer. Return the seconds of each run.

    The first of several runs is not counted, because it refills the caches that another entrant has used.
    """
    times: list[float] = []
    while not times or sum(times) < TURN_SECONDS:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return times[1:] or times


def take_turns(
    turns: Mapping[Key, Turn],
    seconds: float,
    *,
    least_rounds: int = LEAST_ROUNDS,
    warm_up_rounds: int = WARM_UP_ROUNDS,
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> Timings:
    """Run rounds in which every entrant has one turn, in a new random order each round.

    Args:
        turns: The turn of each entrant and stage. One that raises :class:`TurnFailedError` gets no more turns.
        seconds: The least total time.
        least_rounds: The least number of rounds.
        warm_up_rounds: Rounds at the start that are not counted.
        seed: Seed of the orders. Default: 0.
        progress: Called with the share that is done. Default: nothing.
    """
    order = random.Random(seed)
    found = Timings({key: [] for key in turns})
    began = time.perf_counter()
    while found.rounds < least_rounds or time.perf_counter() - began < seconds:
        waiting = [key for key in turns if key[0] not in found.failures]
        if not waiting:
            break
        order.shuffle(waiting)
        for key in waiting:
            if key[0] in found.failures:
                continue
            try:
                times = turns[key]()
            except TurnFailedError as error:
                found.failures[key[0]] = str(error)
                continue
            if warm_up_rounds == 0:
                found.seconds[key] += times
        if warm_up_rounds > 0:
            warm_up_rounds -= 1
            began = time.perf_counter()
            continue
        found.rounds += 1
        elapsed = (time.perf_counter() - began) / seconds if seconds > 0 else 1.0
        progress(min(1.0, elapsed, found.rounds / max(1, least_rounds)))
    return found
