"""The reader of streams on recordings and pipes: all frames or the newest, its clock, its counters, and its end.

``tests/faults/test_live_faults.py`` has the faults of servers.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest

from teso_deploy.errors import MediaError
from teso_deploy.media import decoding
from teso_deploy.media.address import Address
from teso_deploy.media.backoff import Backoff
from teso_deploy.media.decoding import VideoDecoder
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.media.mailbox import LiveFrame
from tests.support.leaks import nothing_left
from tests.support.recordings import RATE_HZ, SIZE, click_times, click_track, record, shifted, turn
from tests.support.streams import Sender, corrupted, serving, silent, tcp

SECONDS = 2.0
TIMES = [n / 25 for n in range(50)]
MOST_SECONDS = 120.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "clip.ts"
    return record(path, TIMES, flashes=[1.0], sound=click_track(SECONDS, [1.0]))


def reader_of(path: Path | str, **more: Any) -> LiveReader:
    return LiveReader(Address.parse(path), **more)


def all_of(reader: LiveReader) -> list[LiveFrame]:
    """Return all frames until the end."""
    found, deadline = [], time.monotonic() + MOST_SECONDS
    while not reader.ended:
        assert time.monotonic() < deadline, "it does not end"
        taken = reader.take(0.1)
        if taken is not None:
            found.append(taken)
    return found


def flash_of(frames: list[LiveFrame]) -> float:
    """Return when the picture turns white."""
    return next(taken.pts_seconds for taken in frames if taken.frame.image[SIZE[0] // 2 :].mean() > 128)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make standard input a pipe, and yield the end to write to, which the test closes."""
    taken, given = os.pipe()
    with open(taken, "rb", buffering=0) as file:

        class Stdin:
            buffer = file

        monkeypatch.setattr(sys, "stdin", Stdin)
        yield given


def pour(content: bytes, into: int) -> None:
    """Write content to a pipe in a thread, and close it."""

    def run() -> None:
        with open(into, "wb") as file:
            file.write(content)

    threading.Thread(target=run, daemon=True).start()


# ---------------------------------------------------------------------------------------- every frame, or the newest


def test_lossless_gives_every_frame_in_order(clip: Path) -> None:
    with reader_of(clip, lossless=True) as reader:
        reader.start()
        frames = all_of(reader)
        health = reader.health()
        clicks = click_times(reader.ring.read(0.0, SECONDS))
    assert [taken.index for taken in frames] == list(range(50)) and health.frames_decoded == 50
    np.testing.assert_allclose(np.diff([taken.pts_seconds for taken in frames]), 0.04, atol=1e-3)
    assert {taken.segment for taken in frames} == {0} and health.state == "ended" and sum(health.drops.values()) == 0
    assert all(taken.arrived <= taken.decoded for taken in frames)
    assert clicks == pytest.approx([flash_of(frames)], abs=0.005)


def test_the_newest_wins_and_the_others_are_counted(clip: Path) -> None:
    with reader_of(clip, realtime=True) as reader:
        reader.start()
        frames = []
        while not reader.ended:
            time.sleep(0.2)
            frames += [taken] if (taken := reader.take(0.0)) else []
        health = reader.health()
    assert 2 <= len(frames) <= 12 and [f.pts_seconds for f in frames] == sorted(f.pts_seconds for f in frames)
    assert health.frames_decoded == 50 == len(frames) + health.drops["superseded"]


def test_slow_pictures_keep_their_sound(tmp_path: Path) -> None:
    """Sound must not be read so far ahead of a slow reader that the ring has lost it."""
    path = record(tmp_path / "a.mkv", [float(n) for n in range(60)], sound=np.full(60 * RATE_HZ, 0.5, np.float32))
    with reader_of(path, lossless=True) as reader:
        reader.start()
        time.sleep(0.5)
        frames = 0
        while not reader.ended:
            taken = reader.take(0.1)
            if taken is not None:
                reader.ring.wait_for(taken.pts_seconds, 60)
                frames += 1
                assert reader.ring.window(taken.pts_seconds).is_silent == (taken.pts_seconds < 0.5), taken.pts_seconds
    assert frames == 60


