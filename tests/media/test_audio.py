"""Sound on the frames' clock: alignment, windows, gaps, change of format."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream

from teso_deploy.errors import MediaError
from teso_deploy.media.audio import HOP_SECONDS, WINDOW_SECONDS, AudioTrack, Timeline, read_audio
from teso_deploy.media.mono import Piece
from teso_deploy.types import WINDOW_SAMPLES
from tests.support.clips import make_clip


def write_beeps(
    path: Path,
    beeps: list[float],
    *,
    seconds: float = 4.0,
    start: float = 0.0,
    rate: int = 48_000,
    layout: str = "mono",
    codec: str = "pcm_s16le",
    gap: tuple[float, float] | None = None,
) -> Path:
    """Write a sound file with a 20 ms beep at each time. Nothing is stored between the ends of ``gap``."""
    times = np.arange(int(seconds * rate)) / rate
    signal = sum(
        (np.sin(2 * np.pi * 2000 * times) * ((times >= at) & (times < at + 0.02)) for at in beeps), np.zeros_like(times)
    )
    channels = 2 if layout == "stereo" else 1
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        for first in range(0, len(times), 960):
            if gap and gap[0] <= times[first] < gap[1]:
                continue
            samples = (signal[first : first + 960] * 20_000).astype(np.int16).repeat(channels)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, first + round(start * rate), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def onsets(track: AudioTrack) -> list[float]:
    """Return the times at which beeps begin, on the track's clock."""
    loud = np.abs(track.samples) > 0.1
    starts = [i for i in np.flatnonzero(loud) if not loud[max(0, i - 800) : i].any()]
    return [track.start_seconds + i / 16_000 for i in starts]


@pytest.mark.parametrize(("rate", "layout"), [(48_000, "mono"), (44_100, "stereo"), (16_000, "mono"), (8_000, "mono")])
def test_beeps_are_where_they_were(tmp_path: Path, rate: int, layout: str) -> None:
    track = read_audio(write_beeps(tmp_path / "a.wav", [0.5, 1.7, 3.2], rate=rate, layout=layout))
    assert onsets(track) == pytest.approx([0.5, 1.7, 3.2], abs=0.002)
    assert track.duration_seconds == pytest.approx(4.0, abs=0.01) and track.gaps == ()
    assert track.samples.dtype == np.float32
    peak = float(np.abs(track.samples).max())
    assert peak == pytest.approx(20_000 / 32_768, abs=0.05), "two channels are not louder than one"


