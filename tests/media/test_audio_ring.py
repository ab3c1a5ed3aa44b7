"""The ring of sound: it is on the stream's clock, gaps are zeros and counted, memory does not grow."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teso_deploy.media.ring import AudioRing
from teso_deploy.types import WINDOW_SAMPLES

RATE = 16_000


def test_gaps_are_zeros_and_counted_and_overlaps_are_cut() -> None:
    ring = AudioRing(5)
    assert (
        ring.end_seconds is None and ring.window(1.0).is_silent and ring.window(1.0).gap_seconds == pytest.approx(0.975)
    )
    ring.add(1.0, np.full(RATE, 0.5, np.float32))
    ring.add(2.5, np.full(RATE, 0.25, np.float32))
    ring.add(3.0, np.full(RATE, 1.0, np.float32))
    assert ring.start_seconds == 1.0 and ring.end_seconds == 4.0
    assert (ring.gap_seconds, ring.overlap_seconds, ring.audio_seconds) == (0.5, 0.5, 2.5)
    assert ring.read(0.5, 1.5).tolist() == [0.0] * (RATE // 2) + [0.5] * (RATE // 2)
    assert not ring.read(2.0, 2.5).any() and set(ring.read(3.0, 3.5)) == {0.25} and set(ring.read(3.5, 4.0)) == {1.0}
    window = ring.window(2.6)
    assert window.gap_seconds == pytest.approx(0.5) and window.start_seconds == pytest.approx(2.6 - 0.975)
    assert not window.is_silent and window.samples.shape == (WINDOW_SAMPLES,)
    assert ring.window(4.5).gap_seconds == pytest.approx(0.5), "what has not come yet"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-40, 60), st.integers(1, 90)), min_size=1, max_size=40))
def test_it_is_the_last_of_a_plain_timeline(steps: list[tuple[int, int]]) -> None:
    """Compare the ring with an array of all samples. A unit is 1 ms, and the ring holds 100."""
    ring, unit = AudioRing(0.1), RATE // 1000
    whole, begin, value = np.zeros(0, np.float32), None, 0.0
    for shift, length in steps:
        end = 0 if begin is None else begin + len(whole) // unit
        at, value = max(end + shift, 0), value + 1
        begin = at if begin is None else begin
        ring.add(at / 1000, np.full(length * unit, value, np.float32))
        place = (at - begin) * unit
        if place > len(whole):
            whole = np.concatenate((whole, np.zeros(place - len(whole), np.float32)))
        whole = np.concatenate((whole, np.full(max(place + length * unit - len(whole), 0), value, np.float32)))
    assert begin is not None and ring.end_seconds == pytest.approx(begin / 1000 + len(whole) / RATE)
    kept = whole[-100 * unit :]
    end_seconds = begin / 1000 + len(whole) / RATE
    np.testing.assert_array_equal(ring.read(end_seconds - len(kept) / RATE, end_seconds), kept)


def test_waiting_for_sound() -> None:
    ring = AudioRing()
    assert not ring.wait_for(0.5, 0.01)
    threading.Timer(0.05, lambda: ring.add(0.0, np.zeros(RATE, np.float32))).start()
    assert ring.wait_for(0.5, 5.0)
