"""Sound tracks on the clock of the frames, and windows of them."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES, AudioWindow

WindowKind = Literal["centred", "causal", "second"]
HOP_SECONDS = 0.24
WINDOW_SECONDS = WINDOW_SAMPLES / SAMPLE_RATE_HZ
#: Below this peak (-80 dBFS) a window counts as silent.
SILENT_PEAK = 1e-4


class Sound(Protocol):
    """16 kHz mono on the clock of the frames: the whole sound of a file, or the latest of a stream."""

    @property
    def end_seconds(self) -> float | None:
        """The end of the newest sample; None before the first."""

    def read(self, from_seconds: float, to_seconds: float) -> NDArray[np.float32]:
        """Return the samples (N,) between two times, with zeros where none exist."""

    def read_peaks(self, from_seconds: float, to_seconds: float, count: int) -> NDArray[np.float32]:
        """Return the largest absolute value (count,) of each of ``count`` equal parts of a time span.

        Args:
            from_seconds: Start of the span.
            to_seconds: End of the span.
            count: Number of parts.
        """


def compute_peaks(samples: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the largest absolute value (count,) of each of ``count`` equal parts of samples (N,)."""
    edges = np.linspace(0, len(samples), count + 1).round().astype(int)
    return np.array([np.abs(samples[a:b]).max(initial=0) for a, b in itertools.pairwise(edges)], np.float32)


class SoundTrack(ABC):
    """16 kHz mono of a known length, from which the windows of the frames are cut.

    Args:
        length: Number of samples, gaps included.
        start_seconds: The time of the first sample. Default: 0.
        gaps: (start, end) in seconds of stretches that were not recorded and are zeros, in order of time.
    """

    def __init__(self, length: int, start_seconds: float = 0.0, gaps: Sequence[tuple[float, float]] = ()) -> None:
        self.length, self.start_seconds, self.gaps = length, start_seconds, tuple(gaps)
        self._gap_ends = [end for _, end in self.gaps]
        self._last: AudioWindow | None = None

    @property
    def duration_seconds(self) -> float:
        """Seconds from the first sample to the end of the last."""
        return self.length / SAMPLE_RATE_HZ

    @property
    def end_seconds(self) -> float:
        """The end of the last sample."""
        return self.start_seconds + self.duration_seconds

    @property
    def gap_seconds(self) -> float:
        """Seconds of the track that were filled with zeros."""
        return sum(end - start for start, end in self.gaps)

    @abstractmethod
    def _copy(self, low: int, high: int) -> NDArray[np.float32]:
        """Return samples [low, high), counted from the first of the track. The caller stays within the track."""

    def _read(self, first: int, last: int) -> NDArray[np.float32]:
        found = np.zeros(max(last - first, 0), np.float32)
        low, high = max(first, 0), min(last, self.length)
        if high > low:
            found[low - first : high - first] = self._copy(low, high)
        return found

    def read(self, from_seconds: float, to_seconds: float) -> NDArray[np.float32]:
        """Return the samples between two times, with zeros outside of the track."""
        first, last = (round((t - self.start_seconds) * SAMPLE_RATE_HZ) for t in (from_seconds, to_seconds))
        return self._read(first, last)

    def read_peaks(self, from_seconds: float, to_seconds: float, count: int) -> NDArray[np.float32]:
        """Return the peaks of a time span, see :meth:`Sound.read_peaks`.

        Args:
            from_seconds: Start of the span.
            to_seconds: End of the span.
            count: Number of parts.
        """
        first, last = (round((t - self.start_seconds) * SAMPLE_RATE_HZ) for t in (from_seconds, to_seconds))
        # Read only what the track has: a damaged file may announce a length of years.
        edges = np.linspace(first, last, count + 1).round().clip(0, self.length).astype(int)
        parts = (self._copy(a, b) if b > a else np.zeros(0, np.float32) for a, b in itertools.pairwise(edges.tolist()))
        return np.array([np.abs(part).max(initial=0) for part in parts], np.float32)

    def _unrecorded(self, start: float, end: float) -> float:
        """Return how many seconds between two times were not recorded: gaps, and time outside of the track."""
        first, last = self.start_seconds, self.start_seconds + self.duration_seconds
        missing = (end - start) - max(0.0, min(end, last) - max(start, first))
        for number in range(bisect_right(self._gap_ends, start), len(self.gaps)):
            a, b = self.gaps[number]
            if a >= end:
                break
            missing += min(end, b) - max(start, a)
        return missing

    def window(self, at_seconds: float, kind: WindowKind = "centred", hop_seconds: float = HOP_SECONDS) -> AudioWindow:
        """Return the 0.975 s of sound that belong to a frame. Outside of the track there are zeros.

        Args:
            at_seconds: The time of the frame.
            kind: ``centred``: around the frame, at the nearest hop. ``causal``: before the frame, at the hop before
                it, so that no later sound is included. ``second``: from the start of the frame's second.
            hop_seconds: Except for ``second``, windows start at multiples of this time. Frames within one hop get
                the same object, so that nothing is computed twice. Default: 0.24 s.
        """
        if kind == "second":
            start = float(np.floor(at_seconds))
        else:
            hops = at_seconds / hop_seconds if hop_seconds else 0.0
            hops = round(hops) if kind == "centred" else math.floor(hops + 1e-6)
            snapped = hops * hop_seconds if hop_seconds else at_seconds
            start = snapped - (WINDOW_SECONDS / 2 if kind == "centred" else WINDOW_SECONDS)
        return self.window_from(start)

    def window_from(self, start_seconds: float) -> AudioWindow:
        """Return the 0.975 s of sound from a time in seconds on. Outside of the track there are zeros."""
        last = self._last
        if last is not None and last.start_seconds == start_seconds:
            return last
        first = round((start_seconds - self.start_seconds) * SAMPLE_RATE_HZ)
        samples = self._read(first, first + WINDOW_SAMPLES)
        gap = self._unrecorded(start_seconds, start_seconds + WINDOW_SECONDS)
        silent = float(np.abs(samples).max()) < SILENT_PEAK
        found = AudioWindow(samples, start_seconds, gap if gap > 1 / SAMPLE_RATE_HZ else 0.0, silent)
        self._last = found
        return found


