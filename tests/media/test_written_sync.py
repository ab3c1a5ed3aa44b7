"""A flash and a beep written at the same time are read back at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from teso_deploy.errors import OutputError
from teso_deploy.media.audio import AudioTrack, read_audio
from teso_deploy.media.container import convert_to_seconds
from teso_deploy.media.reader import VideoReader
from teso_deploy.media.writer import VideoWriter
from tests.support.recordings import CLICK_SECONDS, click_times, click_track, flash_times

STEADY = [i / 25 for i in range(75)]
NTSC = [i * 1001 / 30_000 for i in range(89)]
VARIABLE = [0.0, *np.cumsum(np.random.default_rng(0).integers(10, 45, 100) / 1000).tolist()]


def write(
    path: Path, times: Sequence[float], track: AudioTrack | None, *, flashes: Sequence[float] = (), fps: float = 25
) -> Path:
    with VideoWriter(path, 96, 64, fps=fps, sound=track) as writer:
        for at in times:
            is_lit = any(flash - 1e-6 <= at < flash + CLICK_SECONDS for flash in flashes)
            writer.write(np.full((64, 96, 3), 255 if is_lit else 20, np.uint8), at)
    return path


def clicks(seconds: float = 3.0, start_seconds: float = 0.0) -> AudioTrack:
    """Clicks at 1 and 2 s on the frames' clock."""
    return AudioTrack(click_track(seconds, [1 - start_seconds, 2 - start_seconds], 16_000), start_seconds)


@pytest.mark.parametrize(
    ("times", "fps", "track"),
    [
        (STEADY, 25, clicks()),
        (STEADY, 25, clicks(2.6, 0.4)),
        (STEADY, 25, clicks(3.1, -0.1)),
        (NTSC, 30_000 / 1001, clicks()),
        (NTSC, Fraction(30_000, 1001), clicks()),
        (VARIABLE, 30, clicks()),
        ([0.52 + at for at in STEADY[:50]], 25, clicks()),
        (STEADY, 25, clicks(2.2)),
    ],
    ids=["steady", "late sound", "early sound", "ntsc", "ntsc fraction", "variable", "late picture", "short sound"],
)
def test_flash_and_beep_coincide(times: list[float], fps: float, track: AudioTrack, tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", times, track, flashes=[1, 2], fps=fps)
    heard = read_audio(path)
    beeps, flashes = click_times(heard.samples, heard.start_seconds), flash_times(path)
    np.testing.assert_allclose(beeps, [1, 2], atol=0.003)
    assert len(flashes) == 2 and np.abs(np.array(flashes) - beeps).max() < 1 / 22  # the longest step between frames
    with VideoReader(path) as reader:
        np.testing.assert_allclose([frame.pts_seconds for frame in reader], times, atol=1e-4)


def test_the_last_frame_has_its_time(tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", [0.0, 1.0, 2.0], clicks(), flashes=[1], fps=1)
    with av.open(str(path)) as container:
        for stream in (container.streams.video[0], container.streams.audio[0]):
            assert convert_to_seconds(stream.duration, stream.time_base) == pytest.approx(3.0, abs=0.07)


def test_it_is_h264_and_aac_and_plays_while_it_loads(tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", STEADY, clicks())
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (audio.codec_context.name, audio.rate) == ("aac", 16_000)
        places = {"video": [0], "audio": [0]}
        for packet in container.demux():
            if packet.pos is not None:
                places[packet.stream.type].append(packet.pos)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert max(places["video"]) > min(places["audio"][1:]) and max(places["audio"]) > min(places["video"][1:])


def test_the_picture_is_the_picture(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :96]
    image = np.stack([y * 3, x * 2, 128 + 0 * x], axis=2).astype(np.uint8)
    with VideoWriter(tmp_path / "out.mp4", 96, 64, fps=25) as writer:
        for at in STEADY[:10]:
            writer.write(image, at)
    with VideoReader(tmp_path / "out.mp4") as reader:
        for frame in reader:
            assert np.abs(frame.image.astype(int) - image).mean() < 4


def test_a_failure_at_the_very_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("teso_deploy.media.writer.os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write(tmp_path / "out.mp4", STEADY[:5], None)
    assert list(tmp_path.iterdir()) == []
