"""``teso-deploy run`` on streams, as a user runs it: the shipped model, a server, signals, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from teso_deploy.cli.live import suggest_file_mode
from teso_deploy.resources import find_shipped_path
from tests.support.commands import teso
from tests.support.streams import Sender, free_port, rtsp, serving, silent, tcp

CLIP_SECONDS = 10.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the packets of the shipped clip into a transport stream."""
    path = tmp_path_factory.mktemp("streams") / "clip.ts"
    with (
        av.open(str(find_shipped_path("export/demo/clip.mp4"))) as given,
        av.open(str(path), "w", format="mpegts") as out,
    ):
        tracks = {stream.index: out.add_stream_from_template(stream) for stream in given.streams}  # type: ignore[arg-type]
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]  # type: ignore[assignment]
                out.mux(packet)
    return path


def started(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "teso_deploy", "run", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"COLUMNS": "200"}
    )


def ended(process: subprocess.Popen[bytes], timeout_seconds: float = 300.0) -> tuple[int, str]:
    try:
        _, message = process.communicate(timeout=timeout_seconds)
    finally:
        process.kill()
    return process.returncode, message.decode()


def wait_until(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Wait for a file of a run. A busy machine needs long."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, ended(process, 1)
        time.sleep(0.05)


def report_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_camera_becomes_masks_events_and_a_video(clip: Path, tmp_path: Path) -> None:
    """The server is killed during the run and restarts."""
    port, sender = free_port(), Sender(clip, CLIP_SECONDS, loop=True)
    first = serving(rtsp(sender, credentials="me:secret"), port)
    first.__enter__()
    process = started(
        f"rtsp://me:secret@127.0.0.1:{port}/live", "--out", tmp_path / "out.mp4", "--masks", tmp_path / "m.jsonl",
        "--events", tmp_path / "e.jsonl", "--json", tmp_path / "r.json", "--cues", "auto",
    )  # fmt: skip

    def read_lines() -> list[dict[str, Any]]:
        path = tmp_path / "m.jsonl"
        return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.exists() else []

    def has_seen_enough() -> bool:
        return [line["cause"] for line in read_lines()].count("frame") >= 10 and bool(names_of(read_lines()))

    def names_of(lines: list[dict[str, Any]]) -> set[str]:
        return {thing["name"] for line in lines for thing in line["objects"]}

    wait_until(process, has_seen_enough)
    first.__exit__(None, None, None)
    count = len(read_lines())
    time.sleep(0.7)
    with serving(rtsp(Sender(clip, CLIP_SECONDS, loop=True), credentials="me:secret"), port):
        wait_until(process, lambda: bool(names_of(read_lines()[:count]) & names_of(read_lines()[count + 5 :])))
        process.send_signal(signal.SIGINT)
        code, message = ended(process)
    assert code == 0 and "secret" not in message, message
    report = report_of(tmp_path / "r.json")
    (stream,) = report["streams"]
    assert (
        stream["reconnects"] >= 1 and stream["frames"] >= 10 and stream["state"] in ("ended", "running", "reconnecting")
    )
    assert stream["frames"] + sum(stream["drops"].values()) <= stream["frames_decoded"] + 1
    assert (
        stream["audio"]["there"]
        and stream["audio"]["gap_seconds"] > 0.5
        and report["sinks"]["out.mp4"]["error"] is None
    )
    assert stream["input"].startswith("rtsp://***@") and report["errors"] == []
    before, after = names_of(read_lines()[:count]), names_of(read_lines()[count + 5 :])
    assert before & after, "the same sounds from the same picture, after the fault"
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} == {"onset", "end"}
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) >= 10 and video.streams.audio