class AudioTrack(SoundTrack):
    """A track whose ``samples`` (N,) float32 in [-1, 1] are in memory."""

    def __init__(
        self, samples: NDArray[np.float32], start_seconds: float = 0.0, gaps: Sequence[tuple[float, float]] = ()
    ) -> None:
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(f"samples must be (N,) float32, got {samples.dtype}{list(samples.shape)}")
        super().__init__(len(samples), start_seconds, gaps)
        self.samples = samples

    @classmethod
    def silence(cls, duration_seconds: float) -> AudioTrack:
        """Digital silence."""
        return cls(np.zeros(round(max(duration_seconds, 0) * SAMPLE_RATE_HZ), np.float32))

    @classmethod
    def white_noise(cls, duration_seconds: float, dbfs: float, seed: int = 0) -> AudioTrack:
        """Return white Gaussian noise, clipped at full scale.

        Args:
            duration_seconds: Length of the track.
            dbfs: RMS in dB below full scale.
            seed: Seed of the noise. Default: 0.
        """
        noise = np.random.default_rng(seed).standard_normal(round(max(duration_seconds, 0) * SAMPLE_RATE_HZ))
        return cls((noise * 10 ** (dbfs / 20)).clip(-1, 1).astype(np.float32))

    def add_noise(self, snr_db: float, seed: int = 0) -> AudioTrack:
        """Return this sound with white Gaussian noise, clipped at full scale.

        Args:
            snr_db: How many dB the noise is below the RMS of the whole track.
            seed: Seed of the noise. Default: 0.
        """
        rms = float(np.sqrt(np.mean(self.samples.astype(np.float64) ** 2))) if len(self.samples) else 0.0
        noise = np.random.default_rng(seed).standard_normal(len(self.samples)) * rms * 10 ** (-snr_db / 20)
        return AudioTrack((self.samples + noise).clip(-1, 1).astype(np.float32), self.start_seconds, self.gaps)

    def _copy(self, low: int, high: int) -> NDArray[np.float32]:
        return self.samples[low:high]
