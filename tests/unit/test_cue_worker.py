"""The worker: no thread waits for a source, whatever the source does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.cues import asking
from teso_deploy.cues.asking import AskingOptions
from teso_deploy.cues.chain import ChainSource
from teso_deploy.cues.contracts import CueAnswer, CueMoment
from teso_deploy.cues.worker import TICK_SECONDS, CueWorker
from teso_deploy.errors import CueSourceError, NoCueAnswerError
from teso_deploy.types import Cues, Frame
from tests.support.leaks import nothing_left

NONE = Cues((), np.zeros((4, 8), np.float32), np.zeros(4, np.bool_), source="none")
FEATURES, SAMPLES = np.ones(16, np.float32), np.full(15_600, 0.1, np.float32)
DOG, CAT = CueAnswer(("dog",), "llm"), CueAnswer(("cat",), "llm")


def as_cues(answer: CueAnswer) -> Cues:
    valid = np.arange(4) < len(answer.names)
    return Cues(answer.names, np.ones((4, 8), np.float32) * valid[:, None], valid, source=answer.source)


class Scripted:
    """A source with preset answers or errors, the last of which is repeated. ``hold``: it waits until this is set."""

    name = identity = "scripted"

    def __init__(self, *script: Any, hold: threading.Event | None = None) -> None:
        self._script, self._hold = list(script), hold
        self.moments: list[CueMoment] = []
        self.at_once = self.most_at_once = self.closed = 0

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.moments.append(moment)
        try:
            if self._hold is not None:
                self._hold.wait(120)
            answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[no-any-return]
        finally:
            self.at_once -= 1

    def close(self) -> None:
        self.closed += 1


class Offers(list[tuple[int, tuple[str, ...], float | None]]):
    def offer(self, stream: int, cues: Cues, of_seconds: float | None) -> None:
        self.append((stream, cues.names, of_seconds))


def frame(seconds: float, grey: int = 100) -> Frame:
    image = np.full((48, 64, 3), grey, np.uint8)
    image[::7] = np.random.default_rng(grey).integers(0, 255, (7, 64, 3), np.uint8)
    return Frame(image, pts_seconds=seconds)


def worker_of(
    source: Any, offers: Offers, streams: int = 1, *, frames: int = 1, clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> CueWorker:  # fmt: skip
    more = {"every_seconds": 1.0, "budget_per_minute": 1000, "on_sound": False, **options}
    return CueWorker(
        source, as_cues, offer=offers.offer, none=NONE, streams=streams, options=AskingOptions(**more), frames=frames,
        clock=clock,
    )  # fmt: skip


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def window(k: int) -> NDArray[np.float32]:
    """Return a window that differs from all others."""
    return SAMPLES * np.float32(1 + 0.01 * k)


def saw(worker: CueWorker, seconds: float, stream: int = 0, grey: int = 100) -> float:
    """Show the worker a picture, and return the CPU time of that."""
    shown = frame(seconds, grey)
    began = time.thread_time()
    worker.note_picture(stream, shown, features=FEATURES, samples=SAMPLES)
    return time.thread_time() - began


def test_answers_are_offered_with_the_time_of_their_picture() -> None:
    source, offers = Scripted(DOG, None, CAT), Offers()
    worker = worker_of(source, offers)
    for seconds in (5.0, 6.5, 8.0):
        saw(worker, seconds)
        count = len(offers)
        until(lambda before=count: len(offers) > before)  # type: ignore[misc]
    assert offers == [(0, ("dog",), 5.0), (0, (), 6.5), (0, ("cat",), 8.0)]
    health = worker.health()
    assert health["answered"] == 2 and health["no_answer"] == 1 and health["failed"] == 0
    assert health["asked"] == {"start": 1, "scene": 0, "sound": 0, "interval": 2} and health["source"] == "scripted"
    worker.close()


def test_frames_do_not_wait_for_a_source_that_hangs() -> None:
    hold = threading.Event()
    source, offers = Scripted(DOG, hold=hold), Offers()
    worker = worker_of(source, offers)
    saw(worker, 0.0)
    until(lambda: len(source.moments) == 1)
    began = time.monotonic()
    took = [saw(worker, 0.04 * k) for k in range(1, 200)]
    assert time.monotonic() - began < 60, "the source waits for longer than that"
    assert np.median(took) < 0.005 and offers == [] and len(source.moments) == 1
    assert worker.health()["asking_seconds"] is not None
    hold.set()
    until(lambda: len(offers) >= 2)
    assert offers[0] == (0, ("dog",), 0.0) and source.most_at_once == 1
    assert source.moments[1].frame.pts_seconds == pytest.approx(199 * 0.04), "the newest, not the one that waited"
    worker.close()


def test_a_source_that_fails_is_told_of_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_PAUSE_SECONDS", 0.02)
    faults = [CueSourceError("the server is gone: start it"), ZeroDivisionError(), MemoryError("much"), KeyError("x")]
    source, offers = Scripted(*faults, DOG), Offers()
    worker = worker_of(source, offers)
    saw(worker, 0.0)
    until(lambda: worker.health()["failed"] == 1)
    assert worker.health()["error"] == "the server is gone: start it"
    until(lambda: offers == [(0, ("dog",), 0.0)])
    health = worker.health()
    assert health["failed"] == 4 and health["error"] is None and health["asked"]["start"] == 5
    worker.close()


def test_a_source_that_answers_nothing_is_named_and_asked_again_without_a_pause() -> None:
    source, offers = Scripted(DOG, NoCueAnswerError("refused:\n\x1b[31mno"), CAT), Offers()
    worker = worker_of(source, offers)
    for seconds, error in ((5.0, None), (6.5, "refused: no"), (8.0, None)):
        saw(worker, seconds)
        count = len(offers)
        until(lambda before=count: len(offers) > before)  # type: ignore[misc]
        assert worker.health()["error"] == error
    assert offers == [(0, ("dog",), 5.0), (0, (), 6.5), (0, ("cat",), 8.0)]
    assert worker.health()["no_answer"] == 1 and worker.health()["failed"] == 0
    worker.close()


def test_answers_that_can_not_be_used_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(answer: CueAnswer) -> Cues:
        raise ValueError("no such embedding")

    source = Scripted(DOG)
    worker = CueWorker(source, broken, offer=Offers().offer, none=NONE, streams=1)
    saw(worker, 0.0)
    until(lambda: worker.health()["failed"] == 1)
    assert "no such embedding" in worker.health()["error"]
    worker.close()


def test_a_source_says_when_it_may_be_asked_again() -> None:
    source, offers, now = Scripted(CueSourceError("busy", 7.0), DOG), Offers(), [100.0]
    worker = worker_of(source, offers, clock=lambda: now[0])
    saw(worker, 0.0)
    until(lambda: worker.health()["failed"] == 1)
    assert worker.health()["wait_seconds"] == 7
    now[0] += 6.9
    time.sleep(2 * TICK_SECONDS)
    assert offers == [] and len(source.moments) == 1
    now[0] += 0.2
    until(lambda: len(offers) == 1)
    worker.close()


def test_a_budget_is_kept() -> None:
    source, offers = Scripted(DOG), Offers()
    worker = worker_of(source, offers, budget_per_minute=3, every_seconds=0.001, clock=lambda: 100.0)
    for k in range(100):
        saw(worker, 0.04 * k)
        until(lambda k=k: len(offers) >= min(k + 1, 3))  # type: ignore[misc]
    time.sleep(2 * TICK_SECONDS)
    assert len(source.moments) == 3 and worker.health()["wait_seconds"] == 60
    worker.close()


def test_streams_are_served_in_turn() -> None:
    hold = threading.Event()
    source, offers = Scripted(DOG, hold=hold), Offers()
    worker = worker_of(source, offers, streams=3, every_seconds=0.001)
    for k in range(4):
        for stream in range(3):
            saw(worker, 1.0 + k, stream, grey=50 * stream + 20)
    hold.set()
    until(lambda: len(offers) >= 3)
    assert {stream for stream, _, _ in offers[:3]} == {0, 1, 2}
    worker.close()


def test_captioners_of_videos_see_what_was_before() -> None:
    source, offers = Scripted(DOG), Offers()
    worker = worker_of(source, offers, frames=3, every_seconds=4.0, on_scene=False)
    for k in range(40):
        saw(worker, 0.25 * k)
        until(lambda count=1 + k // 16: len(source.moments) == count)  # type: ignore[misc]
    earlier = [[one.pts_seconds for one in moment.earlier] for moment in source.moments]
    assert earlier[0] == [] and earlier[1] == pytest.approx([2.0, 3.0], abs=0.5)
    worker.close()


#: Pictures of two scenes, and features of another kind of sound.
PICTURES = np.random.default_rng(0).integers(0, 255, (2, 12, 16, 3), np.uint8).repeat(8, 1).repeat(8, 2)
OTHER = np.concatenate([np.ones(8), -np.ones(8)]).astype(np.float32)


def test_a_new_scene_and_a_new_sound_are_causes() -> None:
    offers = Offers()
    worker = worker_of(Scripted(DOG), offers, every_seconds=None, on_sound=True)
    for k in range(12):
        worker.note_picture(0, Frame(PICTURES[k // 6], pts_seconds=k / 25), features=FEATURES, samples=window(k))
        if k in (0, 5):  # a reason that arrives while another one waits is dropped
            until(lambda count=1 + k // 5: len(offers) == count)  # type: ignore[misc]
    until(lambda: len(offers) == 3)
    for k in range(12, 20):
        worker.note_picture(0, Frame(PICTURES[1], pts_seconds=k / 25), features=OTHER, samples=window(k))
    until(lambda: len(offers) == 4)
    assert worker.health()["asked"] == {"start": 1, "scene": 1, "sound": 2, "interval": 0}
    worker.close()


def test_what_is_seen_or_heard_again_is_no_news() -> None:
    """A picture is decoded again with each window, and a window is used with several pictures."""
    offers = Offers()
    worker = worker_of(Scripted(DOG), offers, every_seconds=None, on_sound=True)
    for k in range(6):
        worker.note_picture(0, Frame(PICTURES[0], pts_seconds=k / 25), features=FEATURES, samples=window(k))
        until(lambda: len(offers) >= 1)
    until(lambda: len(offers) == 2)
    flash = Frame(PICTURES[1], pts_seconds=0.3)
    for k in range(6):
        worker.note_picture(0, flash, features=FEATURES, samples=window(10 + k))
    for k in range(6):
        worker.note_picture(0, Frame(PICTURES[0], pts_seconds=0.4 + k / 25), features=OTHER, samples=window(20))
    until(lambda: worker.health()["asked"]["sound"] == 1)
    time.sleep(0.1)
    assert worker.health()["asked"] == {"start": 1, "scene": 0, "sound": 1, "interval": 0}
    worker.close()


def test_what_a_person_typed_does_not_age() -> None:
    offers = Offers()
    worker = worker_of(Scripted(CueAnswer(("dog",), "manual", 3.0)), offers)
    saw(worker, 3.0)
    until(lambda: offers == [(0, ("dog",), None)])
    worker.close()


def test_a_chain_tells_what_is_wrong_and_heeds_its_pauses() -> None:
    busy, offers = Scripted(CueSourceError("busy (429)", 600.0)), Offers()
    worker = worker_of(ChainSource([busy, Scripted(DOG)]), offers, every_seconds=0.5)
    for k in range(4):
        saw(worker, float(k))
        until(lambda before=k: len(offers) > before)  # type: ignore[misc]
    health = worker.health()
    assert len(busy.moments) == 1, "not asked again before its time"
    assert health["failed"] == 4 and health["answered"] == 4 and "busy (429)" in health["error"]
    worker.close()


def test_closing_does_not_wait_for_a_source() -> None:
    hold = threading.Event()
    source, offers = Scripted(DOG, hold=hold), Offers()
    worker = worker_of(source, offers)
    saw(worker, 0.0)
    until(lambda: len(source.moments) == 1)
    began = time.monotonic()
    worker.close()
    assert time.monotonic() - began < 20 and source.closed == 1
    hold.set()
    time.sleep(0.05)
    assert offers == [], "what comes too late is not offered"
    worker.close()


def test_nothing_is_left() -> None:
    with nothing_left("teso-cues"):
        for _ in range(5):
            worker = worker_of(Scripted(DOG), Offers())
            saw(worker, 0.0)
            worker.close()
