"""Conversion of decoded sound of any kind to pieces of 16 kHz mono that are safe for the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from teso_deploy.media.container import AHEAD_SECONDS, BACK_SECONDS, SteadyClock
from teso_deploy.types import SAMPLE_RATE_HZ

#: Time stamps may jitter by this much before the difference counts as a gap or an overlap.
JITTER_SECONDS = 0.02
#: Mono is clipped here. Lossy codecs and resampling overshoot full scale slightly; the model accepts no more.
LOUDEST = 1.5
#: Channels are clipped here, 12 dB above full scale. No decoder overshoots this far, but integers stored as floats do.
_LOUDEST_CHANNEL = 4.0
#: For a planar frame with this many planes, PyAV reads beyond the end of its list.
_MOST_PLANES = 8
#: Channels cancel each other if the power of their mean is below this share of the power that the mean would have if
#: only one channel had sound.
_CANCELLED_SHARE = 0.01
#: If the mean power of a channel is below this (-80 dBFS), the sound is silent anyway.
_SILENT_POWER = 1e-8
_DTYPES = {"flt": np.float32, "fltp": np.float32, "dbl": np.float64, "dblp": np.float64}


class Piece(NamedTuple):
    """``samples`` (N,) float32, ``offset`` samples after the start of a piece whose time is known."""

    begin_seconds: float
    offset: int
    samples: NDArray[np.float32]

    @property
    def start_seconds(self) -> float:
        """The time of the first sample."""
        return self.begin_seconds + self.offset / SAMPLE_RATE_HZ


@dataclass
class SoundCounts:
    """Defects of decoded sound. Only one thread writes.

    Attributes:
        invalid_samples: Samples that were NaN or infinite and became silence.
        clipped_samples: Samples beyond ``LOUDEST``, or of a channel far beyond full scale, that were clipped.
        damaged: Packets or frames that could not be decoded or converted.
        error: The reason for the first of these.
    """

    invalid_samples: int = 0
    clipped_samples: int = 0
    damaged: int = 0
    error: str | None = None
    _far_samples: int = 0
    #: Sums of squares for sound with several channels: of the mean, of a channel, and of a channel alone in the mean.
    _mean_energy: float = 0.0
    _channel_energy: float = 0.0
    _lone_energy: float = 0.0
    _several: int = 0

    def count_damage(self, error: Exception) -> None:
        """Count a packet or frame that could not be decoded."""
        self.damaged += 1
        if self.error is None:
            self.error = str(getattr(error, "strerror", None) or error) or type(error).__name__

    def count_clipped(self, count: int, is_far: bool) -> None:
        """Count samples that were too loud. ``is_far``: louder than any decoder overshoots."""
        self.clipped_samples += count
        self._far_samples += count if is_far else 0

    def count_energy(self, channels: NDArray[np.float32], mean: NDArray[np.float32]) -> None:
        """Compare the mean (N,) with the channels (N, several)."""
        several = channels.shape[1]
        energy = float(np.vdot(channels, channels)) / several
        self._mean_energy += float(np.vdot(mean, mean))
        self._channel_energy += energy
        self._lone_energy += energy / several
        self._several += len(mean)

    @property
    def cancels(self) -> bool:
        """Whether the channels have sound that their mean lacks, because one channel has the opposite sign."""
        is_audible = self._channel_energy > _SILENT_POWER * self._several
        return is_audible and self._mean_energy < _CANCELLED_SHARE * self._lone_energy

    def describe(self) -> str | None:
        """Describe what is wrong with the sound. Return None if nothing is."""
        notes = []
        if self.cancels:
            notes.append(
                "its channels cancel each other, so their mean is almost silent: one has the wrong sign, "
                "give one channel as the sound"
            )
        if self.invalid_samples:
            notes.append(f"{self.invalid_samples} samples are not a number or infinite and count as silence")
        if self._far_samples:
            notes.append(
                f"{self._far_samples} samples are far above full scale and are clipped: store floats in [-1, 1]"
            )
        if self.damaged:
            notes.append(f"{self.damaged} packets can't be decoded and are gaps ({self.error})")
        return "; ".join(notes) or None


class Mono16k:
    """Converts decoded audio frames to pieces of 16 kHz mono, the mean of the channels.

    A new piece starts wherever the clock leaps. NaN and infinity become silence, and samples far beyond full scale
    are clipped, before the resampler could spread them.

    Args:
        clock: The clock of the track.
        picture_seconds: For a stream, returns the time of its picture. If sound starts far from it, the clock of the
            sound has leapt. Default: no comparison.
        counts: Where defects are counted. Default: a new object.
    """

    def __init__(
        self,
        clock: SteadyClock,
        picture_seconds: Callable[[], float] | None = None,
        counts: SoundCounts | None = None,
    ) -> None:
        self._clock, self._picture_seconds = clock, picture_seconds
        self.counts = SoundCounts() if counts is None else counts
        self._pieces: list[tuple[float, list[NDArray[np.float32]]]] = []
        self._resampler: AudioResampler | None = None
        self._packer: AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None
        self._expected = 0.0
        self._drained = 0
        self._first: tuple[AudioFrame, float] | None = None

    def drain(self) -> list[Piece]:
        """Return the pieces since the last call, and forget them."""
        found = []
        for number, (begin, parts) in enumerate(self._pieces):
            if number:
                self._drained = 0
            if parts:
                samples = np.concatenate(parts)
                found.append(Piece(begin, self._drained, samples))
                self._drained += len(samples)
                parts.clear()
        del self._pieces[:-1]
        return found

    def add(self, frame: AudioFrame, at_seconds: float | None) -> None:
        """Convert one decoded frame and its time. A frame that can't be converted is counted and omitted.

        The first frame waits for the second, because a damaged first stamp would move all sound after it.
        """
        try:
            self._add(frame, at_seconds)
        except Exception as error:  # PyAV raises several kinds for formats, layouts and rates that it can't convert
            self.counts.count_damage(error)
            self._resampler = self._packer = self._format = None

    def flush(self) -> None:
        """Convert what the resampler still holds."""
        try:
            if self._first is not None:
                (frame, at_seconds), self._first = self._first, None
                self._resample(frame, at_seconds)
            self._flush_resampler()
        except Exception as error:
            self.counts.count_damage(error)
            self._resampler = None

    def _add(self, frame: AudioFrame, at_seconds: float | None) -> None:
        if frame.sample_rate <= 0:
            raise ValueError(f"a sample rate of {frame.sample_rate} Hz")
        if not self._pieces and at_seconds is not None:
            first, self._first = self._first, (frame, at_seconds)
            if first is None:
                return
            end = first[1] + first[0].samples / first[0].sample_rate
            if not -BACK_SECONDS <= at_seconds - end <= AHEAD_SECONDS:  # one stamp is wrong; the third frame decides
                return
            self._first = None
            begin = first[1]
            if self._picture_seconds is not None and abs(begin - (near := self._picture_seconds())) > AHEAD_SECONDS:
                begin, _ = self._clock.place(begin, near)
            self._resample(first[0], begin)
        self._resample(frame, at_seconds)

    def _resample(self, frame: AudioFrame, at_seconds: float | None) -> None:
        now = self._expected
        if at_seconds is not None:
            now = self._clock.place(at_seconds, self._expected)[0] if self._pieces else at_seconds
        leapt = not self._pieces or abs(now - self._expected) > JITTER_SECONDS
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        seconds = frame.samples / frame.sample_rate
        if leapt or kind != self._format:
            self._flush_resampler()
            # Keep the channels: FFmpeg would mix stereo to mono at 1/√2 each, 3 dB too loud and beyond full scale.
            # Packed samples are a single plane, see _MOST_PLANES.
            self._resampler = AudioResampler(format="flt", rate=SAMPLE_RATE_HZ)
            self._packer, self._format = None, kind
            if leapt:
                self._pieces.append((now, []))
                self._expected = now
        assert self._resampler is not None
        frame.pts = None  # the pieces keep the time; with stamps, the resampler would invent samples to match them
        for cleaned in self._clean(frame):
            self._keep(self._resampler.resample(cleaned))
        self._expected += seconds

    def _clean(self, frame: AudioFrame) -> Sequence[AudioFrame]:
        """Replace NaN and infinity by silence and clip loud samples, in place. Integers need neither."""
        dtype = _DTYPES.get(frame.format.name)
        if dtype is None:
            return (frame,)
        frames, channels = [frame], frame.layout.nb_channels
        if frame.format.is_planar and channels >= _MOST_PLANES:
            self._packer = self._packer or AudioResampler(format=frame.format.packed.name)
            frames = self._packer.resample(frame)
        for whole in frames:
            count = whole.samples if whole.format.is_planar else whole.samples * channels
            planes: Sequence[Any] = whole.planes
            for plane in planes:
                self._clean_samples(np.frombuffer(plane, dtype, count))
        return frames

    def _clean_samples(self, samples: NDArray[np.float32] | NDArray[np.float64]) -> None:
        # A NaN makes these comparisons false.
        if samples.size == 0 or (samples.min() >= -_LOUDEST_CHANNEL and samples.max() <= _LOUDEST_CHANNEL):
            return
        invalid = ~np.isfinite(samples)
        samples[invalid] = 0
        self.counts.invalid_samples += int(invalid.sum())
        self.counts.count_clipped(int((np.abs(samples) > _LOUDEST_CHANNEL).sum()), is_far=True)
        np.clip(samples, -_LOUDEST_CHANNEL, _LOUDEST_CHANNEL, out=samples)

    def _flush_resampler(self) -> None:
        resampler, self._resampler = self._resampler, None
        if resampler is not None:
            self._keep(resampler.resample(None))

    def _keep(self, frames: Sequence[AudioFrame]) -> None:
        for frame in frames:
            packed: Any = frame.to_ndarray()
            channels: NDArray[np.float32] = packed.reshape(-1, frame.layout.nb_channels)
            mean: NDArray[np.float32] = channels.mean(axis=1, dtype=np.float32)
            if channels.shape[1] > 1:
                self.counts.count_energy(channels, mean)
            too_loud = int(np.count_nonzero(np.abs(mean) > LOUDEST))
            if too_loud:
                self.counts.count_clipped(too_loud, is_far=False)
                mean = mean.clip(-LOUDEST, LOUDEST)
            self._pieces[-1][1].append(mean)
