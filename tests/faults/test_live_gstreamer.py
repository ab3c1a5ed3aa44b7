"""A server that is not ours: Debian's GStreamer RTSP server.

It needs apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{good,bad,ugly}. Without these
packages the tests are skipped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from teso_deploy.errors import MediaError
from tests.support.recordings import click_track, record
from tests.support.streams import free_port
from tests.support.watching import Seen, assert_exact, failure_of, watched

PYTHON = Path("/usr/bin/python3")
SERVER = Path(__file__).parents[1] / "support" / "gstreamer_server.py"
HAS_IT = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
SECONDS = 6.0
BEATS = [0.9, 1.7, 2.25, 3.4, 4.1, 5.2]


def is_there() -> bool:
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", HAS_IT], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.gstreamer,
    pytest.mark.skipif(not is_there(), reason="Debian's GStreamer RTSP server is not installed"),
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gstreamer") / "clip.ts"
    times = [n / 40 for n in range(round(SECONDS * 40))]
    return record(path, times, flashes=BEATS, sound=click_track(SECONDS, BEATS))


@contextmanager
def gstreamer(clip: Path, *credentials: str) -> Iterator[int]:
    port = free_port()
    command = [str(PYTHON), str(SERVER), str(clip), str(port), *credentials]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield port
        finally:
            process.kill()


def test_picture_and_sound_stay_together(clip: Path) -> None:
    with gstreamer(clip) as port:
        seen = watched(
            f"rtsp://127.0.0.1:{port}/live", 60.0, lossless=True,
            until=lambda seen: len(seen.flashes) >= 4 and seen.pts[-1] > seen.flashes[3] + 0.3,
        )  # fmt: skip
    health = seen.health
    assert health is not None and health.has_audio and health.corrupt_packets == health.discontinuities == 0
    assert_exact(seen, 3)


def test_who_may_not_see_it_is_told_so(clip: Path) -> None:
    with gstreamer(clip, "me", "secret") as port:
        error, _ = failure_of(f"rtsp://me:wrong-word@127.0.0.1:{port}/live")
        assert isinstance(error, MediaError) and "refuses these credentials" in str(error)
        assert "wrong-word" not in str(error)
        seen = watched(f"rtsp://me:secret@127.0.0.1:{port}/live", 60.0, until=lambda seen: len(seen.pts) > 10)
        assert len(seen.pts) > 10


def test_the_server_is_killed_and_comes_back(clip: Path) -> None:
    port, state = free_port(), dict[str, float]()
    command = [str(PYTHON), str(SERVER), str(clip), str(port)]

    def begun() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process

    def is_back(seen: Seen) -> bool:
        return bool(seen.segments) and seen.segments[-1] > 0 and seen.segments.count(seen.segments[-1]) > 20

    servers = [begun()]

    def act(passed: float) -> None:
        if passed > 1.0 and "killed" not in state:
            state["killed"] = passed
            servers[-1].kill()
            servers.append(begun())

    try:
        seen = watched(f"rtsp://127.0.0.1:{port}/live", 60.0, act, timeout_seconds=20, until=is_back)
    finally:
        for process in servers:
            process.kill()
            process.wait()
    assert seen.health is not None and seen.health.reconnects >= 1
    assert seen.pts == sorted(seen.pts) and seen.segments[-1] > 0
