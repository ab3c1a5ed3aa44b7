"""Servers of each protocol at the reader: what they refuse, and how a stream ends."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from teso_deploy.errors import InputNotFoundError, MediaError
from teso_deploy.media.address import Address
from teso_deploy.media.decoding import Corrupt
from teso_deploy.media.live_reader import LiveReader
from tests.support.recordings import click_track, record
from tests.support.rtmp import rtmp
from tests.support.streams import Sender, Server, flagged, free_port, http, lost, rtsp, serving, silent, tcp
from tests.support.watching import assert_aligned, failure_of, has_beats, quickly, watched

SECONDS = 4.0
BEATS = [0.5 * n for n in range(1, 8)]
#: Longer than any of these streams takes on a busy machine; each test ends as soon as it has seen enough.
LONG_SECONDS = 60.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("servers") / "clip.ts"
    return record(path, [n / 40 for n in range(160)], flashes=BEATS, sound=click_track(SECONDS, BEATS))


def test_http_in_chunks(clip: Path) -> None:
    with serving(http(Sender(clip, SECONDS), chunked=True)) as server:
        seen = watched(f"http://127.0.0.1:{server.port}/live.ts", LONG_SECONDS, until=has_beats(2))
    assert seen.health is not None and seen.health.corrupt_packets == seen.health.reconnects == 0
    assert_aligned(seen)


def test_rtmp(clip: Path) -> None:
    path = record(
        clip.with_name("clip.flv"), [n / 40 for n in range(160)], flashes=BEATS, sound=click_track(SECONDS, BEATS)
    )
    with serving(rtmp(path)) as server:
        seen = watched(f"rtmp://127.0.0.1:{server.port}/live/x", LONG_SECONDS, until=has_beats(2))
        assert seen.health is not None and seen.health.has_audio and seen.health.reconnects == 0
        assert_aligned(seen)
        error, seconds = failure_of(f"rtmp://127.0.0.1:{server.port}/live/other")
        assert isinstance(error, MediaError) and seconds < 30


def test_rtsp_with_a_digest(clip: Path) -> None:
    with serving(rtsp(Sender(clip, SECONDS), "me:secret", scheme="Digest")) as server:
        seen = watched(f"rtsp://me:secret@127.0.0.1:{server.port}/live", LONG_SECONDS, until=has_beats(2))
        assert_aligned(seen)
        asked = server.clients
        error, seconds = failure_of(f"rtsp://me:wrong-word@127.0.0.1:{server.port}/live")
        assert isinstance(error, MediaError) and "credentials" in str(error) and "wrong-word" not in str(error)
        assert seconds < 30 and server.clients == asked + 1


def test_rtsp_has_no_such_path(clip: Path) -> None:
    with serving(rtsp(Sender(clip, SECONDS))) as server:
        error, _ = failure_of(f"rtsp://127.0.0.1:{server.port}/other")
        assert isinstance(error, InputNotFoundError) and server.clients == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_is_sent_away_behind_a_break_does_not_ask_again(clip: Path, status: int) -> None:
    port = free_port()
    first = Server(http(Sender(clip, SECONDS), credentials="me:pass-word"), port)
    with LiveReader(
        Address.parse(f"http://me:pass-word@127.0.0.1:{port}/live.ts"), timeout_seconds=60, backoff=quickly
    ) as reader:
        reader.start()
        first.kill()
        with serving(http(None, status), port) as second:
            deadline = time.monotonic() + LONG_SECONDS
            while not reader.ended and time.monotonic() < deadline:
                reader.take(0.02)
            assert reader.ended and reader.health().state == "failed"
            asked = second.clients
            time.sleep(0.5)
            assert second.clients == asked <= 2, "only PyAV's FFmpeg may ask a second time, with the password"
    assert isinstance(reader.error, InputNotFoundError if status == 404 else MediaError)
    assert "pass-word" not in str(reader.error)


def test_without_reconnecting_a_break_is_the_end(clip: Path) -> None:
    server = Server(tcp(Sender(clip, SECONDS)))
    with LiveReader(Address.parse(f"tcp://127.0.0.1:{server.port}"), timeout_seconds=60, reconnect=False) as reader:
        reader.start()
        server.kill()
        deadline = time.monotonic() + LONG_SECONDS
        while not reader.ended and time.monotonic() < deadline:
            reader.take(0.02)
        assert reader.ended and reader.health().reconnects == 0


def trickle(connection: socket.socket) -> None:
    """Send bytes all the time that are never a stream."""
    while True:
        connection.sendall(b"\0" * 188)
        time.sleep(0.1)


def headers_alone(connection: socket.socket) -> None:
    """Send the headers of a stream, and nothing more."""
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n")
    silent(connection)


def test_nothing_that_is_a_stream(clip: Path) -> None:
    paused = Sender(clip, SECONDS)
    paused.paused.set()
    for scheme, serve in (("tcp", trickle), ("http", headers_alone), ("rtsp", rtsp(paused))):
        with serving(serve) as server:
            error, seconds = failure_of(f"{scheme}://127.0.0.1:{server.port}/live", 1.0)
        assert isinstance(error, MediaError) and seconds < 30, scheme
    paused.stopped.set()
    error, seconds = failure_of(f"udp://127.0.0.1:{free_port()}", 1.0)
    assert isinstance(error, MediaError) and seconds < 30


def test_every_frame_is_taken_or_counted(clip: Path) -> None:
    with serving(tcp(Sender(clip, SECONDS))) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", 1.5, lambda at: time.sleep(0.06))
    health = seen.health
    assert health is not None and set(health.drops) <= {"superseded"} and health.drops["superseded"] > 5
    assert health.frames_decoded - len(seen.pts) - health.drops["superseded"] in (0, 1), "one may wait"


def test_what_is_flagged_as_damaged_is_counted_one_by_one(clip: Path) -> None:
    numbers = (25, 45, 65)
    with serving(tcp(Sender(clip, SECONDS, flagged(numbers)))) as server:
        seen = watched(
            f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, lossless=True,
            until=lambda seen: bool(seen.pts) and seen.pts[-1] > 2.2,
        )  # fmt: skip
    assert seen.health is not None and seen.health.corrupt_packets == len(numbers)
    assert seen.health.reconnects == seen.health.discontinuities == 0


@pytest.mark.parametrize("corrupt", ["keep", "drop"])
def test_damaged_frames_are_given_or_kept_back(clip: Path, corrupt: Corrupt) -> None:
    with serving(tcp(Sender(clip, SECONDS, lost(0.3)))) as server:
        seen = watched(
            f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, lossless=True, corrupt=corrupt,
            until=lambda seen: seen.corrupt > 0 or bool(seen.health and seen.health.drops.get("corrupt")),
        )  # fmt: skip
    health = seen.health
    assert health is not None and health.corrupt_frames >= 1
    if corrupt == "drop":
        assert seen.corrupt == 0 and health.drops["corrupt"] >= 1
    else:
        assert seen.corrupt > 0 and "corrupt" not in health.drops
