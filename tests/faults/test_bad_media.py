"""Files that are not videos, and unwritable outputs: the right error, one sentence, no leftovers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from teso_deploy.errors import InputNotFoundError, MediaError, OutputError, TesoError
from teso_deploy.media.audio import AudioTrack, read_audio
from teso_deploy.media.reader import VideoReader
from teso_deploy.media.writer import VideoWriter
from tests.support.clips import make_clip
from tests.support.recordings import click_track, record


def watch(path: Path) -> int:
    """Read all frames, and return their number."""
    with VideoReader(path) as reader:
        return sum(1 for _ in reader)


def refused(action: Callable[[Path], object], path: Path, error: type[TesoError], words: str) -> None:
    """Check that ``error`` is raised, in one sentence with the file and, after a colon or semicolon, the fix."""
    with pytest.raises(TesoError) as raised:
        action(path)
    sentence = str(raised.value)
    assert type(raised.value) is error, sentence
    assert str(path) in sentence and words in sentence, sentence
    assert "\n" not in sentence and ": " in sentence.replace(str(path), "") and not sentence.endswith("."), sentence


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("action", [watch, read_audio])
def test_no_such_file(action: Callable[[Path], object], tmp_path: Path) -> None:
    refused(action, tmp_path / "no.mp4", InputNotFoundError, "no file")
    with pytest.raises(FileNotFoundError):
        action(tmp_path / "no.mp4")


@pytest.mark.parametrize("action", [watch, read_audio])
def test_what_is_no_media(action: Callable[[Path], object], tmp_path: Path) -> None:
    text, empty, noise = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "noise.mkv"
    text.write_text("a text\n" * 1000)
    empty.touch()
    noise.write_bytes(np.random.default_rng(0).bytes(50_000))
    refused(action, text, MediaError, "can't be read as video or sound")
    refused(action, noise, MediaError, "can't be read as video or sound")
    refused(action, empty, MediaError, "empty")
    refused(action, tmp_path, MediaError, "folder")


def test_a_missing_track(tmp_path: Path) -> None:
    silent = make_clip(tmp_path / "silent.mp4", has_audio=False)
    refused(read_audio, silent, MediaError, "no audio track")
    assert watch(silent) == 12, "and yet it can be watched"
    blind = make_clip(tmp_path / "blind.mp4", has_video=False)
    refused(watch, blind, MediaError, "only sound")
    assert read_audio(blind).duration_seconds == pytest.approx(1.0, abs=0.05), "and yet it can be heard"


@pytest.mark.parametrize("action", [watch, read_audio])
def test_an_mp4_cut_off_before_its_index(action: Callable[[Path], object], tmp_path: Path) -> None:
    refused(action, cut(make_clip(tmp_path / "cut.mp4", seconds=2), 0.6), MediaError, "cut off")


def test_a_file_that_ends_before_it_says(tmp_path: Path) -> None:
    path = cut(make_clip(tmp_path / "cut.mkv", seconds=8), 0.5)
    refused(watch, path, MediaError, "cut off")
    frames = []
    with pytest.raises(MediaError), VideoReader(path) as reader:
        for frame in reader:
            frames.append(frame)
    assert 30 < len(frames) < 70, "what is there was given out first"
    assert 3 < read_audio(path).duration_seconds < 5.5


def test_a_transport_stream_has_no_end_to_miss(tmp_path: Path) -> None:
    path = cut(make_clip(tmp_path / "cut.ts", seconds=8), 0.5)
    assert 30 < watch(path) < 70


@pytest.mark.parametrize("seed", range(8))
def test_damage_is_counted_and_never_makes_hours(seed: int, tmp_path: Path) -> None:
    """An earlier version filled damaged time stamps with a day of silence."""
    content = bytearray(record(tmp_path / "a.ts", [i / 25 for i in range(75)], sound=click_track(3, [1])).read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(len(content) // 4, len(content), 400):
        content[place] = int(rng.integers(256))
    path = tmp_path / "damaged.ts"
    path.write_bytes(content)
    with VideoReader(path) as reader:
        frames = list(reader)
    assert 20 < len(frames) <= 80
    assert reader.corrupt_frames == sum(frame.is_corrupt for frame in frames)
    assert reader.corrupt_frames + reader.corrupt_packets > 0
    assert read_audio(path).duration_seconds < 60


def test_nothing_in_it_can_be_decoded(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", seconds=2)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    refused(watch, path, MediaError, "decoded")
    refused(read_audio, path, MediaError, "decoded")


def test_a_bad_file_is_closed_again(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "blind.mp4", has_video=False)
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("open files are counted in /proc")
    before = len(os.listdir(folder))
    for _ in range(20):
        with pytest.raises(MediaError):
            VideoReader(path)
    assert len(os.listdir(folder)) <= before + 1


def write_to(path: Path) -> None:
    with VideoWriter(path, 64, 48, fps=25, sound=AudioTrack.silence(1)) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8), 0.0)


def test_outputs_that_can_t_be_written(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("kept")
    (tmp_path / "a folder").mkdir()
    refused(write_to, tmp_path / "none" / "out.mp4", OutputError, "no folder")
    refused(write_to, tmp_path / "a file" / "out.mp4", OutputError, "no folder")
    refused(write_to, tmp_path / "a folder", OutputError, "is a folder")
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["a file", "a folder"]
    assert (tmp_path / "a file").read_text() == "kept"
    with pytest.raises(OSError, match="no folder"):
        write_to(tmp_path / "none" / "out.mp4")


def test_a_folder_one_may_not_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    if os.geteuid() == 0:  # root may write anywhere, so the system's answer is simulated
        monkeypatch.setattr("teso_deploy.outputs.os.access", lambda *_: False)
    else:
        folder.chmod(0o500)
    refused(write_to, folder / "out.mp4", OutputError, "may not write")
    assert list(folder.iterdir()) == []


def test_an_encoder_that_fails_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VideoWriter, "_write_sound", full)
    refused(write_to, tmp_path / "out.mp4", OutputError, "No space left")
    assert list(tmp_path.iterdir()) == []
