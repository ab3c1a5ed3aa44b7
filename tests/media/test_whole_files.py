"""Files are read to their end, however their tracks end, and the written video ends in the same way."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from teso_deploy.errors import MediaError
from teso_deploy.media.audio import AudioTrack, read_audio
from teso_deploy.media.reader import VideoReader
from teso_deploy.media.writer import VideoWriter
from tests.support.commands import teso
from tests.support.recordings import click_track, record

STEADY = [i / 10 for i in range(20)]


def rewrite(path: Path, out: Path, last_seconds: float, subtitle_at: float | None = None) -> Path:
    """Copy a recording with a long last picture, and optionally a subtitle of ten seconds."""
    with ExitStack() as stack:
        given, container = stack.enter_context(av.open(str(path))), stack.enter_context(av.open(str(out), "w"))
        tracks: dict[int, Any] = {s.index: container.add_stream_from_template(s) for s in given.streams}
        if subtitle_at is not None:
            text = f"1\n00:00:{subtitle_at:02.0f},000 --> 00:00:{subtitle_at + 10:02.0f},000\nthe end\n"
            out.with_suffix(".srt").write_text(text)
            captions = stack.enter_context(av.open(str(out.with_suffix(".srt"))))
            (words,) = captions.streams
            subtitles: Any = container.add_stream_from_template(words)
        packets = [packet for packet in given.demux() if packet.dts is not None]
        shown = [packet for packet in packets if packet.stream.type == "video"]
        last: Any = max(shown, key=lambda packet: packet.pts or 0)
        last.duration = round(last_seconds / last.time_base)
        for packet in packets:
            packet.stream = tracks[packet.stream.index]
            container.mux(packet)
        if subtitle_at is not None:
            line = next(captions.demux(words))
            line.stream = subtitles
            container.mux(line)
    return out


def seconds_of(path: Path) -> float:
    with av.open(str(path)) as container:
        assert container.duration
        return container.duration / av.time_base


#: Older versions of FFmpeg write no durations of pictures into Matroska.
KEEPS_DURATIONS = ["mp4", "mov", *(["mkv"] if av.library_versions["libavformat"] >= (62, 12, 0) else [])]


@pytest.mark.parametrize("suffix", KEEPS_DURATIONS)
@pytest.mark.parametrize("has_sound", [False, True])
def test_a_last_picture_that_lasts_is_no_cut(suffix: str, has_sound: bool, tmp_path: Path) -> None:
    """A screen recording in which nothing moved for the last six seconds."""
    sound = click_track(8.0, [7.0]) if has_sound else None
    path = rewrite(record(tmp_path / f"a.{suffix}", STEADY, sound=sound), tmp_path / f"b.{suffix}", 6.1)
    with VideoReader(path) as reader:
        assert sum(1 for _ in reader) == 20
        assert reader.end_seconds == pytest.approx(8.0, abs=0.05)


def test_a_gif_whose_last_picture_lasts(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), (20 * i, 80, 200 - 15 * i)) for i in range(10)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100] * 9 + [5000])
    with VideoReader(tmp_path / "a.gif") as reader:
        assert sum(1 for _ in reader) == 10
        assert reader.end_seconds == pytest.approx(5.9, abs=0.05)


def test_subtitles_may_outlast_the_film(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", STEADY, sound=click_track(2.0, [1.0]))
    with VideoReader(rewrite(path, tmp_path / "b.mkv", 0.1, subtitle_at=20.0)) as reader:
        assert sum(1 for _ in reader) == 20
        assert reader.info.duration_seconds == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("extra", [(6.1, None), (0.1, 20.0)])
def test_a_file_of_that_kind_that_was_cut_off_is_refused(
    suffix: str, extra: tuple[float, float | None], tmp_path: Path
) -> None:
    last, subtitle_at = extra
    if suffix == "mp4":
        subtitle_at = None
    times = [i / 10 for i in range(200)]
    given = record(tmp_path / f"a.{suffix}", times, sound=click_track(20.0, [1.0]))
    path = rewrite(given, tmp_path / f"b.{suffix}", last, subtitle_at)
    if suffix == "mp4":  # with its index first, as on servers
        with (
            av.open(str(path)) as source,
            av.open(str(tmp_path / "c.mp4"), "w", options={"movflags": "faststart"}) as out,
        ):
            tracks: dict[int, Any] = {s.index: out.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = tracks[packet.stream.index]
                    out.mux(packet)
        path = tmp_path / "c.mp4"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with VideoReader(path) as reader, pytest.raises(MediaError, match="cut off"):
        for _ in reader:
            pass


def test_an_index_that_lists_every_packet_counts_more_than_a_duration(tmp_path: Path) -> None:
    """A recorder wrote a wrong length into the track's header, but all pictures of the index exist."""
    path = record(tmp_path / "a.mp4", STEADY)
    content = bytearray(path.read_bytes())
    place = content.index(b"mdhd") + 4 + 12
    scale = int.from_bytes(content[place : place + 4], "big")
    content[place + 4 : place + 8] = (3600 * scale).to_bytes(4, "big")
    path.write_bytes(content)
    with VideoReader(path) as reader:
        assert sum(1 for _ in reader) == 20


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_written_video_ends_where_its_source_ends(tiny_bundle: Path, suffix: str, tmp_path: Path) -> None:
    """The last picture stays while its sound continues, and the sound is written to its end."""
    given = record(tmp_path / f"a.{suffix}", STEADY, sound=click_track(8.0, [7.0]))
    for path in (given, rewrite(given, tmp_path / f"b.{suffix}", 6.1)):
        done = teso("run", path, "--bundle", tiny_bundle, "--threads", 1, "--fps", 2, "--out", tmp_path / "o.mp4")
        assert done.code == 0, done.err
        assert seconds_of(tmp_path / "o.mp4") == pytest.approx(8.0, abs=0.1)
        heard = read_audio(tmp_path / "o.mp4")
        assert np.abs(heard.read(7.0, 7.05)).max() > 0.3, "the click after the last picture"
        with VideoReader(tmp_path / "o.mp4") as reader:
            frames = list(reader)
            assert reader.end_seconds == pytest.approx(8.0, abs=0.1)
        np.testing.assert_allclose([f.pts_seconds for f in frames], [0, 0.5, 1, 1.5, 7.5], atol=0.01)


