"""Sound that is decoded while it is read equals the sound in memory, sample by sample."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teso_deploy.errors import MediaError
from teso_deploy.media import audio, streamed
from teso_deploy.media.audio import AudioTrack, StreamedTrack, find_sound, read_audio
from teso_deploy.media.overlay import Overlay
from teso_deploy.media.streamed import KEPT_SECONDS, Chunk, Envelope
from teso_deploy.media.windows import compute_peaks
from teso_deploy.types import SAMPLE_RATE_HZ
from tests.support.recordings import click_track, record

RATE = SAMPLE_RATE_HZ


def track_pair(seconds: float, piece: int = 700) -> tuple[AudioTrack, StreamedTrack, list[int]]:
    """Return the same noise in memory and in chunks of ``piece`` samples, and the number of chunks of each pass."""
    whole = AudioTrack.white_noise(seconds, -20)
    passes: list[int] = []

    def chunks() -> Iterator[Chunk]:
        passes.append(0)
        mine = len(passes) - 1
        for place in range(0, whole.length, piece):
            passes[mine] += 1
            yield place, whole.samples[place : place + piece]

    return whole, StreamedTrack(chunks, whole.length), passes


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-2, 150), st.floats(0, 30)), min_size=1, max_size=8),
    st.sampled_from([3333, 16_000, 500_000]),
)
def test_any_order_of_reads_gives_the_same_samples(reads: list[tuple[float, float]], piece: int) -> None:
    whole, stream, _ = track_pair(140, piece)
    for start, seconds in reads:
        assert np.array_equal(stream.read(start, start + seconds), whole.read(start, start + seconds))


def test_two_readers_far_apart_need_two_passes() -> None:
    """The frames' windows are read far ahead of the written video's sound: a picture every 100 s."""
    whole, stream, passes = track_pair(500, 16_000)
    for at in range(0, 500, 100):
        assert np.array_equal(stream.window(at).samples, whole.window(at).samples)
        for start in range(max(at - 100, 0), at):
            assert np.array_equal(stream.read(start, start + 1), whole.read(start, start + 1))
    assert len(passes) == 2


def test_a_long_gap_is_passed_as_it_is_read() -> None:
    """Windows within the gap must not decode again from the start."""
    passes = []

    def chunks() -> Iterator[Chunk]:
        passes.append(1)
        yield 0, np.full(RATE, 0.5, np.float32)
        yield 600 * RATE, np.full(RATE, 0.25, np.float32)

    track = StreamedTrack(chunks, 601 * RATE, gaps=[(1.0, 600.0)])
    for at in np.arange(0, 600, 7.0).tolist():
        window = track.window(at)
        assert window.is_silent == (at > 1.5)
    assert set(track.read(600.1, 600.2)) == {0.25} and len(passes) == 1
    assert track.window(300).gap_seconds == pytest.approx(0.975) and not track.read(1.0, 600.0).any()


def test_threads_read_the_right_samples() -> None:
    whole, stream, _ = track_pair(150, 4000)

    def check(thread: int) -> bool:
        times = np.random.default_rng(thread).uniform(0, 150, 12)
        return all(np.array_equal(stream.window(at).samples, whole.window(at).samples) for at in times.tolist())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(8)))


def test_memory_does_not_grow_with_the_length() -> None:
    track = StreamedTrack.white_noise(900, -20)
    tracemalloc.start()
    for at in range(900):
        track.window(at)
        track.read(max(at - 2, 0), max(at - 1, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * (KEPT_SECONDS + 30) * RATE * 1.3


@pytest.mark.parametrize("seconds", [2.3, 61.0])
def test_noise_and_silence_are_those_in_memory(seconds: float) -> None:
    whole, stream = AudioTrack.white_noise(seconds, -23.5, 7), StreamedTrack.white_noise(seconds, -23.5, 7)
    assert np.array_equal(whole.read(-1, seconds + 1), stream.read(-1, seconds + 1))
    assert stream.end_seconds == whole.end_seconds
    silence = StreamedTrack.silence(seconds)
    assert not silence.read(0, seconds).any() and silence.window(1.0).is_silent and silence.window(1.0).gap_seconds == 0
    assert not silence.read_peaks(0, seconds, 20).any() and silence.end_seconds == whole.end_seconds


def test_a_track_of_years_gives_its_peaks_at_once() -> None:
    """A damaged file may announce that it is 31 years long."""
    samples = np.zeros(16_000, np.float32)
    samples[12_000] = -0.5
    assert AudioTrack(samples).read_peaks(0, 2, 4).tolist() == [0, 0.5, 0, 0]
    assert AudioTrack(samples).read_peaks(-1, 1, 4).tolist() == [0, 0, 0, 0.5]
    assert AudioTrack(samples).read_peaks(0, 1e9, 100).tolist() == [0.5] + 99 * [0]
    noise = StreamedTrack.white_noise(1e9, -20)
    peaks = noise.read_peaks(0, 2e9, 100)
    assert not peaks[51:].any() and peaks[:50] == pytest.approx(np.full(50, 0.4), abs=0.1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30), st.integers(1, 60))
def test_an_envelope_is_the_peaks_to_a_block(lengths: list[int], count: int) -> None:
    envelope, rng = Envelope(), np.random.default_rng(sum(lengths))
    samples = rng.uniform(-1, 1, sum(lengths)).astype(np.float32)
    for first, last in itertools.pairwise([0, *np.cumsum(lengths).tolist()]):
        envelope.add(first, samples[first:last])
    wide = np.array([
        np.abs(samples[max(0, int(a) - 160) : int(b) + 160]).max()
        for a, b in itertools.pairwise(np.linspace(0, len(samples), count + 1))
    ])  # fmt: skip
    found = envelope.read_peaks(0, len(samples), count)
    assert (found >= compute_peaks(samples, count)).all() and (found <= wide).all()


def test_an_envelope_of_a_million_years_is_small() -> None:
    envelope, place = Envelope(), 500_000_000_000_000_000
    envelope.add(0, np.full(100, 0.5, np.float32))
    envelope.add(place, np.full(100, -0.75, np.float32))
    assert envelope.read_peaks(0, place + 100, 3).tolist() == [0.5, 0, 0.75]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_a_file_is_heard_the_same_in_both_ways(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has a late start and a gap."""
    sound = click_track(4, [0.5, 1.2, 3.1]) + 0.01 * np.random.default_rng(0).standard_normal(4 * 48_000)
    path = record(
        tmp_path / name, [n / 25 for n in range(100)], sound=sound.astype(np.float32), sound_start=0.3,
        left_out=[(2.0, 2.6)],
    )  # fmt: skip
    monkeypatch.setattr(streamed, "_BLOCK_SAMPLES", 5000)
    whole, found = read_audio(path), find_sound(path, held_seconds=1.0)
    stream = found.track
    assert isinstance(stream, StreamedTrack) and found.note is None and len(whole.gaps) == 1
    assert (stream.start_seconds, stream.length, stream.gaps) == (whole.start_seconds, whole.length, whole.gaps)
    assert np.array_equal(stream.read(-1, 6), whole.read(-1, 6))
    for at in np.arange(0, 4.5, 0.04).tolist():
        ours, theirs = stream.window(at), whole.window(at)
        assert np.array_equal(ours.samples, theirs.samples)
        assert (ours.start_seconds, ours.gap_seconds, ours.is_silent) == (
            theirs.start_seconds, theirs.gap_seconds, theirs.is_silent
        )  # fmt: skip
    strips = [Overlay((), track, 4.5)._strip(40, 30) for track in (whole, stream)]
    different = (strips[0] != strips[1]).any(axis=(0, 2))
    assert different.mean() < 0.1 and (strips[0] != strips[0][:, :1]).any(), "where a click begins at an edge, at most"


def test_a_file_that_goes_away_is_silent(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", [0.0, 1.0], sound=np.full(3 * 48_000, 0.5, np.float32))
    track = find_sound(path, held_seconds=0.1).track
    assert track is not None
    path.unlink()
    assert not track.read(0, 3).any()


def test_short_sound_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record(tmp_path / "a.mkv", [0.0, 1.0], sound=np.full(2 * 48_000, 0.5, np.float32))
    assert isinstance(find_sound(path).track, AudioTrack)
    monkeypatch.setattr(audio, "MOST_WHOLE_SECONDS", 1.0)
    with pytest.raises(MediaError, match="too much to hold"):
        read_audio(path)
