"""Latency percentiles, events, and the choice of a file's frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from teso_deploy.latency import LatencyLog, percentiles_ms
from teso_deploy.pipeline.video_source import choose_one_a_second
from teso_deploy.sinks.events import Event, EventLog
from teso_deploy.types import Cues, Frame, Segmentation

NO_CUES = Cues((), np.zeros((1, 2), np.float32), np.zeros(1, np.bool_), source="fallback")


def segmentation(pts_seconds: float, *labels: int, score: float = 0.8) -> Segmentation:
    picture = np.zeros((10, 10), np.uint8)
    for row, label in enumerate(labels):
        picture[row] = label
    return Segmentation(
        picture, np.full(3, score, np.float32), np.zeros(1, np.float32), NO_CUES, pts_seconds=pts_seconds
    )


def test_percentiles_are_milliseconds() -> None:
    assert percentiles_ms([0.001 * i for i in range(101)]) == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
    assert percentiles_ms([]) == {}


def test_a_stage_lasts_from_the_stamp_before() -> None:
    log = LatencyLog()
    log.add({"started": 1.0, "encoded": 1.25, "masked": 1.5})
    summary = log.summary()
    assert list(summary) == ["encoded", "masked", "frame"]
    assert summary["encoded"]["p50"] == 250 and summary["frame"]["p99"] == 500


def test_an_event_lasts_from_the_first_frame_to_the_last() -> None:
    log = EventLog(["dog", "cow", "car"])
    events: list[Event] = []
    for i in range(50):
        t = i * 0.04
        heard = [1] * (0.4 <= t < 0.8) + [2] * (t >= 1.2)
        events += log.add(segmentation(t, *heard))
    assert [(e.name, e.onset_seconds, e.end_seconds, e.frames) for e in events] == [("dog", 0.4, 0.76, 10)]
    last = list(log.finish())
    assert [(e.name, e.onset_seconds, e.end_seconds) for e in last] == [("cow", 1.2, 1.96)]
    assert last[0].confidence == pytest.approx(0.8)


def test_a_short_gap_does_not_end_an_event_and_a_long_one_does() -> None:
    for gap, count in ((0.2, 1), (0.3, 2)):
        log = EventLog(["dog", "cow", "car"])
        given = segmentation(0.0, 1), segmentation(gap / 2), segmentation(gap, 1)
        assert len([*(event for one in given for event in log.add(one)), *log.finish()]) == count


def test_rare_results_make_no_gaps_and_long_pauses_do() -> None:
    for pause, count in ((0.4, 1), (1.9, 1), (2.1, 10)):
        log = EventLog(["dog", "cow", "car"])
        given = [segmentation(pause * i, 1) for i in range(10)]
        assert len([*(event for one in given for event in log.add(one)), *log.finish()]) == count


def test_what_comes_late_sets_no_time_back() -> None:
    log = EventLog(["dog", "cow", "car"])
    assert not list(log.add(segmentation(1.0, 1)))
    assert not list(log.add(segmentation(0.5), at_seconds=0.5))
    (event,) = log.finish()
    assert (event.onset_seconds, event.end_seconds) == (1.0, 1.0)


def test_a_confidence_is_at_most_one() -> None:
    log = EventLog(["dog", "cow", "car"])
    (event,) = [*log.add(replace(segmentation(0.0, 1), class_scores=np.full(3, 1.4, np.float32))), *log.finish()]
    assert event.confidence == 1.0


def test_two_classes_at_once_are_two_events() -> None:
    log = EventLog(["dog", "cow", "car"])
    assert not list(log.add(segmentation(0.0, 1, 3)))
    assert [event.name for event in log.finish()] == ["dog", "car"]


def frames(fps: float, seconds: float, start: float = 0.0) -> list[Frame]:
    image = np.zeros((2, 2, 3), np.uint8)
    return [Frame(image, start + i / fps, i) for i in range(round(seconds * fps))]


@pytest.mark.parametrize("fps", [8, 25, 29.97, 60])
def test_one_frame_of_each_second(fps: float) -> None:
    chosen = list(choose_one_a_second(frames(fps, 5.0), 1 / fps))
    assert [second for second, _ in chosen] == [0, 1, 2, 3, 4]
    for second, frame in chosen:
        assert second + 0.9375 - 1 / fps - 1e-9 <= frame.pts_seconds <= second + 0.9375


def test_a_begun_second_is_left_out_and_a_short_clip_gives_its_last_frame() -> None:
    assert [second for second, _ in choose_one_a_second(frames(25, 2.5), 0.04)] == [0, 1]
    assert [(second, frame.index) for second, frame in choose_one_a_second(frames(25, 0.4), 0.04)] == [(0, 9)]
    assert list(choose_one_a_second([], 0.04)) == []


def test_one_frame_a_second_is_each_taken_once() -> None:
    assert [(second, frame.index) for second, frame in choose_one_a_second(frames(1, 5), 1.0)] == [
        (i, i) for i in range(5)
    ]
