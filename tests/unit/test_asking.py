"""The times at which a source is asked: reasons, budget, pauses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from teso_deploy.cues.asking import Allowance, AskingOptions, Reason, Wish

OPTIONS = AskingOptions(every_seconds=10.0, budget_per_minute=3)


def wishes(*pictures: tuple[float, bool, bool], options: AskingOptions = OPTIONS) -> list[tuple[float, Reason]]:
    """Return when and why a source is asked if every wish is granted at once. Pictures: time, new scene, new sound."""
    wish, found = Wish(options), list[tuple[float, Reason]]()
    for seconds, scene, sound in pictures:
        wish.note_picture(seconds, is_new_scene=scene, is_new_sound=sound)
        if wish.reason is not None:
            found.append((seconds, wish.reason))
            wish.note_question(seconds)
    return found


def still(*seconds: float) -> list[tuple[float, bool, bool]]:
    return [(at, False, False) for at in seconds]


def test_at_the_start_and_every_n_seconds() -> None:
    assert wishes(*still(*range(0, 31))) == [(0, "start"), (10, "interval"), (20, "interval"), (30, "interval")]
    never = replace(OPTIONS, every_seconds=None)
    assert wishes(*still(*range(0, 100)), options=never) == [(0, "start")]


def test_at_a_new_scene_and_a_new_sound() -> None:
    pictures = [(0.0, False, False), (1.0, True, False), (2.0, False, True), (3.0, True, True)]
    assert wishes(*pictures) == [(0, "start"), (1, "scene"), (2, "sound"), (3, "scene")]
    deaf = replace(OPTIONS, on_sound=False, on_scene=False)
    assert wishes(*pictures, options=deaf) == [(0, "start")]


def test_the_interval_counts_from_the_last_question() -> None:
    assert wishes((0, False, False), (7, True, False), *still(12, 16, 17, 18)) == [
        (0, "start"),
        (7, "scene"),
        (17, "interval"),
    ]


def test_a_leap_back_in_time_is_a_cause() -> None:
    assert wishes(*still(100, 105, 3, 5)) == [(100, "start"), (3, "interval")]


def test_a_cause_stays_until_it_is_asked_about() -> None:
    wish = Wish(OPTIONS)
    wish.note_picture(0, is_new_scene=False, is_new_sound=False)
    wish.note_question(0)
    wish.note_picture(1, is_new_scene=True, is_new_sound=False)
    for at in range(2, 9):
        wish.note_picture(at, is_new_scene=False, is_new_sound=at == 5)
    assert wish.reason == "scene"
    wish.note_question(8)
    assert wish.reason is None
    wish.restore_reason("scene")
    assert wish.reason == "scene"
    wish.note_picture(9, is_new_scene=False, is_new_sound=True)
    wish.restore_reason("interval")
    assert wish.reason == "scene"


def test_a_budget_a_minute() -> None:
    allowance = Allowance(3)
    for now in (0.0, 5.0, 9.0):
        assert allowance.wait_seconds(now) == 0
        allowance.note_question(now)
    assert allowance.wait_seconds(9.0) == pytest.approx(51)
    assert allowance.wait_seconds(59.9) == pytest.approx(0.1)
    assert allowance.wait_seconds(60.0) == 0
    allowance.note_question(60.0)
    assert allowance.wait_seconds(60.0) == pytest.approx(5)


def test_pauses_grow_behind_failures_and_end_with_an_answer() -> None:
    allowance, now, pauses = Allowance(1000), 0.0, []
    for _ in range(9):
        allowance.note_failure(now, None)
        pauses.append(allowance.wait_seconds(now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    allowance.note_answer()
    allowance.note_failure(now, None)
    assert allowance.wait_seconds(now) == 1


def test_a_source_may_ask_for_a_longer_pause() -> None:
    allowance = Allowance(1000)
    allowance.note_failure(0.0, 20.0)
    assert allowance.wait_seconds(0.0) == 20
    allowance.note_answer()
    assert allowance.wait_seconds(0.0) == 0


def test_no_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        AskingOptions(budget_per_minute=0)


def test_a_source_that_is_gone_for_days() -> None:
    allowance = Allowance(12)
    for minute in range(3000):
        allowance.note_failure(60.0 * minute, None)
    assert allowance.wait_seconds(60.0 * 2999) == 60.0
