"""The scheduler under a thousand arrival patterns on a simulated clock: bounded, fair, ordered, complete counts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teso_deploy.live.scheduler import LATE_SOUND_SECONDS, MOST_VAIN_WAITS, LiveOptions, Scheduler

HOP = 0.24


@dataclass
class Picture:
    pts_seconds: float
    number: int
    segment: int = 0


@dataclass
class Ring:
    end_seconds: float | None = None


@dataclass
class FakeFeed:
    """Frames arrive at (arrival, pts). In live mode only the newest waits, as in a reader's mailbox."""

    arrivals: list[tuple[float, float]]
    lossless: bool = False
    sound_delay: float | None = 0.0
    time: float = 0.0
    waiting: deque[Picture] = field(default_factory=deque)
    superseded: int = 0
    came: int = 0
    ring: Ring = field(default_factory=Ring)

    def advance(self, time: float) -> None:
        self.time = time
        while self.came < len(self.arrivals) and self.arrivals[self.came][0] <= time:
            if not self.lossless:
                self.superseded += len(self.waiting)
                self.waiting.clear()
            self.waiting.append(Picture(self.arrivals[self.came][1], self.came))
            self.came += 1
        if self.sound_delay is not None and time >= self.sound_delay:
            self.ring.end_seconds = time - self.sound_delay

    @property
    def ended(self) -> bool:
        is_heard = self.sound_delay is None or self.time >= self.arrivals[-1][1] + self.sound_delay
        return self.came == len(self.arrivals) and not self.waiting and is_heard

    def take(self, timeout_seconds: float) -> Picture | None:
        return self.waiting.popleft() if self.waiting else None

    def now_seconds(self) -> float:
        return self.time


@dataclass
class Done:
    stream: int
    number: int
    cause: str
    at: float
    until: float | None


def simulate(
    feeds: list[FakeFeed],
    options: LiveOptions,
    encode_seconds: float,
    decode_seconds: float,
    most_seconds: float = 60.0,
) -> tuple[Scheduler[Picture, int], list[Done], list[tuple[float, int]]]:
    """Run two workers in simulated time. Return (the scheduler, what was decoded, (time, stream) of each encode)."""
    scheduler: Scheduler[Picture, int] = Scheduler(list(feeds), options)
    done: list[Done] = []
    encodes: list[tuple[float, int]] = []
    time, encoding, decoding_until = 0.0, None, 0.0
    while time < most_seconds:
        for feed in feeds:
            feed.advance(time)
        if encoding is not None and encoding[0] <= time:
            _, stream, picture = encoding
            scheduler.record_encoded(stream, picture, picture.number, at_seconds=time)
            encoding = None
        if encoding is None and (chosen := scheduler.choose_picture()) is not None:
            encoding = (time + encode_seconds, *chosen)
            encodes.append((time, chosen[0].number))
        if decoding_until <= time and (next_one := scheduler.choose_decode(time)) is not None:
            state, picture, cause = next_one
            number, until = scheduler.record_decode(state, picture)
            assert number == picture.number
            done.append(Done(state.number, number, cause, time, until))
            decoding_until = time + decode_seconds
        if scheduler.is_over and encoding is None:
            break
        time += 0.01
    return scheduler, done, encodes


arrivals = st.lists(st.floats(0.001, 0.4), min_size=1, max_size=40).map(
    lambda gaps: [(sum(gaps[: i + 1]), sum(gaps[: i + 1])) for i in range(len(gaps))]
)


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(arrivals, min_size=1, max_size=4),
    st.floats(0.005, 0.9),
    st.floats(0.001, 0.2),
    st.booleans(),
    st.one_of(st.none(), st.floats(0.0, 2.0)),
    st.one_of(st.none(), st.floats(1.0, 20.0)),
)
def test_every_frame_is_delivered_or_counted(
    streams: list[list[tuple[float, float]]],
    encode_seconds: float,
    decode_seconds: float,
    lossless: bool,
    sound_delay: float | None,
    fps: float | None,
) -> None:
    feeds = [FakeFeed(times, lossless, sound_delay) for times in streams]
    options = LiveOptions(lossless=lossless, fps=fps)
    most = 60.0 + (encode_seconds + LATE_SOUND_SECONDS) * sum(map(len, streams))
    scheduler, done, _ = simulate(feeds, options, encode_seconds, decode_seconds, most)
    assert scheduler.is_over, "it ends"
    for feed, state in zip(feeds, scheduler.streams, strict=True):
        numbers = [one.number for one in done if one.stream == state.number and one.cause == "frame"]
        assert numbers == sorted(set(numbers)), "in order, none twice"
        assert len(numbers) + feed.superseded + sum(state.drops.values()) == len(feed.arrivals)
        assert not lossless or set(state.drops) <= {"fps"}
        heard = [one.until for one in done if one.stream == state.number and one.until is not None]
        assert lossless or heard == sorted(heard), "what was heard is not unheard"


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.floats(0.05, 0.4))
def test_no_stream_starves(count: int, encode_seconds: float) -> None:
    times = [(0.03 * i, 0.03 * i) for i in range(1, 200)]
    feeds = [FakeFeed(times) for _ in range(count)]
    _, _, encodes = simulate(feeds, LiveOptions(staleness_budget_seconds=5.0), encode_seconds, 0.005)
    turns = [stream for _, stream in encodes]
    for start in range(len(turns) - 2 * count):
        assert set(turns[start : start + 2 * count - 1]) == set(range(count))


