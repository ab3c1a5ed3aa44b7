"""The numbers of a live run: bounded memory, accurate to one per cent, for people and for JSON."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from teso_deploy.cli.live_view import draw_snapshot
from teso_deploy.errors import OutputError
from teso_deploy.latency import Histogram
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.metrics_server import parse_place
from teso_deploy.media.source_health import SourceHealth
from teso_deploy.sinks.delivery import Cause, Delivery, InputFacts
from teso_deploy.types import Cues, Frame, Segmentation

HEALTH = SourceHealth("running", 30, 2, 1, {"superseded": 3}, 1, 0, 2, 0.5, 9.5, True, 0.04, 2, None, None)


def delivery(cause: Cause = "frame", took: float = 0.04) -> Delivery:
    cues = Cues(("dog",), np.zeros((1, 2), np.float32), np.ones(1, bool), "llm", 2.5)
    found = Segmentation(np.ones((4, 4), np.uint8), np.ones(1, np.float32), np.ones(1, np.float32), cues)
    return Delivery(
        stream=0,
        input=InputFacts(name="camera"),
        frame=Frame(np.zeros((4, 4, 3), np.uint8), 0.0),
        segmentation=found,
        cause=cause,
        shown_at_seconds=0.0,
        staleness_seconds=0.1,
        audio_end_seconds=0.0,
        stamps={"captured": 0.0, "decoded": took / 4, "delivered": took},
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_histogram_is_within_one_per_cent(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(-3, 1.5, 5000)
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for name, found in histogram.percentiles_ms().items():
        exact = np.percentile(values, int(name[1:]), method="inverted_cdf") * 1e3
        assert found == pytest.approx(exact, rel=0.011)
    assert Histogram().percentiles_ms() == {}


def test_what_a_snapshot_says() -> None:
    time = [0.0]
    accounting = Accounting(["rtsp://***@cam/live"], clock=lambda: time[0])
    for n in range(10):
        time[0] = n * 0.1
        accounting.count_delivery(delivery())
    accounting.count_delivery(delivery("sound", 0.002))
    accounting.set_source(0, HEALTH, {"stale": 4, "closed": 0})
    accounting.set_sinks({"out.mp4": {"delivered": 10, "dropped": 1, "error": "full [bold]disk"}})
    time[0] = 1.0
    snapshot = json.loads(json.dumps(accounting.snapshot()))
    (stream,) = snapshot["streams"]
    assert (stream["frames"], stream["fps"], stream["frames_decoded"]) == (10, 10.0, 30)
    assert stream["drops"] == {"stale": 4, "superseded": 3} and stream["redecodes"] == {"sound": 1, "cues": 0}
    assert stream["latency_ms"]["frame"]["p50"] == pytest.approx(40, rel=0.01)
    assert stream["latency_ms"]["decoded"]["p99"] == pytest.approx(10, rel=0.01)
    assert stream["redecode_ms"]["p50"] == pytest.approx(2, rel=0.01)
    assert stream["cues"] == {"source": "llm", "age_seconds": 2.5} and stream["reconnects"] == 2
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(draw_snapshot(snapshot))
    assert "rtsp://***@cam/live" in (text := console.export_text()) and "full [bold]disk" in text


@pytest.mark.parametrize("text", ["", "9090x", ":70000", "host", ":" + "9" * 5000])
def test_no_place_for_metrics(text: str) -> None:
    with pytest.raises(OutputError, match="give :PORT"):
        parse_place(text)
    assert parse_place("9090") == ("127.0.0.1", 9090) and parse_place("0.0.0.0:1") == ("0.0.0.0", 1)
