"""Sound of any length in little memory. It is decoded or generated again when it is read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from teso_deploy.media.ring import AudioRing
from teso_deploy.media.windows import SoundTrack
from teso_deploy.types import SAMPLE_RATE_HZ

#: (position of the first sample in the track, samples (N,) float32). Chunks are ordered by position.
Chunk = tuple[int, NDArray[np.float32]]
#: A reader may go back this far before the sound is decoded again from the start.
KEPT_SECONDS = 60.0
#: Positions that are read alternately: the windows of the frames, the sound of the written video, and a spare one.
MOST_CURSORS = 3
#: The number of samples in one read, and the number that a cursor takes from the decoder at once.
_BLOCK_SAMPLES = 10 * SAMPLE_RATE_HZ
#: An envelope has blocks of 10 ms. Blocks become longer when there would be more than this many.
_ENVELOPE_SAMPLES = SAMPLE_RATE_HZ // 100
_ENVELOPE_BLOCKS = 1 << 17


class Envelope:
    """The peaks of a track. They take half a megabyte, however long the track is."""

    def __init__(self) -> None:
        self._block = _ENVELOPE_SAMPLES
        self._peaks = np.zeros(_ENVELOPE_BLOCKS, np.float32)

    @classmethod
    def flat(cls, length: int, level: float) -> Envelope:
        """Return the envelope of samples whose peaks are the same from start to end."""
        made = cls()
        while (length - 1) // made._block >= _ENVELOPE_BLOCKS:
            made._block *= 2
        made._peaks[: -(-length // made._block)] = level
        return made

    def add(self, place: int, samples: NDArray[np.float32]) -> None:
        """Add samples (N,) that start at a position."""
        if not len(samples):
            return
        last = place + len(samples) - 1
        while last // self._block >= _ENVELOPE_BLOCKS:
            pairs = np.maximum(self._peaks[0::2], self._peaks[1::2])
            self._peaks[: len(pairs)], self._peaks[len(pairs) :] = pairs, 0
            self._block *= 2
        blocks = np.arange(place // self._block, last // self._block + 1)
        edges = np.maximum(blocks * self._block - place, 0)
        found = self._peaks[blocks[0] : blocks[-1] + 1]
        np.maximum(found, np.maximum.reduceat(np.abs(samples), edges), out=found)

    def read_peaks(self, first: int, last: int, count: int) -> NDArray[np.float32]:
        """Return the peak (count,) of each of ``count`` equal parts of [first, last), to the length of a block.

        Args:
            first: First sample.
            last: The sample after the last one.
            count: Number of parts.
        """
        edges = np.linspace(first, last, count + 1)
        lows = np.maximum(edges[:-1] // self._block, 0).astype(int)
        highs = np.maximum(-(-edges[1:] // self._block), 0).astype(int)
        return np.array([self._peaks[a:b].max(initial=0) for a, b in zip(lows, highs, strict=True)], np.float32)


class _Cursor:
    """Passes through chunks once and keeps the latest ones."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._ring = AudioRing(KEPT_SECONDS + 2 * _BLOCK_SAMPLES / SAMPLE_RATE_HZ)
        self._rest: Chunk | None = None
        self.end = 0

    @property
    def begin(self) -> int:
        """The first position that can still be read."""
        return 0 if self.end == 0 else max(0, self.end - round(KEPT_SECONDS * SAMPLE_RATE_HZ))

    def copy(self, low: int, high: int) -> NDArray[np.float32]:
        """Return [low, high), with zeros where nothing was recorded. ``low`` is not before :attr:`begin`."""
        while self.end < high:
            self._advance(high)
        return self._ring.read(low / SAMPLE_RATE_HZ, high / SAMPLE_RATE_HZ)

    def _advance(self, high: int) -> None:
        chunk, self._rest = self._rest or next(self._chunks, None), None
        if chunk is None or chunk[0] >= high:  # a gap: skip only as much of it as is read
            self._rest, self.end = chunk, high
            return
        place, samples = chunk
        if len(samples) > _BLOCK_SAMPLES:
            self._rest = place + _BLOCK_SAMPLES, samples[_BLOCK_SAMPLES:]
            samples = samples[:_BLOCK_SAMPLES]
        self._ring.add(place / SAMPLE_RATE_HZ, samples)
        self.end = place + len(samples)


