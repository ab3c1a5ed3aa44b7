"""A live run with a source of cues that is slow, dead or wrong: the frames are not affected."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from teso_deploy.cli.live import start_cue_worker
from teso_deploy.cues.asking import AskingOptions
from teso_deploy.cues.choosing import Chosen
from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.worker import CueWorker
from teso_deploy.errors import CueError, CueSourceError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.prometheus import render_metrics
from teso_deploy.live.runner import LiveRunner
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.delivery import Delivery
from tests.support.leaks import nothing_left
from tests.support.segmentations import read_cues
from tests.unit.test_cue_worker import Scripted
from tests.unit.test_live_runner import Camera, Enough, has_frames

DOG = CueAnswer(("dog", "an unknown thing"), "llm")


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, threads=1)


def ran(
    pipeline: Pipeline, source: Any, enough: Enough, *, needs_tags: bool = False, needs_masks: bool = False,
    streams: int = 1, **asking: Any,
) -> tuple[list[Delivery], dict[str, Any]]:  # fmt: skip
    """Return the deliveries of a run with a source until they are enough, and its report.

    ``metrics`` is Prometheus's text.
    """
    cameras, found = [Camera(60.0) for _ in range(streams)], list[Delivery]()

    def take(delivery: Delivery) -> None:
        found.append(delivery)
        if enough(found):
            runner.stop()

    accounting = Accounting([camera.address.shown for camera in cameras])
    options = AskingOptions(**{"every_seconds": 0.2, "budget_per_minute": 1000, **asking})
    readers = cast(list[LiveReader], cameras)
    runner = LiveRunner(
        pipeline, readers, [CallbackSink(take)], accounting=accounting, cue_ttl_seconds=options.ttl_seconds
    )
    worker: CueWorker = start_cue_worker(
        runner, pipeline, chosen=Chosen(source, needs_tags, needs_masks), asking=options
    )
    accounting.cue_health = worker.health
    try:
        runner.run()
        return found, accounting.snapshot() | {"metrics": render_metrics(accounting)[0].decode()}
    finally:
        worker.close()


def sources_of(found: list[Delivery]) -> list[str]:
    """The sources of the cues of each delivery."""
    return [read_cues(one.segmentation).source for one in found]


def test_cues_are_used_as_soon_as_they_are_there(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: list[float] = []
    offer = LiveRunner.offer_cues

    def note(self: LiveRunner, *given: Any, **named: Any) -> None:
        offer(self, *given, **named)
        arrived.append(time.monotonic())

    class Slow(Scripted):
        def ask(self, moment: Any) -> CueAnswer | None:
            time.sleep(0.4)
            return super().ask(moment)

    monkeypatch.setattr(LiveRunner, "offer_cues", note)
    found, snapshot = ran(
        pipeline, Slow(DOG), lambda found: sources_of(found).count("llm") >= 10, every_seconds=None, on_sound=False,
        on_scene=False,
    )  # fmt: skip
    places = [k for k, one in enumerate(found) if read_cues(one.segmentation).names == ("dog",)]
    with_cues = [found[k] for k in places]
    first = with_cues[0]
    assert read_cues(first.segmentation).source == "llm"
    begun = [one.stamps.get("began", one.stamps.get("encoded", 0.0)) for one in found]
    later = next(k for k, at in enumerate(begun) if at >= arrived[0])
    assert places[0] <= later + 1 and places == list(range(places[0], len(found))), "within one result of their arrival"
    ages = [read_cues(one.segmentation).age_seconds for one in with_cues]
    assert 0.3 < ages[0] < 30 and ages[-1] > ages[0]
    assert {read_cues(one.segmentation).source for one in found[: places[0]]} == {"fallback"}
    assert snapshot["cue_source"]["answered"] == 1 and snapshot["streams"][0]["cues"]["source"] == "llm"
    assert 'teso_cue_questions_total{reason="start",source="scripted"} 1.0' in snapshot["metrics"]
    assert 'teso_cue_answers_total{answer="answered",source="scripted"} 1.0' in snapshot["metrics"]


def test_frames_come_while_a_source_hangs(pipeline: Pipeline) -> None:
    hold = threading.Event()
    began = time.monotonic()
    with nothing_left("teso-encode"):
        found, snapshot = ran(pipeline, Scripted(DOG, hold=hold), has_frames(20))
    assert time.monotonic() - began < 30, "its end does not wait for the source either"
    hold.set()
    assert has_frames(20)(found) and set(sources_of(found)) == {"fallback"}
    assert snapshot["cue_source"]["asking_seconds"] > 0.1


@pytest.mark.parametrize("fault", [CueSourceError("gone: start it"), ZeroDivisionError("x"), CueError("no such word")])
def test_frames_come_while_a_source_fails(pipeline: Pipeline, fault: Exception) -> None:
    source = Scripted(fault)
    found, snapshot = ran(pipeline, source, lambda found: has_frames(10)(found) and len(source.moments) >= 2)
    assert has_frames(10)(found)
    assert snapshot["cue_source"]["failed"] >= 1 and snapshot["cue_source"]["error"] == str(fault)


def test_cues_that_are_too_old_give_way(pipeline: Pipeline) -> None:
    def gave_way(found: list[Delivery]) -> bool:
        sources = sources_of(found)
        return "llm" in sources and sources[-1] == "fallback"

    found, _ = ran(
        pipeline, Scripted(DOG), gave_way, every_seconds=None, on_sound=False, on_scene=False, ttl_seconds=1.0
    )
    assert gave_way(found)
    ages = [read_cues(one.segmentation).age_seconds for one in found if read_cues(one.segmentation).source == "llm"]
    assert max(ages) < 3


def test_no_answer_takes_the_cues_away(pipeline: Pipeline) -> None:
    def gave_way(found: list[Delivery]) -> bool:
        sources = sources_of(found)
        return "llm" in sources and sources[-1] == "fallback"

    found, snapshot = ran(pipeline, Scripted(DOG, None), gave_way, every_seconds=0.5, on_sound=False, on_scene=False)
    assert gave_way(found) and snapshot["cue_source"]["no_answer"] >= 1


def test_what_the_model_finds_is_told_to_sources_that_go_by_it(pipeline: Pipeline) -> None:
    source = Scripted(DOG)
    ran(pipeline, source, lambda found: len(source.moments) >= 4, needs_tags=True, needs_masks=True, streams=2)
    assert source.moments and all(set(moment.tags or {}) == {"car", "cow", "dog"} for moment in source.moments)
    assert all(moment.predicted is not None for moment in source.moments)
    plain = Scripted(DOG)
    ran(pipeline, plain, lambda found: len(plain.moments) >= 2)
    assert all(moment.tags is None and moment.predicted is None for moment in plain.moments)
