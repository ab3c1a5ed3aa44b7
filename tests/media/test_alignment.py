"""Sound and picture stay together in any container, across pauses, leaps and changes of format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.media.audio import WINDOW_SECONDS, AudioTrack, WindowKind, read_audio
from teso_deploy.media.container import SteadyClock
from teso_deploy.media.reader import VideoReader
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from tests.support.recordings import SIZE, click_times, click_track, flash_times, record, turn

STEADY = [i / 25 for i in range(75)]


def times_of(path: Path) -> list[float]:
    with VideoReader(path) as reader:
        return [frame.pts_seconds for frame in reader]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "aac"), ("pcm.mkv", "pcm_s16le"), ("a.ts", "aac")]
)
@pytest.mark.parametrize(("sound_start", "first_frame"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.52)])
def test_clicks_fall_on_flashes(name: str, codec: str, sound_start: float, first_frame: float, tmp_path: Path) -> None:
    sound = click_track(3 - sound_start, [1 - sound_start, 2 - sound_start])
    times = [first_frame + at for at in STEADY if first_frame + at < 3]
    path = record(tmp_path / name, times, flashes=[1, 2], sound=sound, sound_start=sound_start, audio_codec=codec)
    track = read_audio(path)
    clicks, flashes = click_times(track.samples, track.start_seconds), flash_times(path)
    assert len(clicks) == len(flashes) == 2
    np.testing.assert_allclose(clicks, flashes, atol=0.003)
    assert track.gap_seconds == 0
    if not name.endswith("ts"):  # a transport stream begins with its encoder's priming
        np.testing.assert_allclose(clicks, [1, 2], atol=0.003)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_what_was_not_recorded_moves_nothing(suffix: str, tmp_path: Path) -> None:
    path = record(tmp_path / f"a.{suffix}", STEADY, flashes=[1, 2], sound=click_track(3, [1, 2]), left_out=[(1.3, 1.8)])
    track = read_audio(path)
    ((start, end),) = track.gaps
    assert end - start == pytest.approx(0.5, abs=0.03)
    first, last = (round((at - track.start_seconds) * SAMPLE_RATE_HZ) for at in (start, end))
    assert not track.samples[first + 1 : last - 1].any()
    np.testing.assert_allclose(click_times(track.samples, track.start_seconds), flash_times(path), atol=0.003)
    assert track.window(1.5).gap_seconds == pytest.approx(end - start)


@pytest.mark.parametrize("second_rate_hz", [48_000, 22_050], ids=["same format", "another format"])
def test_files_put_together_go_on_with_picture_and_sound(second_rate_hz: int, tmp_path: Path) -> None:
    parts = []
    for name, rate_hz in (("one.ts", 48_000), ("two.ts", second_rate_hz)):
        sound = click_track(3, [1, 2], rate_hz)
        parts.append(record(tmp_path / name, STEADY, flashes=[1, 2], sound=sound, rate_hz=rate_hz).read_bytes())
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    with VideoReader(path) as reader:
        frames = list(reader)
    times = [frame.pts_seconds for frame in frames]
    assert len(times) == 150 and min(np.diff(times)) > 0 and times[-1] < 6.1
    assert [frame.segment for frame in frames] == [0] * 75 + [1] * 75
    track = read_audio(path)
    clicks, flashes = click_times(track.samples, track.start_seconds), flash_times(path)
    assert len(flashes) == len(clicks) == 4
    np.testing.assert_allclose(clicks, flashes, atol=0.08)


def test_the_clock_leaps_and_finds_back() -> None:
    """Times are multiples of 1/8 s, which are exact in floating point."""
    clock = SteadyClock(end_seconds=30.0)
    for stamp, expected, place, leapt, why in (
        (1.0, 1.0, 1.0, False, "nothing is amiss"),
        (25.0, 1.125, 25.0, False, "a long pause within what the file announces"),
        (90_000.0, 25.125, 25.125, True, "a damaged stamp"),
        (90_000.125, 25.25, 25.25, False, "and the next"),
        (25.375, 25.375, 25.375, True, "the old clock holds again"),
        (0.0, 25.5, 25.5, True, "another file begins"),
        (0.125, 25.625, 25.625, False, "and goes on"),
    ):
        assert clock.place(stamp, expected) == (place, leapt), why


def test_a_long_pause_of_the_picture_is_no_leap(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.08, 15.0, 15.04]
    with VideoReader(record(tmp_path / "a.mkv", times)) as reader:
        frames = list(reader)
    np.testing.assert_allclose([frame.pts_seconds for frame in frames], times, atol=1e-6)
    assert frames[-1].segment == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("times", "seconds"),
    [(STEADY, 6.0), ([0.52 + at for at in STEADY[:50]], 3.0), ([2 + at for at in STEADY], 2.5)],
    ids=["longer sound", "later picture", "shorter sound"],
)
def test_tracks_of_different_lengths_are_not_cut_off(
    suffix: str, times: list[float], seconds: float, tmp_path: Path
) -> None:
    path = record(tmp_path / f"a.{suffix}", times, sound=click_track(seconds, [1]))
    np.testing.assert_allclose(times_of(path), times, atol=1e-6)


@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
def test_a_turned_recording_is_upright_and_says_so(degrees: int, corner: tuple[int, int], tmp_path: Path) -> None:
    with VideoReader(turn(record(tmp_path / "a.mp4", STEADY[:3]), degrees)) as reader:
        frame = next(iter(reader))
    expected = SIZE if degrees % 180 == 0 else SIZE[::-1]
    assert frame.image.shape[:2] == expected == (reader.info.height, reader.info.width)
    red = np.array([[frame.image[y, x, 0] > 180 for x in (4, -5)] for y in (4, -5)])
    assert red.sum() == 1 and red[corner], "the red corner went round counterclockwise"


def places(samples: NDArray[np.float32]) -> list[int]:
    """Return the positions of samples in a track made by ``ramp``; -1 is padding."""
    return [round(float(value) * 1e6) - 1 for value in samples]


def ramp(seconds: float, start_seconds: float = 0.0) -> AudioTrack:
    """Return a track whose samples encode their position."""
    count = round(seconds * SAMPLE_RATE_HZ)
    return AudioTrack((np.arange(1, count + 1) / 1e6).astype(np.float32), start_seconds)


@pytest.mark.parametrize("start_seconds", [0.0, 0.4, -0.1])
@pytest.mark.parametrize(
    ("kind", "at", "start"),
    [
        ("centred", 2.4, 2.4 - WINDOW_SECONDS / 2),
        ("centred", 2.3, 2.4 - WINDOW_SECONDS / 2),
        ("causal", 2.4, 2.4 - WINDOW_SECONDS),
        ("causal", 2.6, 2.4 - WINDOW_SECONDS),
        ("second", 2.9375, 2.0),
        ("second", 2.0, 2.0),
    ],
)
def test_windows_are_right_to_the_sample(kind: WindowKind, at: float, start: float, start_seconds: float) -> None:
    window = ramp(5, start_seconds).window(at, kind)
    first = round((start - start_seconds) * SAMPLE_RATE_HZ)
    assert window.start_seconds == pytest.approx(start)
    assert places(window.samples) == list(range(first, first + WINDOW_SAMPLES))
    assert window.gap_seconds == 0 and not window.is_silent


def test_a_window_from_a_time_is_right_to_the_sample() -> None:
    track = ramp(5)
    for second in range(4):
        window = track.window_from(second * 0.96)
        assert places(window.samples) == list(range(second * 15_360, second * 15_360 + WINDOW_SAMPLES))
        assert track.window_from(second * 0.96) is window


def test_a_causal_window_never_hears_what_is_to_come() -> None:
    track = ramp(5)
    for at in np.linspace(1, 4, 301).tolist():
        end = track.window(at, "causal").start_seconds + WINDOW_SECONDS
        assert at - 0.24 - 1e-6 < end <= at + 1e-6


def test_outside_the_track_there_is_counted_silence() -> None:
    track, half = ramp(2), WINDOW_SAMPLES // 2
    before, after, beyond = track.window(0.0), track.window(1.92), track.window(7.2)
    assert not before.samples[:half].any() and places(before.samples[half:]) == list(range(half))
    assert before.gap_seconds == pytest.approx(WINDOW_SECONDS / 2)
    assert after.gap_seconds == pytest.approx(1.92 + WINDOW_SECONDS / 2 - 2) and after.samples[0] > 0
    assert beyond.gap_seconds == pytest.approx(WINDOW_SECONDS) and beyond.is_silent and not beyond.samples.any()


def test_what_counts_as_silent() -> None:
    below = np.full(32_000, 0.9e-4, np.float32)
    assert AudioTrack(below).window(1).is_silent and not AudioTrack(below * 2).window(1).is_silent