@pytest.mark.parametrize("lossless", [True, False])
def test_b_frames_come_in_the_order_of_their_time(lossless: bool, tmp_path: Path) -> None:
    path = tmp_path / "b.ts"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = *SIZE, "yuv420p"
        video.options = {"bf": "2", "b-adapt": "0", "preset": "fast"}
        for n in range(50):
            image = np.full((*SIZE, 3), 4 * n, np.uint8)
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = n, Fraction(1, 25)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
    with reader_of(path, lossless=lossless, realtime=not lossless) as reader:
        reader.start()
        frames = all_of(reader)
        assert reader.info.delay_frames >= 2
        assert reader.health().frames_decoded == 50 and (len(frames) == 50 or not lossless)
    brightness = [float(taken.frame.image.mean()) for taken in frames]
    assert brightness == sorted(brightness) and not reader.health().discontinuities


# ---------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("kind", ["back", "ahead"])
def test_a_recording_whose_stamps_leap_is_paced(kind: str, clip: Path, tmp_path: Path) -> None:
    second = clip if kind == "back" else shifted(clip, tmp_path / "late.ts", 5000.0)
    path = tmp_path / "two.ts"
    path.write_bytes(clip.read_bytes() + second.read_bytes())
    began = time.monotonic()
    with reader_of(path, realtime=True) as reader:
        reader.start()
        frames = all_of(reader)
        health = reader.health()
    assert 2 * SECONDS - 0.5 < time.monotonic() - began < 2 * SECONDS + 30
    times = [taken.pts_seconds for taken in frames]
    assert times == sorted(times) and times[-1] == pytest.approx(2 * SECONDS, abs=0.3)
    assert health.discontinuities == 1 and frames[-1].segment == 1 and health.frames_decoded >= 98


def with_first_sound_at(clip: Path, out: Path, seconds: float) -> Path:
    """Change the stamp of the first packet of sound: 33 bits of 90 kHz in the header of its PES packet."""
    with av.open(str(clip)) as container:
        track = container.streams.audio[0].id
    content, ticks = bytearray(clip.read_bytes()), round(seconds * 90_000)
    for at in range(0, len(content), 188):
        begins, has_more = content[at + 1] & 0x40, content[at + 3] & 0x20
        if begins and (content[at + 1] & 0x1F) << 8 | content[at + 2] == track:
            stamp = at + 4 + (content[at + 4] + 1 if has_more else 0) + 9
            high, middle, low = ticks >> 30, ticks >> 15 & 0x7FFF, ticks & 0x7FFF
            content[stamp : stamp + 5] = [
                0x21 | high << 1, middle >> 7, middle << 1 & 0xFF | 1, low >> 7, low << 1 & 0xFF | 1
            ]  # fmt: skip
            break
    out.write_bytes(content)
    return out


@pytest.mark.parametrize("seconds", [3.0, 40.0, 5000.0, 60_000.0])
def test_a_damaged_first_stamp_moves_nothing(seconds: float, clip: Path, tmp_path: Path) -> None:
    with reader_of(with_first_sound_at(clip, tmp_path / "a.ts", seconds), lossless=True) as reader:
        reader.start()
        frames = all_of(reader)
        clicks = click_times(reader.ring.read(0.0, 3.0))
    assert len(frames) == 50 and frames[-1].pts_seconds < 2.5
    assert clicks == pytest.approx([flash_of(frames)], abs=0.005)


def test_pictures_without_stamps(clip: Path, tmp_path: Path, piped: int) -> None:
    """Bare H.264, as small cameras send it, is timed by its frame rate; live, by its arrival."""
    with av.open(str(clip)) as container:
        content = b"".join(bytes(packet) for packet in container.demux(video=0))
    path = tmp_path / "bare.h264"
    path.write_bytes(content)
    with reader_of(path, lossless=True) as reader:
        reader.start()
        assert [taken.pts_seconds for taken in all_of(reader)] == pytest.approx(TIMES)
    began = time.monotonic()
    with reader_of(path, realtime=True) as reader:
        reader.start()
        frames = all_of(reader)
        assert reader.health().frames_decoded == 50
    assert time.monotonic() - began > SECONDS - 0.2 and frames[-1].pts_seconds == pytest.approx(SECONDS, abs=0.3)
    pour(content, piped)
    with reader_of("-", lossless=True) as reader:
        reader.start()
        assert len(all_of(reader)) == 50