def count_frames(port: int) -> float:
    """Return what the metrics of a run say; 0 while they are not served yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    assert "\nteso_source_up{" in text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("teso_frames_total{"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_finish_files_and_print_the_summary(clip: Path, tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    with serving(tcp(Sender(clip, CLIP_SECONDS, loop=True))) as server:
        process = started(
            f"tcp://127.0.0.1:{server.port}", "--out", tmp_path / "out.mp4", "--json", tmp_path / "r.json",
            "--metrics", f":{port}",
        )  # fmt: skip
        wait_until(process, lambda: count_frames(port) > 5)
        process.send_signal(number)
        code, message = ended(process)
    assert code == 0 and "frames" in message
    assert report_of(tmp_path / "r.json")["streams"][0]["frames"] > 1
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) > 1


def test_standard_input_without_a_frame_lost(clip: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "teso_deploy", "run", "-", "--mode", "file", "--fps", "5", "--json", "-"]
    done = subprocess.run(
        [*command, "--masks", str(tmp_path / "masks")], input=clip.read_bytes(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    (stream,) = json.loads(done.stdout)["streams"]
    assert stream["frames_decoded"] == 250 and stream["frames"] == 50 and stream["drops"] == {"fps": 200}
    assert len(list((tmp_path / "masks").glob("*.png"))) == 50
    assert json.loads((tmp_path / "masks" / "masks.json").read_text())["input"] == "-"


def test_a_recording_that_is_piped_is_recognised(clip: Path) -> None:
    """A pipe whose frames come faster than from a camera, and a regular file."""
    command = [sys.executable, "-m", "teso_deploy", "run", "-", "--json", "-"]
    piped = subprocess.run(command, input=clip.read_bytes(), capture_output=True, check=False)
    with clip.open("rb") as file:
        opened = subprocess.run(command, stdin=file, capture_output=True, check=False)
    for done in (piped, opened):
        (stream,), message = json.loads(done.stdout)["streams"], done.stderr.decode()
        dropped = stream["drops"]["superseded"] + stream["drops"].get("stale", 0)
        assert done.returncode == 0 and f"so {dropped} of {stream['frames_decoded']} frames were dropped" in message
        assert "add --mode file to segment every frame" in message and message.count("--mode file") == 1


@pytest.mark.parametrize(
    ("drops", "fps", "lasted_seconds", "is_suggested"),
    [
        ({"superseded": 200}, 25.0, 2.0, True),
        ({"stale": 3}, 25.0, 2.0, True),
        ({"superseded": 200}, 25.0, 10.5, False),
        ({"superseded": 200}, 0.0, 2.0, False),
        ({"fps": 200}, 25.0, 2.0, False),
        ({}, 25.0, 2.0, False),
    ],
)
def test_when_file_mode_is_suggested(
    drops: dict[str, int], fps: float, lasted_seconds: float, is_suggested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    hint = suggest_file_mode({"drops": drops, "frames_decoded": 250}, fps, lasted_seconds)
    assert (hint is not None) == is_suggested


def test_bad_input_is_a_sentence(clip: Path, tmp_path: Path) -> None:
    with serving(silent) as server:
        cases: list[tuple[list[object], str]] = [
            (["srt://h:1"], "can't be read"),
            (["tcp://127.0.0.1:1", "--events", tmp_path / "e.jsonl"], "Connection refused"),
            ([f"http://127.0.0.1:{server.port}/x", "--timeout", 1, "--json", "-"], "1 s"),
            (["rtsp://h/x", "--out", tmp_path / "none" / "o.mp4"], "no folder"),
            (["rtsp://h/x", "--mode", "paper"], "for files"),
            (["rtsp://h/x", "--metrics", "x"], "give :PORT"),
            ([tmp_path / "none.mp4", "--mode", "live"], "no file"),
        ]
        for arguments, message in cases:
            code, text = ended(started(*arguments))
            assert code == 2 and message in text and "Traceback" not in text, (arguments, text)


def test_a_sink_that_failed_shows_in_the_exit_code() -> None:
    clip = find_shipped_path("export/demo/clip.mp4")
    done = teso("run", clip, "--mode", "live", "--seconds", 2, "--events", "/dev/full", "--json", "-")
    report = json.loads(done.out)
    assert done.code == 1 and "No space left" in report["errors"][0]
    assert done.err.splitlines()[-1] == f"teso-deploy: {report['errors'][0]}"
    assert report["streams"][0]["frames"] > 0, "the run went on without it"
