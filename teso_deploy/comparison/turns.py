"""Who runs when: everything that is compared takes turns in one run, so that the machine's moods strike all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from teso_deploy.errors import TesoError

#: (who, what of it is timed).
Key = tuple[str, str]
#: Runs the thing a few times and gives the seconds of each.
Turn = Callable[[], list[float]]

TURN_SECONDS = 0.1
WARM_UP_ROUNDS, LEAST_ROUNDS = 2, 10


class TurnFailedError(TesoError, RuntimeError):
    """Who was asked can't go on; the message says why. The others do."""

    exit_code = 1


@dataclass
class Timings:
    """Seconds of every timed run, by who and what; who failed, and why; how many rounds there were."""

    seconds: dict[Key, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    rounds: int = 0


def one_turn(run: Callable[[], object]) -> list[float]:
    """Run for a tenth of a second, or once if that takes longer; the seconds of each run.

    The first of several is not counted: it pays for the caches that another has filled.
    """
    times: list[float] = []
    while not times or sum(times) < TURN_SECONDS:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return times[1:] or times


def interleaved(
    turns: Mapping[Key, Turn],
    seconds: float,
    *,
    least_rounds: int = LEAST_ROUNDS,
    warm_up_rounds: int = WARM_UP_ROUNDS,
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> Timings:
    """Rounds in which everybody has one turn, in an order of its own each round.

    At least ``seconds`` and ``least_rounds``, after ``warm_up_rounds`` that are not counted. Who
    raises :class:`TurnFailedError` has no more turns. ``progress`` is told the share that is done.
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