def test_sound_that_starts_after_the_picture_keeps_its_time(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for i in range(75):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            container.mux(video.encode(picture))
            if i == 30:  # 1.2 s in
                beep = (np.sin(np.arange(16_000) * 0.8) * 20_000).astype(np.int16)[None]
                sound = av.AudioFrame.from_ndarray(beep, format="s16", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = 16_000, round(1.2 * 16_000), Fraction(1, 16_000)
                container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    track = read_audio(path)
    assert track.start_seconds == pytest.approx(1.2, abs=0.002)
    before = track.window(0.5)
    assert before.is_silent and before.gap_seconds == pytest.approx(WINDOW_SECONDS)
    half = track.window(1.2, hop_seconds=0)
    assert not half.is_silent and half.gap_seconds == pytest.approx(WINDOW_SECONDS / 2, abs=0.003)
    assert np.abs(half.samples[: WINDOW_SAMPLES // 2 - 50]).max() == 0


def test_gaps_are_filled_and_counted(tmp_path: Path) -> None:
    track = read_audio(write_beeps(tmp_path / "gap.mkv", [0.5, 3.2], gap=(1.0, 2.5)))
    assert len(track.gaps) == 1 and track.gap_seconds == pytest.approx(1.5, abs=0.02)
    assert onsets(track) == pytest.approx([0.5, 3.2], abs=0.003)
    assert track.window(1.75, hop_seconds=0).gap_seconds == pytest.approx(WINDOW_SECONDS, abs=0.01)
    assert track.window(0.5, hop_seconds=0).gap_seconds == 0


def test_overlaps_are_cut_and_gaps_noted() -> None:
    ones, twos, threes = (np.full(1600, loud, np.float32) for loud in (0.1, 0.2, 0.3))
    timeline = Timeline()
    placed = [
        timeline.place(piece)
        for piece in (
            Piece(5.0, 0, ones[:800]),
            Piece(5.0, 800, ones[800:]),
            Piece(5.05, 0, twos[:600]),  # overlaps by 800 samples, so that all of this piece is old
            Piece(5.05, 600, twos[600:]),
            Piece(5.25, 0, threes),
        )
    ]
    lengths = [(place, len(samples)) for place, samples in placed]
    assert lengths == [(0, 800), (800, 800), (1600, 0), (1600, 800), (4000, 1600)]
    assert timeline.length == 5600 and timeline.start_seconds == 5.0
    np.testing.assert_allclose(timeline.gaps, [(5.15, 5.25)])


def test_a_change_of_rate_and_channels_mid_stream(tmp_path: Path) -> None:
    one = write_beeps(tmp_path / "one.ts", [0.5], seconds=1.5, codec="mp2")
    two = write_beeps(tmp_path / "two.ts", [0.5], seconds=1.5, start=1.5, rate=44_100, layout="stereo", codec="mp2")
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    track = read_audio(both)
    found = onsets(track)
    assert len(found) == 2 and found[1] - found[0] == pytest.approx(1.5, abs=0.06)


def test_no_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no audio track"):
        read_audio(make_clip(tmp_path / "mute.mp4", has_audio=False))


def ramp() -> AudioTrack:
    return AudioTrack(np.arange(5 * 16_000, dtype=np.float32) / np.float32(80_000), 0.0)


@pytest.mark.parametrize(("kind", "start"), [("centred", 2.4 - WINDOW_SECONDS / 2), ("causal", 2.4 - WINDOW_SECONDS)])
def test_windows(kind: str, start: float) -> None:
    window = ramp().window(2.4, kind)  # type: ignore[arg-type]
    assert window.samples.shape == (WINDOW_SAMPLES,)
    assert window.start_seconds == pytest.approx(start)
    assert window.samples[0] == pytest.approx(start * 16_000 / 80_000, abs=1e-4)
    assert window.gap_seconds == 0 and not window.is_silent


def test_the_window_of_a_second_is_its_own_second() -> None:
    for at in (2.0, 2.5, 2.9375, 2.999):
        assert ramp().window(at, "second").start_seconds == 2.0


def test_frames_within_a_hop_share_their_window() -> None:
    track = ramp()
    times = np.arange(0, 4, 1 / 30)
    windows = [track.window(float(t)) for t in times]
    assert len({id(w) for w in windows}) == len({w.start_seconds for w in windows})
    assert len({w.start_seconds for w in windows}) == pytest.approx(4 / HOP_SECONDS, abs=1.5)
    centres = np.array([w.start_seconds + WINDOW_SECONDS / 2 for w in windows])
    assert np.abs(centres - times).max() <= HOP_SECONDS / 2 + 1e-9


def test_silence_and_noise() -> None:
    silence = AudioTrack.silence(2.0)
    assert silence.duration_seconds == 2.0 and silence.window(1.0).is_silent
    for level in (-40.0, -20.0):
        noise = AudioTrack.white_noise(2.0, level)
        assert 20 * np.log10(noise.samples.std()) == pytest.approx(level, abs=0.2)
        assert not noise.window(1.0).is_silent
    assert np.array_equal(AudioTrack.white_noise(1, -20, 3).samples, AudioTrack.white_noise(1, -20, 3).samples)
    assert not np.array_equal(AudioTrack.white_noise(1, -20, 3).samples, AudioTrack.white_noise(1, -20, 4).samples)


def test_added_noise_has_its_ratio_to_the_whole_sound() -> None:
    tone = (0.02 * np.sin(np.arange(48_000) * 0.2)).astype(np.float32)
    track = AudioTrack(tone, 1.5, [(2.0, 2.5)])
    noisy = track.add_noise(10)
    added = noisy.samples - tone
    assert 10 * np.log10(np.mean(tone**2) / np.mean(added**2)) == pytest.approx(10, abs=0.1)
    assert noisy.start_seconds == 1.5 and noisy.gaps == track.gaps
    assert np.abs(track.add_noise(-60).samples).max() == 1
    assert not AudioTrack(np.zeros(100, np.float32)).add_noise(10).samples.any()