def test_live_the_newest_wins_and_no_frame_is_staler_than_the_budget_and_a_run() -> None:
    feed = FakeFeed([(i / 30, i / 30) for i in range(1, 300)])
    _, done, _ = simulate([feed], LiveOptions(), 1.3, 0.02)
    frames = [one for one in done if one.cause == "frame"]
    assert 5 <= len(frames) <= 9
    for one in frames:
        assert one.at - feed.arrivals[one.number][1] <= 0.5 + 1.3 + 0.05
    sounds = [one.at for one in done if one.cause == "sound"]
    assert len(sounds) > 25, "each hop shows while a picture is encoded"


def test_stale_frames_are_dropped_before_they_are_encoded() -> None:
    feed = FakeFeed([(2.0, 0.1), (2.1, 2.0)])
    scheduler, done, _ = simulate([feed], LiveOptions(staleness_budget_seconds=0.5), 0.01, 0.01)
    assert [one.number for one in done if one.cause == "frame"] == [1]
    assert scheduler.streams[0].drops == {"stale": 1}


def test_lossless_frames_wait_for_their_sound_but_not_for_ever() -> None:
    times = [(0.01 * i, 0.24 * i) for i in range(1, 6)]
    _, done, _ = simulate([FakeFeed(times, lossless=True)], LiveOptions(lossless=True), 0.001, 0.001)
    assert [one.number for one in done] == [0, 1, 2, 3, 4]
    assert all(one.at >= times[one.number][1] - 0.02 for one in done), "the sound reaches it first"
    assert [one.until for one in done] == pytest.approx([0.24 * i for i in range(1, 6)])
    _, done, _ = simulate([FakeFeed(times, lossless=True, sound_delay=None)], LiveOptions(lossless=True), 0.001, 0.001)
    assert len(done) == 5


def test_lossless_frames_do_not_wait_for_sound_that_never_comes() -> None:
    times = [(0.01 * i, 0.24 * i) for i in range(1, 41)]
    _, done, _ = simulate([FakeFeed(times, lossless=True, sound_delay=None)], LiveOptions(lossless=True), 0.001, 0.001)
    assert len(done) == 40 and done[-1].at < (MOST_VAIN_WAITS + 1) * LATE_SOUND_SECONDS
    # Once there is sound, the frames wait for it again.
    late = FakeFeed(times, lossless=True, sound_delay=6.0)
    late.arrivals = [*times, (6.5, 9.84), (6.5, 10.08)]
    _, done, _ = simulate([late], LiveOptions(lossless=True), 0.001, 0.001)
    assert done[-2].until == pytest.approx(9.84) and done[-1].at - done[-2].at > 0.9 * LATE_SOUND_SECONDS


def test_new_cues_decode_the_last_picture_again() -> None:
    feed = FakeFeed([(0.1, 0.1)], sound_delay=None)
    scheduler: Scheduler[Picture, int] = Scheduler([feed], LiveOptions())
    feed.advance(0.1)
    chosen = scheduler.choose_picture()
    assert chosen is not None and scheduler.choose_decode(0.1) is None
    scheduler.record_encoded(*chosen, 0, at_seconds=0.1)
    state, picture, cause = scheduler.choose_decode(0.1) or (None, None, None)
    assert cause == "frame" and state is not None and picture is not None
    scheduler.record_decode(state, picture)
    assert scheduler.choose_decode(0.2) is None
    state.cues_version += 1
    found = scheduler.choose_decode(0.2)
    assert found is not None and found[2] == "cues"
    scheduler.record_decode(state, picture)
    assert scheduler.choose_decode(0.2) is None


def test_sound_that_has_stopped_becomes_silence() -> None:
    feed = FakeFeed([(0.1, 0.1)])
    scheduler: Scheduler[Picture, int] = Scheduler([feed], LiveOptions())
    feed.advance(0.1)
    feed.ring.end_seconds = 0.5
    picture = Picture(0.1, 0)
    feed.time = 1.2
    assert scheduler.get_window_end(scheduler.streams[0], picture) == pytest.approx(0.48)
    feed.time = 2.0
    assert scheduler.get_window_end(scheduler.streams[0], picture) == pytest.approx(1.92)


@pytest.mark.parametrize("wrong", [{"hop_seconds": 0.0}, {"fps": -1.0}, {"staleness_budget_seconds": 0.0}])
def test_options_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        LiveOptions(**wrong)  # type: ignore[arg-type]