class StreamedTrack(SoundTrack):
    """A track that is decoded as it is needed. Any thread may read. Reading forwards is fast, going far back is slow.

    Args:
        open_chunks: Returns the chunks of the track from its start, the same ones each time.
        length: Number of samples, gaps included.
        start_seconds: The time of the first sample. Default: 0.
        gaps: See :class:`SoundTrack`.
        envelope: Its peaks. Default: computed from the chunks when they are requested.
    """

    def __init__(
        self,
        open_chunks: Callable[[], Iterator[Chunk]],
        length: int,
        *,
        start_seconds: float = 0.0,
        gaps: Sequence[tuple[float, float]] = (),
        envelope: Envelope | None = None,
    ) -> None:
        super().__init__(length, start_seconds, gaps)
        self._open_chunks, self._envelope = open_chunks, envelope
        #: The cursor that was read last is at the end.
        self._cursors: list[_Cursor] = []
        self._lock = threading.Lock()

    @classmethod
    def silence(cls, duration_seconds: float) -> StreamedTrack:
        """Return digital silence of this length."""
        return cls(lambda: iter(()), round(max(duration_seconds, 0) * SAMPLE_RATE_HZ), envelope=Envelope())

    @classmethod
    def white_noise(cls, duration_seconds: float, dbfs: float, seed: int = 0) -> StreamedTrack:
        """Return the same samples as :meth:`AudioTrack.white_noise`.

        The peaks are those of the first second, because computing all would take minutes for a file of days.

        Args:
            duration_seconds: Length of the track.
            dbfs: RMS in dB below full scale.
            seed: Seed of the noise. Default: 0.
        """
        length = round(max(duration_seconds, 0) * SAMPLE_RATE_HZ)

        def make() -> Iterator[Chunk]:
            generator = np.random.default_rng(seed)
            for place in range(0, length, SAMPLE_RATE_HZ):
                noise = generator.standard_normal(min(SAMPLE_RATE_HZ, length - place))
                yield place, (noise * 10 ** (dbfs / 20)).clip(-1, 1).astype(np.float32)

        level = np.abs(next(make(), (0, np.zeros(1, np.float32)))[1]).max()
        return cls(make, length, envelope=Envelope.flat(length, float(level)))

    def _copy(self, low: int, high: int) -> NDArray[np.float32]:
        with self._lock:
            steps = [*range(low, high, _BLOCK_SAMPLES), high]
            parts = [self._cursor(a).copy(a, b) for a, b in itertools.pairwise(steps)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _cursor(self, low: int) -> _Cursor:
        """Return the cursor with the shortest way to a position, or a new one if all have passed it."""
        able = [cursor for cursor in self._cursors if cursor.begin <= low]
        if able:
            found = max(able, key=lambda cursor: cursor.end)
            self._cursors.remove(found)
        else:
            found = _Cursor(self._open_chunks())
            del self._cursors[: max(0, len(self._cursors) - MOST_CURSORS + 1)]
        self._cursors.append(found)
        return found

    def read_peaks(self, from_seconds: float, to_seconds: float, count: int) -> NDArray[np.float32]:
        """Return the peaks of a time span, accurate to about 10 ms, see :meth:`Sound.read_peaks`.

        Args:
            from_seconds: Start of the span.
            to_seconds: End of the span.
            count: Number of parts.
        """
        with self._lock:
            if self._envelope is None:
                self._envelope = Envelope()
                for place, samples in self._open_chunks():
                    self._envelope.add(place, samples)
            first, last = (round((t - self.start_seconds) * SAMPLE_RATE_HZ) for t in (from_seconds, to_seconds))
            return self._envelope.read_peaks(first, last, count)
