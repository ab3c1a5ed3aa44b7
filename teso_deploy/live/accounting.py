"""Count the events of a live run, in memory that does not grow with its length."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teso_deploy.latency import BoundedCounts, Histogram, LatencyHistograms
from teso_deploy.media.source_health import SourceHealth
from teso_deploy.sinks.delivery import Delivery

SCHEMA_VERSION = 1
#: Rates are averages over this many seconds.
RATE_SECONDS = 5.0


class _Rate:
    """Events per second, averaged over :data:`RATE_SECONDS`."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def add(self, now: float) -> None:
        self._times.append(now)
        self._cut(now)

    def _cut(self, now: float) -> None:
        while self._times and now - self._times[0] > RATE_SECONDS:
            self._times.popleft()

    def per_second(self, now: float, since: float) -> float:
        self._cut(now)
        span = min(RATE_SECONDS, now - since)
        return len(self._times) / span if span > 0 else 0.0


class _StreamCounts:
    """The counts of one stream."""

    def __init__(self) -> None:
        self.frames = self.masks_nonblank = 0
        self.redecodes: Counter[str] = Counter()
        self.latency = LatencyHistograms()
        self.redecode = Histogram()
        self.staleness = Histogram()
        self.rate = _Rate()
        self.cue_age_seconds = 0.0
        self.cue_source = "none"
        self.health: SourceHealth | None = None
        self.drops: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class StreamDurations:
    """Durations of one stream: of each stage of its frames, and of its re-decodes; and the ages of its frames."""

    stages: Mapping[str, BoundedCounts]
    redecode: BoundedCounts
    staleness: BoundedCounts


class Accounting:
    """Collects the counts of a run from all its threads. The view, reports and metrics read :meth:`snapshot`.

    ``inputs`` has the streams' names, without credentials.
    """

    def __init__(self, inputs: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self.inputs, self._clock, self._began = list(inputs), clock, clock()
        self._streams = [_StreamCounts() for _ in inputs]
        self._sinks: dict[str, dict[str, Any]] = {}
        #: Returns the state of the source of cues, if one is queried in the background.
        self.cue_health: Callable[[], dict[str, Any]] | None = None

    def count_delivery(self, delivery: Delivery) -> None:
        """Count a result."""
        found, stamps = delivery.segmentation, delivery.stamps
        times = list(stamps.values())
        with self._lock:
            stream = self._streams[delivery.stream]
            if found.cues is not None:
                stream.cue_age_seconds, stream.cue_source = found.cues.age_seconds, found.cues.source
            if delivery.cause != "frame":
                stream.redecodes[delivery.cause] += 1
                stream.redecode.add(times[-1] - times[0])
                return
            stream.frames += 1
            stream.masks_nonblank += not found.is_blank
            stream.rate.add(self._clock())
            stream.staleness.add(delivery.staleness_seconds)
            stream.latency.add(stamps)

    def set_source(self, stream: int, health: SourceHealth, drops: Mapping[str, int]) -> None:
        """Set the state of a source.

        Args:
            stream: Number of the stream, from 0.
            health: The state that its reader reports.
            drops: Cause → number of frames that the scheduler dropped.
        """
        with self._lock:
            self._streams[stream].health, self._streams[stream].drops = health, dict(drops)

    def set_sinks(self, health: Mapping[str, dict[str, Any]]) -> None:
        """Set the state of the sinks, by name."""
        with self._lock:
            self._sinks = dict(health)

    def snapshot(self) -> dict[str, Any]:
        """Return all counts in the form of the JSON report.

        Durations of stages and ages of frames are in milliseconds.
        """
        now, cue_source = self._clock(), self.cue_health() if self.cue_health else None
        with self._lock:
            streams = [self._stream(number, now) for number in range(len(self._streams))]
            return {
                "schema_version": SCHEMA_VERSION,
                "seconds": round(now - self._began, 3),
                "streams": streams,
                "sinks": self._sinks,
                "cue_source": cue_source,
            }

    def get_durations(self) -> list[StreamDurations]:
        """Return the durations of each stream, as counts that can be added up over streams and runs."""
        with self._lock:
            return [
                StreamDurations(
                    {stage: histogram.count_bounded() for stage, histogram in stream.latency.stages.items()},
                    stream.redecode.count_bounded(),
                    stream.staleness.count_bounded(),
                )
                for stream in self._streams
            ]

    def _stream(self, number: int, now: float) -> dict[str, Any]:
        stream, health = self._streams[number], self._streams[number].health
        drops = Counter(stream.drops)
        if health is not None:
            drops.update(health.drops)
        decoded = health.frames_decoded if health else 0
        return {
            "input": self.inputs[number],
            "state": health.state if health else "opening",
            "error": health.error if health else None,
            "frames": stream.frames,
            "masks_nonblank": stream.masks_nonblank,
            "frames_decoded": decoded,
            "fps": round(stream.rate.per_second(now, self._began), 2),
            "drops": {cause: count for cause, count in sorted(drops.items()) if count},
            "redecodes": {cause: stream.redecodes[cause] for cause in ("sound", "cues")},
            "latency_ms": stream.latency.summary(),
            "redecode_ms": stream.redecode.percentiles_ms(),
            "staleness_ms": stream.staleness.percentiles_ms(),
            "audio": {
                "there": health.has_audio if health else False,
                "seconds": round(health.audio_seconds, 3) if health else 0.0,
                "gap_seconds": round(health.gap_seconds, 3) if health else 0.0,
                "error": health.audio_error if health else None,
                "note": health.audio_note if health else None,
                "invalid_samples": health.invalid_samples if health else 0,
                "av_offset_seconds": _round(health.av_offset_seconds if health else None),
            },
            "decoder_delay_frames": health.delay_frames if health else 0,
            "corrupt_packets": health.corrupt_packets if health else 0,
            "corrupt_frames": health.corrupt_frames if health else 0,
            "discontinuities": health.discontinuities if health else 0,
            "format_changes": health.format_changes if health else 0,
            "reconnects": health.reconnects if health else 0,
            "cues": {"source": stream.cue_source, "age_seconds": round(stream.cue_age_seconds, 3)},
        }


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)
