"""Live time, shared leaps, the pace of recordings and waits between attempts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from teso_deploy.media.backoff import Backoff
from teso_deploy.media.clock import LiveClock, Pace, find_fastest
from teso_deploy.media.container import SteadyClock


def test_the_fastest_frame_says_how_long_the_way_is() -> None:
    clock = LiveClock()
    assert clock.now_seconds(5.0) == 0.0 and not clock.is_set
    for n in range(50):
        clock.observe(n * 0.04, 100.0 + n * 0.04 + (0.3 if n % 5 else 0.05))
    assert clock.now_seconds(102.0) == pytest.approx(102.0 - 100.05)
    clock.observe(2.04, 108.0)  # the source paused, and continued at the same place
    assert clock.now_seconds(108.0) == pytest.approx(2.04)


def test_a_slower_way_is_believed_after_ten_seconds() -> None:
    clock = LiveClock()
    for n in range(600):
        clock.observe(n * 0.04, n * 0.04 + (0.0 if n < 100 else 0.4))
    assert clock.now_seconds(24.0) == pytest.approx(23.6)


def test_picture_and_sound_leap_together() -> None:
    picture = SteadyClock()
    sound = SteadyClock(beside=picture)
    assert picture.place(100.0, 100.04) == (100.0, False)
    assert picture.place(0.5, 100.04) == (100.04, True), "the first to leap chooses"
    assert sound.place(99.9, 99.9) == (99.9, False), "the other is not there yet"
    at, leapt = sound.place(0.45, 99.92)
    assert leapt and at == pytest.approx(99.99), "and leaps by as much"
    at, leapt = picture.place(0.54, 100.08)
    assert not leapt and at == pytest.approx(100.08)


def test_waits_double_up_to_a_cap_and_begin_anew() -> None:
    waits = Backoff(0.5, 4.0, draw=lambda: 1.0)
    assert [waits.next_seconds() for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    waits.note_connection(3.0)
    assert waits.next_seconds() == 4.0
    waits.note_connection(11.0)
    assert waits.next_seconds() == 0.5
    assert Backoff(1.0, draw=lambda: 0.0).next_seconds() == 0.5


def played(packets: Sequence[tuple[int, float | None]], duration_seconds: float = 0.04) -> list[float]:
    """Return when each (track, stamp) is due, relative to the first."""
    pace, now, found = Pace(), 50.0, []
    for track, stamp in packets:
        now += pace.wait_seconds(track, stamp, duration_seconds=duration_seconds, now_seconds=now)
        found.append(round(now - 50.0, 3))
    return found


def test_a_recording_comes_as_slowly_as_it_was_recorded() -> None:
    assert played([(0, 7.0), (1, 7.02), (0, 7.04), (1, 9.0)]) == [0.0, 0.02, 0.04, 2.0]
    assert played([(0, None), (0, None), (0, None)]) == [0.0, 0.04, 0.08]


def test_leaps_of_a_recording_neither_flood_nor_stand_still() -> None:
    back = [(0, 1.0), (1, 1.0), (0, 1.04), (0, 0.0), (1, 1.04), (0, 0.04), (1, 0.0), (0, 0.08), (1, 0.04)]
    assert played(back) == [0.0, 0.0, 0.04, 0.04, 0.04, 0.08, 0.08, 0.12, 0.12]
    damaged = [(0, 1.0), (0, 1.04), (0, 5000.0), (1, 1.08), (0, 1.12), (0, 1.16), (1, 1.12)]
    assert played(damaged) == [0.0, 0.04, 0.04, 0.04, 0.04, 0.08, 0.08]
    assert played([(0, 1.0), (0, -5000.0), (0, 1.08), (1, 1.1)]) == [0.0, 0.0, 0.0, 0.02]


def test_what_was_probed_and_what_is_damaged_do_not_tell_the_way() -> None:
    probed = [0.9 - 0.04 * n for n in range(20)]
    assert find_fastest([*probed, 0.1, 0.12]) == pytest.approx(0.1)
    assert find_fastest([*probed, 0.1, -4000.0, 0.12, 9000.0]) == pytest.approx(0.1)
