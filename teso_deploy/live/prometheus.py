"""Write the counts of a live run as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from teso_deploy.latency import BOUNDS_SECONDS, BoundedCounts
from teso_deploy.live.accounting import Accounting

OPENMETRICS = "application/openmetrics-text"
STREAM_LABELS = ("stream", "input")
#: Name → (help, path of the value in a stream's part of a snapshot). The library appends ``_total`` to counters.
_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "frames": ("Frames whose masks were delivered.", ("frames",)),
    "frames_decoded": ("Frames that were decoded.", ("frames_decoded",)),
    "corrupt_packets": ("Damaged packets.", ("corrupt_packets",)),
    "corrupt_frames": ("Damaged frames.", ("corrupt_frames",)),
    "discontinuities": ("Jumps of the time stamps.", ("discontinuities",)),
    "format_changes": ("Changes of size, rotation or sample rate.", ("format_changes",)),
    "reconnects": ("How often the source was opened again.", ("reconnects",)),
    "audio_seconds": ("Sound that was recorded.", ("audio", "seconds")),
    "audio_gap_seconds": ("Sound that is missing from the recording.", ("audio", "gap_seconds")),
}
_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "frames_per_second": ("Recent number of delivered frames per second.", ("fps",)),
    "av_offset_seconds": ("How far the sound is ahead of the picture.", ("audio", "av_offset_seconds")),
    "cue_age_seconds": ("Age of the text cues in use.", ("cues", "age_seconds")),
}


def _look_up(stream: Mapping[str, Any], path: Iterable[str]) -> Any:
    value: Any = stream
    for part in path:
        value = value[part]
    return value


def _make_label(text: object) -> str:
    # A file name may hold bytes that are not UTF-8, which the encoder refuses.
    return str(text).encode("utf-8", "backslashreplace").decode()


def _make_counter(
    name: str, text: str, *, labels: Iterable[str], values: Iterable[tuple[Iterable[object], float]]
) -> Metric:
    family = CounterMetricFamily(f"teso_{name}", text, labels=list(labels))
    for given, value in values:
        family.add_metric([_make_label(label) for label in given], value)
    return family


def _make_gauge(
    name: str, text: str, *, labels: Iterable[str], values: Iterable[tuple[Iterable[object], float | None]]
) -> Metric:
    family = GaugeMetricFamily(f"teso_{name}", text, labels=list(labels))
    for given, value in values:
        if value is not None:
            family.add_metric([_make_label(label) for label in given], value)
    return family


def _make_histogram(
    name: str, text: str, *, labels: Iterable[str], values: Iterable[tuple[Iterable[object], BoundedCounts]]
) -> Metric:
    family = HistogramMetricFamily(f"teso_{name}", text, labels=list(labels))
    bounds = [*map(str, BOUNDS_SECONDS), "+Inf"]
    for given, counts in values:
        buckets = list(zip(bounds, map(float, counts.at_most), strict=True))
        family.add_metric([_make_label(label) for label in given], buckets, counts.sum_seconds)
    return family


class RunCollector(Collector):
    """Reads an :class:`Accounting` for each scrape."""

    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families with their current values."""
        snapshot = self._accounting.snapshot()
        streams = [((number, stream["input"]), stream) for number, stream in enumerate(snapshot["streams"])]
        yield from self._collect_streams(streams)
        yield from self._collect_durations([labels for labels, _ in streams])
        sinks = snapshot["sinks"].items()
        dropped = [((name,), sink["dropped"]) for name, sink in sinks]
        yield _make_counter(
            "sink_drops", "Results that were dropped because a sink was too slow.", labels=("sink",), values=dropped
        )
        works = [((name,), float(sink["error"] is None)) for name, sink in sinks]
        yield _make_gauge("sink_up", "1 while the sink works.", labels=("sink",), values=works)
        if (source := snapshot["cue_source"]) is not None:
            name = source["source"]
            asked = [((name, reason), count) for reason, count in source["asked"].items()]
            yield _make_counter(
                "cue_questions",
                "Questions that the source of cues was asked, by reason.",
                labels=("source", "reason"),
                values=asked,
            )
            answers = [((name, answer), source[answer]) for answer in ("answered", "no_answer", "failed")]
            yield _make_counter(
                "cue_answers", "Answers of the source of cues, by kind.", labels=("source", "answer"), values=answers
            )

    def _collect_streams(self, streams: list[tuple[tuple[int, str], Mapping[str, Any]]]) -> Iterator[Metric]:
        for name, (text, path) in _COUNTERS.items():
            yield _make_counter(
                name, text, labels=STREAM_LABELS, values=[(labels, _look_up(one, path)) for labels, one in streams]
            )
        for name, (text, path) in _GAUGES.items():
            yield _make_gauge(
                name, text, labels=STREAM_LABELS, values=[(labels, _look_up(one, path)) for labels, one in streams]
            )
        is_up = [(labels, float(one["state"] == "running")) for labels, one in streams]
        yield _make_gauge("source_up", "1 while frames arrive.", labels=STREAM_LABELS, values=is_up)
        for name, text in (
            ("drops", "Frames and packets that were dropped, by cause."),
            ("redecodes", "Decodes of the last picture with new sound or cues."),
        ):
            counts = [((*labels, cause), count) for labels, one in streams for cause, count in one[name].items()]
            yield _make_counter(name, text, labels=(*STREAM_LABELS, "cause"), values=counts)

    def _collect_durations(self, streams: list[tuple[int, str]]) -> Iterator[Metric]:
        durations = list(zip(streams, self._accounting.get_durations(), strict=True))
        stages = [((*labels, stage), counts) for labels, one in durations for stage, counts in one.stages.items()]
        yield _make_histogram(
            "stage_seconds", "Time that each stage took for a frame.", labels=(*STREAM_LABELS, "stage"), values=stages
        )
        redecodes = [(labels, one.redecode) for labels, one in durations]
        yield _make_histogram(
            "redecode_seconds", "Time of a decode with new sound or cues.", labels=STREAM_LABELS, values=redecodes
        )
        ages = [(labels, one.staleness) for labels, one in durations]
        yield _make_histogram(
            "staleness_seconds", "Age of frames when they were delivered.", labels=STREAM_LABELS, values=ages
        )


def render_metrics(accounting: Accounting, accept: str = "") -> tuple[bytes, str]:
    """Return the metrics of a run for one scrape.

    Args:
        accounting: The run's counts.
        accept: The request's ``Accept`` header. OpenMetrics is used only if it is named there.

    Returns:
        The text and its content type.
    """
    registry = CollectorRegistry()
    registry.register(RunCollector(accounting))
    # The library repeats the header's version in its answer, so do not pass text of a client to it.
    encode, content_type = choose_encoder(f"{OPENMETRICS}; version=1.0.0" if OPENMETRICS in accept else "")
    return encode(registry), content_type
