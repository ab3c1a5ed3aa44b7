"""The last seconds of a stream's sound on the stream's clock. Gaps are zeros, and counted."""

from __future__ import annotations

import math
import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from teso_deploy.media.windows import SILENT_PEAK, compute_peaks
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES, AudioWindow

CAPACITY_SECONDS = 30.0


class AudioRing:
    """16 kHz mono between :attr:`start_seconds` and :attr:`end_seconds`. One thread writes, any thread may read.

    Counted since the beginning: ``gap_seconds`` filled with zeros, ``audio_seconds`` recorded, ``overlap_seconds``
    dropped because that time was already recorded. Memory use is constant.
    """

    def __init__(self, capacity_seconds: float = CAPACITY_SECONDS) -> None:
        self._samples = np.zeros(round(capacity_seconds * SAMPLE_RATE_HZ), np.float32)
        # Positions are samples from the zero of the stream's clock. The ring holds [start, end).
        self._start: int | None = None
        self._end = 0
        self._gaps: deque[tuple[int, int]] = deque()
        self._filled = self._recorded = self._overlap = 0
        self._grown = threading.Condition()

    @property
    def start_seconds(self) -> float:
        """Time of the oldest sample that is kept."""
        with self._grown:
            return (self._start or 0) / SAMPLE_RATE_HZ

    @property
    def end_seconds(self) -> float | None:
        """Time after the newest sample; None before the first."""
        with self._grown:
            return None if self._start is None else self._end / SAMPLE_RATE_HZ

    @property
    def gap_seconds(self) -> float:
        """Seconds that were filled with zeros because they were not recorded."""
        return self._filled / SAMPLE_RATE_HZ

    @property
    def audio_seconds(self) -> float:
        """Seconds that were recorded."""
        return self._recorded / SAMPLE_RATE_HZ

    @property
    def overlap_seconds(self) -> float:
        """Seconds that were dropped because that time was already recorded."""
        return self._overlap / SAMPLE_RATE_HZ

    def add(self, at_seconds: float, samples: NDArray[np.float32]) -> None:
        """Add samples (N,) float32. The first one belongs to ``at_seconds``."""
        place = math.floor(at_seconds * SAMPLE_RATE_HZ + 0.5)  # round() rounds to even, which makes gaps of a sample
        with self._grown:
            if self._start is None:
                self._start = self._end = place
            if place > self._end:
                self._gaps.append((self._end, place))
                self._filled += place - self._end
                self._write(self._end, np.zeros(min(place - self._end, len(self._samples)), np.float32), place)
            kept = samples[min(self._end - place, len(samples)) :]
            self._overlap += len(samples) - len(kept)
            self._recorded += len(kept)
            if len(kept):
                end = self._end + len(kept)
                self._write(self._end, kept[-len(self._samples) :], end)
            self._grown.notify_all()

    def _write(self, place: int, samples: NDArray[np.float32], end: int) -> None:
        """Write ``samples``, the last ones before ``end``."""
        capacity = len(self._samples)
        first = (end - len(samples)) % capacity
        head = min(len(samples), capacity - first)
        self._samples[first : first + head] = samples[:head]
        self._samples[: len(samples) - head] = samples[head:]
        assert self._start is not None and place <= end
        self._end, self._start = end, max(self._start, end - capacity)
        while self._gaps and self._gaps[0][1] <= self._start:
            self._gaps.popleft()

    def _read(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the samples from ``first`` to before ``last``. Samples that are not kept are zeros."""
        found = np.zeros(max(last - first, 0), np.float32)
        if self._start is None:
            return found
        low, high = max(first, self._start), min(last, self._end)
        if high > low:
            found[low - first : high - first] = np.take(self._samples, np.arange(low, high), mode="wrap")
        return found

    def read(self, from_seconds: float, to_seconds: float) -> NDArray[np.float32]:
        """Return the samples between two times. Samples that do not exist are zeros."""
        with self._grown:
            return self._read(round(from_seconds * SAMPLE_RATE_HZ), round(to_seconds * SAMPLE_RATE_HZ))

    def read_peaks(self, from_seconds: float, to_seconds: float, count: int) -> NDArray[np.float32]:
        """Return the peaks of a time span, see :meth:`Sound.read_peaks`.

        Args:
            from_seconds: Start of the span.
            to_seconds: End of the span.
            count: Number of parts.
        """
        return compute_peaks(self.read(from_seconds, to_seconds), count)

    def window(self, end_seconds: float) -> AudioWindow:
        """Return the 0.975 s before a time. Sound that is not recorded yet, or no longer kept, counts as a gap."""
        last = round(end_seconds * SAMPLE_RATE_HZ)
        first = last - WINDOW_SAMPLES
        with self._grown:
            samples = self._read(first, last)
            start, end = (self._start, self._end) if self._start is not None else (last, last)
            there = max(0, min(last, end) - max(first, start))
            holes = sum(max(0, min(last, b) - max(first, a, start)) for a, b in self._gaps)
        missing = WINDOW_SAMPLES - there + holes
        silent = float(np.abs(samples).max()) < SILENT_PEAK
        return AudioWindow(samples, first / SAMPLE_RATE_HZ, max(missing, 0) / SAMPLE_RATE_HZ, silent)

    def wait_for(self, end_seconds: float, timeout_seconds: float) -> bool:
        """Wait until the sound reaches a time. Return whether it did."""
        end = round(end_seconds * SAMPLE_RATE_HZ)
        with self._grown:
            return self._grown.wait_for(lambda: self._start is not None and self._end >= end, timeout_seconds)