def test_sound_from_another_file_is_cut_to_the_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    film = record(tmp_path / "a.mp4", STEADY, sound=click_track(2.0, [1.0]))
    song = record(tmp_path / "b.mp4", STEADY, sound=click_track(8.0, [7.0]))
    out = tmp_path / "o.mp4"
    done = teso("run", film, "--bundle", tiny_bundle, "--threads", 1, "--fps", 2, "--sound-from", song, "--out", out)
    assert done.code == 0, done.err
    assert seconds_of(out) == pytest.approx(2.0, abs=0.1)


def test_a_writer_holds_its_last_picture(tmp_path: Path) -> None:
    image = np.full((48, 64, 3), 90, np.uint8)
    with VideoWriter(tmp_path / "o.mp4", 64, 48, fps=10, sound=AudioTrack.silence(9.0)) as writer:
        for at in (0.0, 0.1):
            writer.write(image, at)
        writer.hold_until(5.0)
    assert seconds_of(tmp_path / "o.mp4") == pytest.approx(5.0, abs=0.05)


@pytest.mark.parametrize(("size", "tag"), [((1280, 720), 1), ((640, 480), 6)])
def test_the_written_video_has_tags_that_its_colours_agree_with(
    size: tuple[int, int], tag: int, tmp_path: Path
) -> None:
    """Bars of 75 % and 100 % are read back unchanged."""
    width, height = size
    colours = np.array([[180 * (n >> b & 1) for b in (1, 2, 0)] for n in range(8)] + [[255, 0, 0], [16, 32, 200]])
    bars = np.repeat(colours, width // 10, axis=0).astype(np.uint8)
    image = np.broadcast_to(bars, (height, len(bars), 3))
    with VideoWriter(tmp_path / "o.mp4", width, height, fps=5) as writer:
        for number in range(3):
            writer.write(image, number / 5)
    with av.open(str(tmp_path / "o.mp4")) as container:
        context: Any = container.streams.video[0].codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tags == (tag, tag, tag, 1)
    with VideoReader(tmp_path / "o.mp4") as reader:
        shown = next(iter(reader)).image[height // 2]
    middles = np.arange(10) * (width // 10) + width // 20
    assert np.abs(shown[middles].astype(int) - colours).max() <= 4
