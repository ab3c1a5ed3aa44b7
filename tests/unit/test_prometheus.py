"""A live run's numbers in Prometheus's format."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from teso_deploy.latency import BOUNDS_SECONDS, Histogram
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.prometheus import render_metrics
from tests.unit.test_live_accounting import HEALTH, delivery

COUNTERS = {
    "frames", "frames_decoded", "corrupt_packets", "corrupt_frames", "discontinuities", "format_changes", "reconnects",
    "audio_seconds", "audio_gap_seconds", "drops", "redecodes", "sink_drops", "cue_questions", "cue_answers",
}  # fmt: skip
GAUGES = {"frames_per_second", "av_offset_seconds", "cue_age_seconds", "source_up", "sink_up"}
HISTOGRAMS = {"stage_seconds", "redecode_seconds", "staleness_seconds"}


def read(accounting: Accounting) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample by its name and labels."""
    text = render_metrics(accounting)[0].decode()
    samples = [sample for family in parse_text(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def full_accounting() -> Accounting:
    accounting = Accounting(['a "quoted"\\ name\nof two lines'])
    accounting.count_delivery(delivery())
    accounting.count_delivery(delivery("sound", 0.002))
    accounting.set_source(0, HEALTH, {"stale": 4})
    accounting.set_sinks({"out\udcff.mp4": {"delivered": 1, "dropped": 7, "error": None}})
    asked = {"start": 1, "scene": 0, "sound": 2, "interval": 0}
    accounting.cue_health = lambda: {"source": "llm", "asked": asked, "answered": 2, "no_answer": 1, "failed": 0}
    return accounting


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", "*/*", "application/json"])
def test_each_metric_has_its_type_and_no_old_name_is_gone(accept: str) -> None:
    text, content_type = render_metrics(full_accounting(), accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family.type for family in parse_text(text.decode())}
    expected = dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(GAUGES, "gauge")
    expected |= dict.fromkeys(HISTOGRAMS, "histogram")
    assert families == {f"teso_{name}": kind for name, kind in expected.items()}


def test_openmetrics_where_it_is_asked_for() -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=\x1b[31m9,*/*;q=0.1"
    text, content_type = render_metrics(full_accounting(), accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0") and "\x1b" not in content_type
    families = {family.name: family.type for family in parse_openmetrics(text.decode())}
    assert families["teso_frames"] == "counter" and families["teso_stage_seconds"] == "histogram"


def test_values_and_labels() -> None:
    samples = read(full_accounting())
    stream = {("stream", "0"), ("input", 'a "quoted"\\ name\nof two lines')}

    def value(name: str, *labels: tuple[str, str]) -> float:
        return samples[f"teso_{name}", frozenset({*stream, *labels})]

    assert value("frames_total") == 1 and value("frames_decoded_total") == 30 and value("source_up") == 1
    assert value("drops_total", ("cause", "superseded")) == 3 and value("drops_total", ("cause", "stale")) == 4
    assert value("redecodes_total", ("cause", "sound")) == 1 and value("reconnects_total") == 2
    assert value("stage_seconds_count", ("stage", "frame")) == 1
    assert value("stage_seconds_sum", ("stage", "frame")) == pytest.approx(0.04)
    assert value("stage_seconds_bucket", ("stage", "frame"), ("le", "0.025")) == 0
    assert value("stage_seconds_bucket", ("stage", "frame"), ("le", "0.05")) == 1
    assert value("redecode_seconds_bucket", ("le", "0.0025")) == 1
    assert value("staleness_seconds_bucket", ("le", "0.1")) == 1
    assert value("staleness_seconds_bucket", ("le", "0.05")) == 0
    assert samples["teso_sink_drops_total", frozenset({("sink", "out\\udcff.mp4")})] == 7
    assert samples["teso_cue_questions_total", frozenset({("source", "llm"), ("reason", "sound")})] == 2
    assert samples["teso_cue_answers_total", frozenset({("source", "llm"), ("answer", "no_answer")})] == 1


@pytest.mark.parametrize("seed", range(2))
def test_buckets_are_exact_and_the_sum_of_two_streams_is_that_of_all_their_frames(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(-3, 2, 2000)
    values[: len(BOUNDS_SECONDS)] = BOUNDS_SECONDS  # a duration that equals a bound belongs to its bucket
    halves = Histogram(), Histogram()
    for number, value in enumerate(values):
        halves[number % 2].add(float(value))
    added = np.sum([half.count_bounded().at_most for half in halves], axis=0)
    assert added.tolist() == [int((values <= bound).sum()) for bound in (*BOUNDS_SECONDS, np.inf)]
    assert sum(half.count_bounded().sum_seconds for half in halves) == pytest.approx(values.sum())


def test_a_duration_below_zero_lets_no_sum_fall() -> None:
    histogram = Histogram()
    histogram.add(0.5)
    histogram.add(-0.1)
    assert histogram.count_bounded().sum_seconds == 0.5 and histogram.count_bounded().at_most[-1] == 2
    assert histogram.count_bounded().at_most[0] == 1
