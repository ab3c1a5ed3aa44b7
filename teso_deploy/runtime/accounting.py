"""What a live run did, in numbers that take no more room the longer it runs."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from teso_deploy.media.live import SourceHealth
from teso_deploy.runtime.delivery import Delivery
from teso_deploy.runtime.latency import WHOLE_FRAME, Histogram

SCHEMA_VERSION = 1
#: Rates are of the last so many seconds.
RATE_SECONDS = 5.0


class _Rate:
    """Events a second, lately."""

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
    """One stream's share."""

    def __init__(self) -> None:
        self.frames = self.masks_nonblank = 0
        self.redecodes: Counter[str] = Counter()
        self.stages: dict[str, Histogram] = {}
        self.redecode = Histogram()
        self.staleness = Histogram()
        self.rate = _Rate()
        self.cue_age_seconds = 0.0
        self.cue_source = "none"
        self.health: SourceHealth | None = None
        self.drops: dict[str, int] = {}


class Accounting:
    """Takes what the threads of a run tell it, from any of them; :meth:`snapshot` is the same for people and machines.

    ``inputs``: the streams' names, without credentials.
    """

    def __init__(self, inputs: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self.inputs, self._clock, self._began = list(inputs), clock, clock()
        self._streams = [_StreamCounts() for _ in inputs]
        self._sinks: dict[str, dict[str, Any]] = {}
        #: How the source of cues is that is asked beside the frames, if there is one.
        self.cue_health: Callable[[], dict[str, Any]] | None = None

    def delivered(self, delivery: Delivery) -> None:
        """Count a result."""
        found, stamps = delivery.segmentation, delivery.stamps
        times = list(stamps.values())
        with self._lock:
            stream = self._streams[delivery.stream]
            stream.cue_age_seconds, stream.cue_source = found.cues.age_seconds, found.cues.source
            if delivery.cause != "frame":
                stream.redecodes[delivery.cause] += 1
                stream.redecode.add(times[-1] - times[0])
                return
            stream.frames += 1
            stream.masks_nonblank += not found.is_blank
            stream.rate.add(self._clock())
            stream.staleness.add(delivery.staleness_seconds)
            for (_, before), (stage, done) in pairwise(stamps.items()):
                stream.stages.setdefault(stage, Histogram()).add(done - before)
            stream.stages.setdefault(WHOLE_FRAME, Histogram()).add(times[-1] - times[0])

    def source(self, stream: int, health: SourceHealth, drops: Mapping[str, int]) -> None:
        """How a source is, and what the scheduler dropped of it, by cause."""
        with self._lock:
            self._streams[stream].health, self._streams[stream].drops = health, dict(drops)

    def sinks(self, health: Mapping[str, dict[str, Any]]) -> None:
        """How the sinks are, by name."""
        with self._lock:
            self._sinks = dict(health)

    def snapshot(self) -> dict[str, Any]:
        """All of it as JSON has it; times of stages and ages of frames in milliseconds."""
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
            "latency_ms": {
                stage: stream.stages[stage].percentiles_ms()
                for stage in sorted(stream.stages, key=lambda name: name == WHOLE_FRAME)
            },
            "redecode_ms": stream.redecode.percentiles_ms(),
            "staleness_ms": stream.staleness.percentiles_ms(),
            "audio": {
                "there": health.has_audio if health else False,
                "seconds": round(health.audio_seconds, 3) if health else 0.0,
                "gap_seconds": round(health.gap_seconds, 3) if health else 0.0,
                "error": health.audio_error if health else None,
                "av_offset_seconds": _rounded(health.av_offset_seconds if health else None),
            },
            "decoder_delay_frames": health.delay_frames if health else 0,
            "corrupt_packets": health.corrupt_packets if health else 0,
            "corrupt_frames": health.corrupt_frames if health else 0,
            "discontinuities": health.discontinuities if health else 0,
            "format_changes": health.format_changes if health else 0,
            "reconnects": health.reconnects if health else 0,
            "cues": {"source": stream.cue_source, "age_seconds": round(stream.cue_age_seconds, 3)},
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


#: Name → (what it is, its kind, where it stands in a stream's part of a snapshot).
_METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "frames_total": ("Frames whose masks were delivered.", "counter", ("frames",)),
    "frames_decoded_total": ("Frames that were decoded.", "counter", ("frames_decoded",)),
    "frames_per_second": ("Frames delivered a second, lately.", "gauge", ("fps",)),
    "corrupt_packets_total": ("Damaged packets.", "counter", ("corrupt_packets",)),
    "corrupt_frames_total": ("Damaged frames.", "counter", ("corrupt_frames",)),
    "discontinuities_total": ("Leaps of the time stamps.", "counter", ("discontinuities",)),
    "format_changes_total": ("Changes of size, rotation or sample rate.", "counter", ("format_changes",)),
    "reconnects_total": ("Times that the source was opened again.", "counter", ("reconnects",)),
    "audio_seconds_total": ("Sound that was recorded.", "counter", ("audio", "seconds")),
    "audio_gap_seconds_total": ("Sound that nobody recorded.", "counter", ("audio", "gap_seconds")),
    "av_offset_seconds": ("How far the sound has come beyond the picture.", "gauge", ("audio", "av_offset_seconds")),
    "cue_age_seconds": ("Age of the text cues in use.", "gauge", ("cues", "age_seconds")),
}


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def prometheus(snapshot: Mapping[str, Any]) -> str:
    """A snapshot in Prometheus's text format."""
    lines: list[str] = []
    streams = [(f'stream="{i}",input="{_label(s["input"])}"', s) for i, s in enumerate(snapshot["streams"])]

    def metric(name: str, what: str, kind: str, values: Sequence[tuple[str, Any]]) -> None:
        lines.extend([f"# HELP teso_{name} {what}", f"# TYPE teso_{name} {kind}"])
        lines.extend(f"teso_{name}{{{labels}}} {value}" for labels, value in values if value is not None)

    for name, (what, kind, path) in _METRICS.items():
        values = []
        for labels, stream in streams:
            value: Any = stream
            for part in path:
                value = value[part]
            values.append((labels, value))
        metric(name, what, kind, values)
    up = [(labels, int(stream["state"] == "running")) for labels, stream in streams]
    metric("source_up", "1 while frames come.", "gauge", up)
    metric("drops_total", "Frames and packets that were dropped, by cause.", "counter", [
        (f'{labels},cause="{_label(cause)}"', count) for labels, s in streams for cause, count in s["drops"].items()
    ])  # fmt: skip
    metric("redecodes_total", "Decodes of the last picture with new sound or cues.", "counter", [
        (f'{labels},cause="{cause}"', count) for labels, s in streams for cause, count in s["redecodes"].items()
    ])  # fmt: skip
    for name, key, what in (
        ("stage_seconds", "latency_ms", "Time of a frame's stages."),
        ("staleness_seconds", "staleness_ms", "Age of frames when they were delivered."),
    ):
        values = []
        for labels, stream in streams:
            of = stream[key] if key == "latency_ms" else {"": stream[key]}
            for stage, percentiles in of.items():
                more = f',stage="{stage}"' if stage else ""
                values += [
                    (f'{labels}{more},quantile="{int(p[1:]) / 100:g}"', ms / 1e3) for p, ms in percentiles.items()
                ]
        metric(name, what, "gauge", values)
    sinks = [(f'sink="{_label(name)}"', s) for name, s in snapshot["sinks"].items()]
    metric(
        "sink_drops_total", "Results that a sink was too slow for.", "counter", [(n, s["dropped"]) for n, s in sinks]
    )
    if (source := snapshot["cue_source"]) is not None:
        label = f'source="{_label(source["source"])}"'
        questions = [(f'{label},reason="{reason}"', count) for reason, count in source["asked"].items()]
        metric("cue_questions_total", "Questions to the source of cues, by their cause.", "counter", questions)
        answers = [(f'{label},answer="{name}"', source[name]) for name in ("answered", "no_answer", "failed")]
        metric("cue_answers_total", "What became of them.", "counter", answers)
    metric("sink_up", "1 while a sink takes results.", "gauge", [(n, int(s["error"] is None)) for n, s in sinks])
    return "\n".join(lines) + "\n"