# ---------------------------------------------------------------------------------------- pipes


def test_a_pipe_is_read_to_its_end(clip: Path, piped: int) -> None:
    pour(clip.read_bytes(), piped)
    with reader_of("-", lossless=True) as reader:
        reader.start()
        frames = all_of(reader)
        assert reader.info.kind == "pipe" and reader.info.has_audio and reader.health().state == "ended"
    assert len(frames) == 50 and reader.health().audio_seconds == pytest.approx(SECONDS, abs=0.1)


def test_a_pipe_that_says_nothing(piped: int) -> None:
    began = time.monotonic()
    with pytest.raises(MediaError, match=r"0\.5 s") as raised, reader_of("-", timeout_seconds=0.5) as reader:
        reader.start()
    assert time.monotonic() - began < 30 and "\n" not in str(raised.value)
    assert reader.ended and reader.health().state == "failed" and reader.health().error == str(raised.value)
    os.close(piped)


# ---------------------------------------------------------------------------------------- what is damaged or missing


@pytest.mark.parametrize("corrupt", ["keep", "drop"])
def test_damage_is_counted(corrupt: decoding.Corrupt, clip: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "damaged.ts", clip.read_bytes()
    path.write_bytes(content[:9400] + corrupted(0.2)(content[9400:]))
    with reader_of(path, lossless=True, corrupt=corrupt) as reader:
        reader.start()
        frames = all_of(reader)
        health = reader.health()
    assert health.corrupt_frames > 0 and health.state == "ended"
    assert any(taken.is_corrupt for taken in frames) == (corrupt == "keep")
    assert len(frames) + health.drops.get("corrupt", 0) == health.frames_decoded


def test_no_sound_is_silence(tmp_path: Path) -> None:
    with reader_of(record(tmp_path / "a.mp4", TIMES), lossless=True) as reader:
        reader.start()
        assert len(all_of(reader)) == 50 and not reader.info.has_audio
        health, window = reader.health(), reader.ring.window(1.0)
    assert not health.has_audio and health.av_offset_seconds is None and window.is_silent


def test_info_is_of_the_upright_picture(tmp_path: Path) -> None:
    with reader_of(turn(record(tmp_path / "a.mp4", TIMES), 90), lossless=True) as reader:
        reader.start()
        taken = reader.take(60)
        assert taken is not None and taken.frame.image.shape == (SIZE[1], SIZE[0], 3)
        assert (reader.info.width, reader.info.height) == SIZE and reader.info.fps == pytest.approx(25, abs=0.1)


def test_a_packet_that_looked_like_a_new_stream_is_no_fault(clip: Path) -> None:
    class Container:
        def demux(self, *streams: Any) -> Iterator[Any]:
            raise IndexError("list index out of range")
            yield

    reader = reader_of(clip)
    assert list(reader._read_packets(cast(Any, Container()), [], None)) == [] and reader.health().corrupt_packets == 1


# ---------------------------------------------------------------------------------------- its end


def test_who_waits_for_frames_learns_that_none_will_come(clip: Path) -> None:
    def fail() -> None:
        if threading.current_thread().name == "teso-video" and reader.health().frames_decoded > 3:
            raise RuntimeError("the listener failed")

    reader = reader_of(clip, lossless=True)
    reader.on_frame = fail
    with reader:
        reader.start()
        assert len(all_of(reader)) < 50
    assert reader.health().state == "failed" and "the listener failed" in str(reader.error)


def test_an_end_is_an_end_though_a_decoder_is_slow(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader waits a short time for the decoder. Frames that it gives later do not change the state."""
    decode = VideoDecoder._decode

    def slowly(self: VideoDecoder, *given: Any) -> Any:
        time.sleep(0.1)
        return decode(self, *given)

    monkeypatch.setattr(VideoDecoder, "_decode", slowly)
    monkeypatch.setattr("teso_deploy.media.live_reader.JOIN_SECONDS", 1.55)
    with reader_of(clip) as reader:
        reader.start()
        frames = all_of(reader)
        time.sleep(0.3)
        health = reader.health()
    assert health.state == "ended" and reader.ended
    assert len(frames) + sum(health.drops.values()) == pytest.approx(50, abs=1), "the one that was on its way"


@pytest.mark.parametrize("more", [{"lossless": True}, {"realtime": True}, {}], ids=["lossless", "realtime", "newest"])
def test_nothing_is_left_of_a_reader_that_is_closed_early(more: dict[str, Any], tmp_path: Path) -> None:
    path = record(tmp_path / "a.ts", [n / 25 for n in range(1000)], sound=click_track(40.0, [1.0]))
    with nothing_left("teso-"):
        for _ in range(5):
            began = time.monotonic()
            with reader_of(path, **more) as reader:
                reader.start()
            assert time.monotonic() - began < 20


def test_a_server_that_is_silent_does_not_count_as_one_that_held() -> None:
    held: list[float] = []

    class Noting(Backoff):
        def note_connection(self, seconds: float) -> None:
            held.append(seconds)

    with serving(silent) as server:
        reader = reader_of(f"tcp://127.0.0.1:{server.port}", timeout_seconds=0.6, backoff=Noting)
        with reader, pytest.raises(MediaError):
            reader.start()
    assert held == [0.0]


# ---------------------------------------------------------------------------------------- sound from elsewhere


def test_sound_of_another_file_begins_with_the_picture(clip: Path, tmp_path: Path) -> None:
    picture = record(tmp_path / "a.mp4", [n / 25 for n in range(1000)], flashes=[1.0])
    sound = record(tmp_path / "b.mp4", TIMES, sound=click_track(40.0, [1.0, 38.0]))
    with reader_of(picture, audio=Address.parse(sound), lossless=True) as reader:
        reader.start()
        frames, clicks, heard = [], set(), 0.0
        while not reader.ended:
            taken = reader.take(0.1)
            if taken is None:
                continue
            frames += [taken] if taken.pts_seconds < 1.1 else []
            if taken.pts_seconds - heard >= 0.5 and reader.ring.wait_for(taken.pts_seconds, 60):
                clicks |= {round(at, 2) for at in click_times(reader.ring.read(heard, heard + 0.5), heard)}
                heard += 0.5
    assert flash_of(frames) == pytest.approx(1.0, abs=0.01)
    assert sorted(clicks) == pytest.approx([1.0, 38.0], abs=0.02), "of a long file the ring keeps what is needed"


def test_sound_of_another_server_is_tied_by_when_both_come(tmp_path: Path) -> None:
    """The sound server begins a second earlier. Sound that waited for the picture was recorded before it."""
    beats, earlier = [0.3, 1.4, 2.1, 2.3], 1.0
    path = record(tmp_path / "a.ts", [n / 25 for n in range(75)], sound=click_track(3.0, beats))
    together = threading.Barrier(2)

    def serve(connection: Any, delay: float) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # a second request finds no partner, and gets nothing
            together.wait(60)
        time.sleep(delay)
        tcp(Sender(path, 3.0))(connection)

    with serving(lambda to: serve(to, earlier)) as one, serving(lambda to: serve(to, 0.0)) as other:
        audio = Address.parse(f"tcp://127.0.0.1:{other.port}")
        with reader_of(f"tcp://127.0.0.1:{one.port}", audio=audio, timeout_seconds=60, reconnect=False) as reader:
            reader.start()
            all_of(reader)
            clicks = click_times(reader.ring.read(0.0, reader.ring.end_seconds or 0.0))
    assert clicks == pytest.approx([beat - earlier for beat in beats[1:]], abs=0.3)
