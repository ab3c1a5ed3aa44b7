"""Frames by PTS: order, clock, leaps, rotation, damage."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from teso_deploy.errors import InputNotFoundError, MediaError
from teso_deploy.media.reader import VideoReader
from tests.support.clips import make_clip


def write_frames(path: Path, times: list[float], *, shade: bool = True, options: dict[str, str] | None = None) -> Path:
    """Write a video of flat grey frames at given times. The i-th has grey level 10·i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = dict(options or {})
        for i, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * i if shade else 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    with VideoReader(make_clip(tmp_path / "a.mp4", seconds=2, fps=10, size=(48, 64))) as reader:
        info = reader.info
    assert (info.width, info.height, info.fps, info.has_audio) == (64, 48, 10.0, True)
    assert info.duration_seconds == pytest.approx(2.0, abs=0.05)


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.6, 0.64, 1.2]
    with VideoReader(write_frames(tmp_path / "vfr.mp4", times)) as reader:
        frames = list(reader)
    assert [frame.pts_seconds for frame in frames] == pytest.approx(times, abs=0.002)
    assert [frame.index for frame in frames] == list(range(6))
    assert [float(frame.image.mean()) for frame in frames] == pytest.approx([10 * i for i in range(6)], abs=4)


def test_b_frames_come_in_order_of_display(tmp_path: Path) -> None:
    times = [i / 25 for i in range(20)]
    with VideoReader(write_frames(tmp_path / "b.mp4", times, options={"bf": "3", "b-adapt": "0"})) as reader:
        frames = list(reader)
    assert [frame.pts_seconds for frame in frames] == pytest.approx(times, abs=0.002)
    assert np.all(np.diff([frame.image.mean() for frame in frames]) > 0)


def test_the_clock_starts_at_the_earliest_stream(tmp_path: Path) -> None:
    times = [5.0 + i / 25 for i in range(10)]
    with VideoReader(write_frames(tmp_path / "late.mkv", times)) as reader:
        assert next(iter(reader)).pts_seconds == pytest.approx(0.0, abs=0.002)


def test_fewer_frames_on_request(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.mp4", [i / 25 for i in range(50)], shade=False)
    with VideoReader(path, fps=5) as reader:
        assert [frame.pts_seconds for frame in reader] == pytest.approx([i / 5 for i in range(10)], abs=0.041)
    with VideoReader(path, fps=100) as reader:
        assert len(list(reader)) == 50
    with VideoReader(path, every_nth=7) as reader:
        assert [frame.index for frame in reader] == list(range(0, 50, 7))
    with pytest.raises(ValueError, match="positive"):
        VideoReader(path, fps=0)


def test_a_leap_of_the_clock_starts_a_segment_and_time_goes_on(tmp_path: Path) -> None:
    one = write_frames(tmp_path / "one.ts", [10 + i / 25 for i in range(10)], shade=False)
    two = write_frames(tmp_path / "two.ts", [i / 25 for i in range(10)], shade=False)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    with VideoReader(both) as reader:
        frames = list(reader)
    assert {frame.segment for frame in frames} == {0, 1} and len(frames) >= 18
    assert np.all(np.diff([frame.pts_seconds for frame in frames]) > 0)
    assert frames[-1].pts_seconds < 2


def test_damaged_packets_are_counted_and_survived(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.ts", [i / 25 for i in range(100)], shade=False, options={"g": "10"})
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data) // 4, len(data), len(data) // 300):
        data[place] = rng.integers(256)
    path.write_bytes(data)
    with VideoReader(path) as reader:
        frames = list(reader)
        assert len(frames) > 30
        assert reader.corrupt_frames + reader.corrupt_packets > 0
        assert sum(frame.is_corrupt for frame in frames) == reader.corrupt_frames


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "only sound", "no moov"])
def test_what_is_no_video_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "only sound":
        make_clip(path, has_video=False)
    elif kind == "no moov":
        whole = make_clip(tmp_path / "whole.mp4", seconds=2).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputNotFoundError if kind == "missing" else MediaError) as caught:
        VideoReader(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_was_cut_off_is_refused_when_its_end_is_missed(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", seconds=8)
    fast = tmp_path / "fast.mp4"
    with av.open(str(whole)) as source, av.open(str(fast), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = fast.read_bytes()
    fast.write_bytes(data[: len(data) * 6 // 10])
    with VideoReader(fast) as reader, pytest.raises(MediaError, match="cut off"):
        list(reader)


@pytest.mark.parametrize(("pause", "read"), [(3600.0, 3600.0), (1e9, 0.24)], ids=["an hour", "31 years"])
def test_a_pause_of_years_is_a_damaged_stamp(tmp_path: Path, pause: float, read: float) -> None:
    """Otherwise it would be filled with silence. The picture continues where it is due; a pause of an hour is kept."""
    path = write_frames(tmp_path / "leap.mkv", [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, pause])
    with VideoReader(path) as reader:
        times = [frame.pts_seconds for frame in reader]
    assert len(times) == 7 and times[5] == pytest.approx(0.2, abs=0.002)
    assert times[6] == pytest.approx(read, abs=0.01)
