"""Writing: sound and picture stay together, and a file is complete or absent."""

from __future__ import annotations

import io
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pytest

from teso_deploy.errors import OutputError
from teso_deploy.media.audio import AudioTrack, read_audio
from teso_deploy.media.reader import VideoReader
from teso_deploy.media.writer import VideoWriter


def beep_track(at: float, seconds: float, start: float = 0.0) -> AudioTrack:
    times = np.arange(int(seconds * 16_000)) / 16_000
    return AudioTrack((np.sin(2 * np.pi * 1000 * times) * (times >= at)).astype(np.float32) * 0.5, start)


def flash(lit: bool, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), 230 if lit else 10, np.uint8)


@pytest.mark.parametrize("start", [0.0, 0.4, -0.3])
def test_flash_and_beep_stay_together(tmp_path: Path, start: float) -> None:
    """The picture turns bright when the beep starts. Both still agree after writing and reading."""
    track = beep_track(1.0, 2.5, start)
    with VideoWriter(tmp_path / "o.mp4", 64, 48, fps=25, sound=track) as writer:
        for i in range(60):
            writer.write(flash(i / 25 >= 1.0 + start), i / 25)
    with VideoReader(tmp_path / "o.mp4") as reader:
        lit = next(frame.pts_seconds for frame in reader if frame.image.mean() > 100)
    heard = read_audio(tmp_path / "o.mp4")
    onset = heard.start_seconds + int(np.argmax(np.abs(heard.samples) > 0.2)) / 16_000
    assert abs(lit - onset) < 0.045, "within a frame"


def test_times_and_size_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.3, 0.31, 1.0]
    with VideoWriter(tmp_path / "o.mp4", 63, 47, fps=25) as writer:
        for seconds in times:
            writer.write(flash(True, (47, 63)), seconds)
    with VideoReader(tmp_path / "o.mp4") as reader:
        assert (reader.info.width, reader.info.height, reader.info.has_audio) == (64, 48, False)
        assert [frame.pts_seconds for frame in reader] == pytest.approx(times, abs=0.001)


def test_the_sound_ends_with_the_picture(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "o.mp4", 64, 48, fps=25, sound=beep_track(0, 10)) as writer:
        for i in range(25):
            writer.write(flash(False), i / 25)
    assert read_audio(tmp_path / "o.mp4").duration_seconds == pytest.approx(1.0, abs=0.1)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "o.mp4"
    target.write_text("the last good one")
    with pytest.raises(RuntimeError), VideoWriter(target, 64, 48, fps=25) as writer:
        writer.write(flash(True), 0)
        raise RuntimeError
    assert target.read_text() == "the last good one" and os.listdir(tmp_path) == ["o.mp4"]


@pytest.mark.parametrize("is_growing", [True, False])
@pytest.mark.parametrize("name", ["12:30.mp4", os.fsdecode(b"caf\xe9.mp4"), "-y.mp4", "%03d.mp4", "b" * 251 + ".mp4"])
def test_any_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_growing: bool) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter(name, 64, 48, fps=25, sound=beep_track(0, 1), is_growing=is_growing) as writer:
        for i in range(10):
            writer.write(flash(True), i / 25)
    assert os.listdir(tmp_path) == [name]
    with av.open(io.BytesIO((tmp_path / name).read_bytes())) as video:
        assert len(list(video.decode(video=0))) == 10


def test_the_index_comes_first(tmp_path: Path) -> None:
    """Then players can start before the whole file has arrived."""
    with VideoWriter(tmp_path / "o.mp4", 64, 48, fps=25, sound=beep_track(0, 1)) as writer:
        writer.write(flash(True), 0)
    content = (tmp_path / "o.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Make writing fail beyond this size of a file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("is_growing", [True, False])
@pytest.mark.parametrize("missing_bytes", [1, 500])
def test_a_disk_that_fills_up_at_the_very_end(tmp_path: Path, missing_bytes: int, is_growing: bool) -> None:
    def write(path: Path) -> None:
        with VideoWriter(path, 64, 48, fps=25, sound=beep_track(0, 2), is_growing=is_growing) as writer:
            for i in range(30):
                writer.write(flash(i % 2 == 0), i / 25)

    write(tmp_path / "whole.mp4")
    size = (tmp_path / "whole.mp4").stat().st_size
    with file_size_limit(size - missing_bytes), pytest.raises(OutputError, match=r"o\.mp4 can't be written \(File too"):
        write(tmp_path / "o.mp4")
    assert sorted(os.listdir(tmp_path)) == (["o.mp4", "whole.mp4"] if is_growing else ["whole.mp4"])


class Interrupted(io.BytesIO):
    """A writer's file that receives a signal during a write."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.name, self._file, self.signals = file.name, file, 0

    def write(self, content: Any) -> int:
        self.signals += 1
        if self.signals == 1:
            signal.raise_signal(signal.SIGUSR1)
        return self._file.write(content)

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_signal_in_the_middle_of_a_write_ends_the_video(tmp_path: Path, error: type[BaseException]) -> None:
    def end(number: int, frame: object) -> None:
        raise error

    before, pictures = signal.signal(signal.SIGUSR1, end), 0
    try:
        with pytest.raises(error), VideoWriter(tmp_path / "video.mp4", 64, 48, fps=10) as writer:
            writer._output._file = file = Interrupted(writer._file)
            for pictures in range(1, 200):
                writer.write(flash(pictures % 2 == 0), pictures / 10)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert file.signals >= 1 and pictures < 199
    assert not list(tmp_path.iterdir())


def test_a_link_stays_and_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to("o.mp4")
    with VideoWriter(tmp_path / "link.mp4", 64, 48, fps=25) as writer:
        writer.write(flash(True), 0)
    assert (tmp_path / "link.mp4").is_symlink() and (tmp_path / "o.mp4").stat().st_size > 500
    for is_growing in (True, False):
        with pytest.raises(OutputError, match="a device or a pipe"):
            VideoWriter("/dev/null", 64, 48, fps=25, is_growing=is_growing)


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64x48"), VideoWriter(tmp_path / "o.mp4", 64, 48, fps=25) as writer:
        writer.write(flash(True, (50, 64)), 0)
    assert os.listdir(tmp_path) == []


def test_places_that_can_t_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"):
        VideoWriter(tmp_path / "no" / "o.mp4", 64, 48, fps=25)
    (tmp_path / "o.mp4").mkdir()
    with pytest.raises(OutputError, match="folder"):
        VideoWriter(tmp_path / "o.mp4", 64, 48, fps=25)
