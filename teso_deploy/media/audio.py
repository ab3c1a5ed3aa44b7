"""The sound of a file on the frames' clock, and windows of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from teso_deploy.errors import MediaError
from teso_deploy.media.container import (
    AHEAD_SECONDS,
    BACK_SECONDS,
    BROKEN_OFF,
    SteadyClock,
    announced_end_seconds,
    opened,
    origin_seconds,
    seconds_of,
)
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES, AudioWindow

WindowKind = Literal["centred", "causal", "second"]
HOP_SECONDS = 0.24
WINDOW_SECONDS = WINDOW_SAMPLES / SAMPLE_RATE_HZ
#: Below this peak (-80 dBFS) a window counts as silent.
SILENT_PEAK = 1e-4
#: Time stamps may jitter by this much before it counts as a gap or an overlap.
JITTER_SECONDS = 0.02


class Sound(Protocol):
    """16 kHz mono on the clock of the frames: all of a file's, or the last of a stream's."""

    @property
    def end_seconds(self) -> float | None:
        """Behind the newest sample; None before there is any."""

    def read(self, from_seconds: float, to_seconds: float) -> NDArray[np.float32]:
        """Samples (N,) between two times, zeros where there are none."""


class AudioTrack:
    """``samples`` (N,) float32 in [-1, 1], 16 kHz mono; the first one is at ``start_seconds``.

    ``gaps``: (start, end) in seconds of stretches that nobody recorded, filled with zeros.
    """

    def __init__(
        self, samples: NDArray[np.float32], start_seconds: float = 0.0, gaps: Sequence[tuple[float, float]] = ()
    ) -> None:
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(f"samples must be (N,) float32, got {samples.dtype}{list(samples.shape)}")
        self.samples = samples
        self.start_seconds = start_seconds
        self.gaps = tuple(gaps)
        self._last: AudioWindow | None = None

    @classmethod
    def silence(cls, duration_seconds: float) -> AudioTrack:
        """Digital silence."""
        return cls(np.zeros(round(max(duration_seconds, 0) * SAMPLE_RATE_HZ), np.float32))

    @classmethod
    def white_noise(cls, duration_seconds: float, dbfs: float, seed: int = 0) -> AudioTrack:
        """White Gaussian noise of an RMS in dB below full scale, clipped at full scale."""
        noise = np.random.default_rng(seed).standard_normal(round(max(duration_seconds, 0) * SAMPLE_RATE_HZ))
        return cls((noise * 10 ** (dbfs / 20)).clip(-1, 1).astype(np.float32))

    @property
    def duration_seconds(self) -> float:
        """From the first sample to the end of the last."""
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def end_seconds(self) -> float:
        """Behind the last sample."""
        return self.start_seconds + self.duration_seconds

    def read(self, from_seconds: float, to_seconds: float) -> NDArray[np.float32]:
        """Samples between two times, zeros outside of the track."""
        first, last = (round((t - self.start_seconds) * SAMPLE_RATE_HZ) for t in (from_seconds, to_seconds))
        found = np.zeros(max(last - first, 0), np.float32)
        low, high = max(first, 0), min(last, len(self.samples))
        if high > low:
            found[low - first : high - first] = self.samples[low:high]
        return found

    @property
    def gap_seconds(self) -> float:
        """How much of the track was filled in."""
        return sum(end - start for start, end in self.gaps)

    def _unrecorded(self, start: float, end: float) -> float:
        """Seconds between two times that nobody recorded: gaps, and what lies outside the track."""
        first, last = self.start_seconds, self.start_seconds + self.duration_seconds
        outside = (end - start) - max(0.0, min(end, last) - max(start, first))
        return outside + sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.gaps)

    def window(self, at_seconds: float, kind: WindowKind = "centred", hop_seconds: float = HOP_SECONDS) -> AudioWindow:
        """The 0.975 s that belong to a frame: around it, before it, or from the start of its second.

        But for ``second`` the window moves in hops: frames within one hop get the same
        object, so that nothing is computed twice for them. ``centred`` takes the nearest
        hop; ``causal`` the one before, as it must not hear what is to come. Outside the
        track there are zeros.
        """
        if kind == "second":
            start = float(np.floor(at_seconds))
        else:
            hops = at_seconds / hop_seconds if hop_seconds else 0.0
            hops = round(hops) if kind == "centred" else math.floor(hops + 1e-6)
            snapped = hops * hop_seconds if hop_seconds else at_seconds
            start = snapped - (WINDOW_SECONDS / 2 if kind == "centred" else WINDOW_SECONDS)
        if self._last is not None and self._last.start_seconds == start:
            return self._last
        first = round((start - self.start_seconds) * SAMPLE_RATE_HZ)
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        low, high = max(first, 0), min(first + WINDOW_SAMPLES, len(self.samples))
        if high > low:
            samples[low - first : high - first] = self.samples[low:high]
        gap = self._unrecorded(start, start + WINDOW_SECONDS)
        silent = float(np.abs(samples).max()) < SILENT_PEAK
        self._last = AudioWindow(samples, start, gap if gap > 1 / SAMPLE_RATE_HZ else 0.0, silent)
        return self._last


def mean_of_channels(frame: AudioFrame) -> NDArray[np.float32]:
    """The plain average (N,) of the channels of a packed float frame."""
    channels = frame.layout.nb_channels
    mean: NDArray[np.float32] = frame.to_ndarray().reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mean


class Mono16k:
    """Decoded audio frames → pieces of 16 kHz mono, the mean of the channels, a new piece wherever the clock leaps.

    ``picture_seconds``: of a stream, where its picture is; sound that begins far from there has a clock that leapt.
    """

    def __init__(self, clock: SteadyClock, picture_seconds: Callable[[], float] | None = None) -> None:
        self._clock, self._picture_seconds = clock, picture_seconds
        self.pieces: list[tuple[float, list[NDArray[np.float32]]]] = []
        self._resampler: AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None
        self._expected = 0.0
        self._drained = 0
        self._first: tuple[AudioFrame, float] | None = None

    def drain(self) -> list[tuple[float, NDArray[np.float32]]]:
        """(time of the first sample in seconds, samples) of what has come since the last call, which is forgotten."""
        found = []
        for number, (start, parts) in enumerate(self.pieces):
            if number:
                self._drained = 0
            if parts:
                samples = np.concatenate(parts)
                found.append((start + self._drained / SAMPLE_RATE_HZ, samples))
                self._drained += len(samples)
                parts.clear()
        del self.pieces[:-1]
        return found

    def _keep(self, frames: Sequence[AudioFrame]) -> None:
        self.pieces[-1][1].extend(mean_of_channels(frame) for frame in frames)

    def flush(self) -> None:
        """Take out what the resampler still holds."""
        if self._first is not None:
            (frame, at_seconds), self._first = self._first, None
            self._add(frame, at_seconds)
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))
            self._resampler = None

    def add(self, frame: AudioFrame, at_seconds: float | None) -> None:
        """One decoded frame with its time.

        The first waits for the second: a damaged stamp would move all that follows it.
        """
        if not self.pieces and at_seconds is not None:
            first, self._first = self._first, (frame, at_seconds)
            if first is None:
                return
            end = first[1] + first[0].samples / first[0].sample_rate
            if not -BACK_SECONDS <= at_seconds - end <= AHEAD_SECONDS:  # one of them is wrong: a third will tell
                return
            self._first = None
            begin = first[1]
            if self._picture_seconds is not None and abs(begin - (near := self._picture_seconds())) > AHEAD_SECONDS:
                begin, _ = self._clock.place(begin, near)
            self._add(first[0], begin)
        self._add(frame, at_seconds)

    def _add(self, frame: AudioFrame, at_seconds: float | None) -> None:
        now = self._expected
        if at_seconds is not None:
            now = self._clock.place(at_seconds, self._expected)[0] if self.pieces else at_seconds
        leapt = not self.pieces or abs(now - self._expected) > JITTER_SECONDS
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if leapt or kind != self._format:
            self.flush()
            # The channels stay: FFmpeg would make mono of stereo at 1/√2 each, 3 dB too loud and beyond full scale.
            # Packed samples are one plane. PyAV reads beyond the end of a frame that has 8 planes or more.
            self._resampler = AudioResampler(format="flt", rate=SAMPLE_RATE_HZ)
            self._format = kind
            if leapt:
                self.pieces.append((now, []))
                self._expected = now
        assert self._resampler is not None
        frame.pts = None  # the pieces keep the time; the resampler would invent samples to fit stamps
        self._keep(self._resampler.resample(frame))
        self._expected += frame.samples / frame.sample_rate


def assemble(pieces: Sequence[tuple[float, NDArray[np.float32]]]) -> AudioTrack:
    """Pieces (start in seconds, samples) as one track: gaps are filled and noted, overlaps are cut."""
    start = pieces[0][0]
    parts: list[NDArray[np.float32]] = []
    gaps: list[tuple[float, float]] = []
    length = 0
    for at_seconds, samples in pieces:
        place = round((at_seconds - start) * SAMPLE_RATE_HZ)
        if place > length:
            gaps.append((start + length / SAMPLE_RATE_HZ, start + place / SAMPLE_RATE_HZ))
            parts.append(np.zeros(place - length, np.float32))
            length = place
        kept = samples[length - place :]
        parts.append(kept)
        length += len(kept)
    return AudioTrack(np.concatenate(parts), start, gaps)


def read_audio(path: str | Path) -> AudioTrack:
    """All sound of a file's first audio track, on the clock of its frames.

    Raises :class:`InputNotFoundError`, :class:`MediaError` (no audio track, nothing decodable).
    """
    path = Path(path)
    with opened(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path} has no audio track: give a file with sound")
        stream, origin = container.streams.audio[0], origin_seconds(container)
        mono = Mono16k(SteadyClock(announced_end_seconds(container)))
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except BROKEN_OFF:  # what was read counts
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except av.error.FFmpegError:  # a damaged packet becomes a gap
                continue
            for frame in frames:
                seconds = seconds_of(frame.pts, frame.time_base)
                mono.add(frame, None if seconds is None else seconds - origin)
    mono.flush()
    pieces = [(start, np.concatenate(parts)) for start, parts in mono.pieces if parts]
    if not pieces:
        raise MediaError(f"{path} has an audio track that can't be decoded: convert or copy it again")
    return assemble(pieces)
