"""Picture and sound of a stream stay together to 20 ms, whatever the time stamps do. No frame is skipped here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recordings import click_track, record, shifted
from tests.support.streams import Sender, free_port, serving, tcp
from tests.support.watching import Seen, assert_exact, watched

#: At unequal distances, so that an error of a whole beat is detected.
BEATS = [0.3, 0.7, 1.25, 1.95]
SECONDS = 2.4


def times(fps: float = 40, seconds: float = SECONDS) -> list[float]:
    return [n / fps for n in range(round(seconds * fps))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aligned") / "clip.ts"
    return record(path, times(), flashes=BEATS, sound=click_track(SECONDS, BEATS))


def sent(path: Path, seconds: float = SECONDS) -> Seen:
    """Return what a stream shows of a file, except for the last moments before the server hangs up."""
    with serving(tcp(Sender(path, seconds))) as server:
        return watched(
            f"tcp://127.0.0.1:{server.port}", seconds + 60, lossless=True,
            until=lambda seen: bool(seen.pts) and seen.pts[-1] > seconds - 0.2,
        )  # fmt: skip


@pytest.mark.parametrize("sound_later_seconds", [0.5, -0.5])
def test_tracks_that_do_not_begin_together(tmp_path: Path, sound_later_seconds: float) -> None:
    sound_start, first = max(0.0, sound_later_seconds), max(0.0, -sound_later_seconds)
    sound = click_track(SECONDS, [beat - sound_start for beat in BEATS if beat >= sound_start])
    path = record(
        tmp_path / "clip.ts", [at + first for at in times() if at + first < SECONDS], flashes=BEATS, sound=sound,
        sound_start=sound_start,
    )  # fmt: skip
    seen = sent(path)
    seen.flashes = [flash for flash in seen.flashes if flash > 0.6]  # by then both tracks have arrived
    assert_exact(seen, 2)
    assert seen.health is not None and seen.health.discontinuities == 0 and seen.health.gap_seconds < 0.05


def test_pictures_at_no_fixed_rate(tmp_path: Path) -> None:
    at, irregular = 0.0, []
    for number in range(200):
        irregular.append(round(at, 3))
        at += (0.008, 0.021, 0.055, 0.013)[number % 4] if not 40 < number % 60 < 44 else 0.2
    irregular = sorted({*[at for at in irregular if at < SECONDS], *BEATS})
    path = record(tmp_path / "clip.ts", irregular, flashes=BEATS, sound=click_track(SECONDS, BEATS))
    seen = sent(path)
    assert_exact(seen, 3)
    assert seen.health is not None and seen.health.discontinuities == 0
    steps = [b - a for a, b in zip(seen.pts, seen.pts[1:], strict=False)]
    assert min(steps) < 0.015 and max(steps) > 0.15, "frames keep their own times"


def test_sound_that_was_left_out_is_a_gap(tmp_path: Path) -> None:
    path = record(
        tmp_path / "clip.ts", times(), flashes=BEATS, sound=click_track(SECONDS, BEATS), left_out=[(0.8, 1.2)]
    )
    seen = sent(path)
    assert seen.health is not None and seen.health.gap_seconds == pytest.approx(0.4, abs=0.05)
    assert seen.health.discontinuities == 0 and seen.health.reconnects == 0
    assert_exact(seen, 3)


def test_pictures_that_were_left_out_are_no_leap(tmp_path: Path) -> None:
    there = [at for at in times() if not 0.8 <= at < 1.2]
    path = record(tmp_path / "clip.ts", there, flashes=BEATS, sound=click_track(SECONDS, BEATS))
    seen = sent(path)
    assert seen.health is not None and seen.health.discontinuities == 0 and seen.health.gap_seconds < 0.05
    assert_exact(seen, 3)


def test_what_is_half_a_second_off_stays_so(tmp_path: Path) -> None:
    flashes = [0.3, 1.5]
    clicks = click_track(SECONDS, [flash + 0.5 for flash in flashes])
    path = record(tmp_path / "clip.ts", times(), flashes=flashes, sound=clicks)
    assert_exact(sent(path), 2, off_seconds=0.5)


def test_a_loop_whose_stamps_go_on_has_no_seam(clip: Path) -> None:
    with serving(tcp(Sender(clip, SECONDS, loop=True, goes_on=True))) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", 60.0, lossless=True, until=lambda seen: len(seen.flashes) >= 9)
    assert seen.health is not None and seen.health.discontinuities == seen.health.corrupt_packets == 0
    assert seen.health.reconnects == 0 and set(seen.segments) == {0}
    assert_exact(seen, 7)


def test_a_loop_whose_sound_is_shorter_adds_up_no_error(tmp_path: Path) -> None:
    """Each round lacks 0.3 s of sound. The tracks leap at different times, but by the same amount."""
    path = record(tmp_path / "short.ts", times(seconds=1.2), flashes=[0.3, 0.7], sound=click_track(0.9, [0.3, 0.7]))
    with serving(tcp(Sender(path, 1.2, loop=True))) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", 60.0, lossless=True, until=lambda seen: len(seen.flashes) >= 8)
    assert seen.health is not None and seen.health.discontinuities == 3 and seen.health.reconnects == 0
    assert_exact(seen, 7)


@pytest.mark.parametrize("leap_seconds", [-20.0, 3600.0], ids=["back", "ahead"])
def test_stamps_that_leap_once(clip: Path, leap_seconds: float) -> None:
    late = shifted(clip, clip.with_name(f"late{leap_seconds:g}.ts"), 100.0)
    sender = Sender(late, SECONDS, loop=True, goes_on=True)

    def leap(passed: float) -> None:
        sender.shift_seconds = leap_seconds if passed > 0.7 else 0.0

    with serving(tcp(sender)) as server:
        seen = watched(
            f"tcp://127.0.0.1:{server.port}", 60.0, leap, lossless=True,
            until=lambda seen: len(seen.flashes) >= 7,
        )  # fmt: skip
    assert seen.health is not None and seen.health.discontinuities == 1 and seen.health.reconnects == 0
    assert sorted(set(seen.segments)) == [0, 1] and seen.pts == sorted(seen.pts) and seen.pts[-1] < 20
    assert_exact(seen, 5)


def test_after_a_reconnect(clip: Path) -> None:
    port, servers, state = free_port(), [], dict[str, float]()
    servers.append(serving(tcp(Sender(clip, SECONDS)), port))
    servers[0].__enter__()

    def act(passed: float) -> None:
        if passed > 0.9 and "killed" not in state:
            state["killed"] = passed
            servers.pop().__exit__(None, None, None)
        if passed > 1.5 and "back" not in state:
            state["back"] = passed
            servers.append(serving(tcp(Sender(clip, SECONDS, loop=True, goes_on=True)), port))
            servers[0].__enter__()

    try:
        seen = watched(f"tcp://127.0.0.1:{port}", 60.0, act, lossless=True, until=lambda seen: len(seen.flashes) >= 7)
    finally:
        for server in servers:
            server.__exit__(None, None, None)
    assert seen.health is not None and seen.health.reconnects >= 1 and seen.health.discontinuities == 0
    assert seen.segments[-1] > 0 and seen.pts == sorted(seen.pts)
    assert_exact(seen, 5)
