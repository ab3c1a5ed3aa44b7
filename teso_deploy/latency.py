"""The duration of each stage as percentiles. A mean alone hides slow frames."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

PERCENTILES = (50, 90, 95, 99)
#: The stage from a frame's first stamp to its last.
WHOLE_FRAME = "frame"
#: Upper bounds of Prometheus buckets in seconds. All streams and runs share them, so that counts can be added.
BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return ``p50`` … ``p99`` in milliseconds; empty without a value."""
    if not seconds:
        return {}
    values = np.percentile(np.asarray(seconds, np.float64) * 1e3, PERCENTILES)
    return {f"p{percent}": round(float(value), 4) for percent, value in zip(PERCENTILES, values, strict=True)}


def _put_frame_last(stages: Mapping[str, object]) -> list[str]:
    return sorted(stages, key=lambda stage: stage == WHOLE_FRAME)


def _measure_stages(stamps: Mapping[str, float]) -> dict[str, float]:
    """Return stage → its duration in seconds, from the previous stamp to its own.

    The first stamp only starts the clock.
    """
    durations = {stage: done - before for (_, before), (stage, done) in pairwise(stamps.items())}
    if durations:
        times = list(stamps.values())
        durations[WHOLE_FRAME] = times[-1] - times[0]
    return durations


@dataclass(frozen=True, slots=True)
class BoundedCounts:
    """Counts of the durations up to each of :data:`BOUNDS_SECONDS`. The last count includes all durations."""

    at_most: tuple[int, ...]
    sum_seconds: float


class Histogram:
    """Durations in buckets of one per cent. A run of a month needs no more memory than one of a minute."""

    _GROWTH = math.log(1.01)
    #: Shorter durations count as zero.
    _LEAST_SECONDS = 1e-7

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._bounded = [0] * (len(BOUNDS_SECONDS) + 1)
        self._sum_seconds = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self._buckets[round(math.log(max(seconds, self._LEAST_SECONDS)) / self._GROWTH)] += 1
        self._bounded[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self._sum_seconds += max(seconds, 0.0)  # Prometheus takes a falling sum for a restart
        self.count += 1

    def count_bounded(self) -> BoundedCounts:
        """Return the current counts for Prometheus."""
        return BoundedCounts(tuple(accumulate(self._bounded)), self._sum_seconds)

    def percentiles_ms(self) -> dict[str, float]:
        """Return ``p50`` … ``p99`` in milliseconds, exact to one per cent; empty without a value."""
        found: dict[str, float] = {}
        waiting, seen = list(PERCENTILES), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            while waiting and seen >= self.count * waiting[0] / 100:
                value = math.exp(bucket * self._GROWTH)
                found[f"p{waiting.pop(0)}"] = round(value * 1e3 if value > self._LEAST_SECONDS else 0.0, 4)
        return found


class LatencyLog:
    """Collects the stamps of frames: stage → monotonic seconds at which it ended, in order.

    A stage may be skipped because its input did not change. It then counts with the time of that check, which is close
    to zero. Percentiles are exact, so memory grows with the number of frames.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, stamps: Mapping[str, float]) -> None:
        """Count a frame."""
        for stage, seconds in _measure_stages(stamps).items():
            self._seconds.setdefault(stage, []).append(seconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return stage → percentiles in milliseconds, with ``frame`` last."""
        return {stage: percentiles_ms(self._seconds[stage]) for stage in _put_frame_last(self._seconds)}


class LatencyHistograms:
    """Like :class:`LatencyLog`, for runs without an end: exact to one per cent, in bounded memory."""

    def __init__(self) -> None:
        self.stages: dict[str, Histogram] = {}

    def add(self, stamps: Mapping[str, float]) -> None:
        """Count a frame."""
        for stage, seconds in _measure_stages(stamps).items():
            self.stages.setdefault(stage, Histogram()).add(seconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return stage → percentiles in milliseconds, with ``frame`` last."""
        return {stage: self.stages[stage].percentiles_ms() for stage in _put_frame_last(self.stages)}
