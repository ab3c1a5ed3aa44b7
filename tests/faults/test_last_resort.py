"""Every command ends with one sentence, the right exit code, and no incomplete files."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from teso_deploy import cli
from teso_deploy.cli import doctor
from teso_deploy.resources import find_shipped_path
from tests.support.clips import make_clip
from tests.support.commands import names_in, refused, teso

COMMAND = [sys.executable, "-m", "teso_deploy"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str]:
    """Run a command in which an unexpected error is raised."""

    def examine() -> dict[str, Any]:
        raise error

    monkeypatch.setattr(doctor, "examine", examine)
    done = teso(*options, "doctor")
    return done.code, done.err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("size"), "KeyError: 'size'"),
        (RuntimeError("a\n  b\x1b[31mc"), "RuntimeError: a bc"),
        (ValueError(), "ValueError"),
        (RecursionError("maximum recursion depth exceeded"), "RecursionError"),
        (RuntimeError("x" * 10_000), "RuntimeError: xxx"),
        (RuntimeError("open rtsp://me:secret@camera/x?token=secret failed"), "open rtsp://*** failed"),
        (RuntimeError("the key sk-secret-12345 is wrong"), "the key *** is wrong"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), "UnicodeEncodeError"),
    ],
)
def test_an_unforeseen_error_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str) -> None:
    monkeypatch.setenv("TESO_CUES_API_KEY", "sk-secret-12345")
    code, text = fail_with(error, monkeypatch)
    assert code == 1 and text.count("\n") == 1 and text.startswith("teso-deploy: ") and len(text) <= 300
    assert expected in text and "report" in text and "--traceback" in text and "secret" not in text
    assert text.strip().isprintable()


def test_an_outdated_package_is_named_as_a_possible_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_outdated", lambda: {"onnxruntime": ("1.22.0", "1.25")})
    code, text = fail_with(KeyError("size"), monkeypatch)
    assert code == 1 and text.count("\n") == 1 and "KeyError: 'size'" in text
    assert "onnxruntime 1.22.0 is too old, which may be the cause: pip install --upgrade 'onnxruntime>=1.25'" in text

    def fail() -> dict[str, tuple[str, str]]:
        raise OSError("no metadata")

    monkeypatch.setattr(cli, "find_outdated", fail)
    assert "please report it" in fail_with(KeyError("size"), monkeypatch)[1]


def test_traceback_shows_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = fail_with(KeyError("size"), monkeypatch, "--traceback")
    assert code == 1 and "Traceback" in text and ", in examine" in text
    monkeypatch.setenv("TESO_TRACEBACK", "1")
    assert ", in examine" in fail_with(KeyError("size"), monkeypatch)[1]
    assert "Traceback" in teso("--traceback", "run", "no.mp4", "--json", "-").err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (MemoryError(), 1, "not enough memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/locked/x"), 2, "/locked/x: Permission denied: change"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "make room"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), 2, "give a shorter name"),
        (OSError(errno.EMFILE, "Too many open files"), 2, "ulimit"),
        (OSError(errno.EIO, "Input/output error"), 1, "report"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_user_can_mend_says_how(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, expected: str
) -> None:
    found, text = fail_with(error, monkeypatch)
    assert found == code and expected in text and "Traceback" not in text


def test_a_thread_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    def examine() -> dict[str, Any]:
        def fail() -> None:
            raise RuntimeError("in a thread")

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        raise KeyError("the end")

    monkeypatch.setattr(doctor, "examine", examine)
    before = threading.excepthook
    done = teso("doctor")
    assert done.err.count("\n") == 2 and "RuntimeError: in a thread" in done.err and "Traceback" not in done.err
    assert threading.excepthook is before


def test_names_that_no_file_has(tiny_bundle: Path, tmp_path: Path, clip: Path) -> None:
    asked = ("--bundle", tiny_bundle, "--json", tmp_path / "r.json")
    refused("run", "a" * 300 + ".mp4", *asked, names="too long")
    refused("run", clip, "--bundle", tiny_bundle, "--out", tmp_path / ("a" * 300 + ".mp4"), names="too long")
    refused("run", clip, "--bundle", tiny_bundle, "--masks", tmp_path / ("a" * 300), names="too long")
    refused("export", "teso-nano", "--random-weights", 0, "--out", tmp_path / ("a" * 300), names="too long")
    refused("run", clip, "--bundle", "b" * 300, "--json", tmp_path / "r.json", names="no bundle")
    assert names_in(tmp_path) == []


def shell(line: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a line of sh in which ``teso`` stands for the command."""
    line = line.replace("teso", " ".join(COMMAND))
    return subprocess.run(["sh", "-c", line], capture_output=True, check=False, timeout=300, **more)


def test_closed_streams_are_sentences(clip: Path, tmp_path: Path) -> None:
    done = shell(f"teso run - --json {tmp_path}/j <&-")
    assert done.returncode == 2 and b"standard input is closed" in done.stderr
    done = shell("teso doctor --json - >&-")
    assert done.returncode == 2 and b"standard output is closed" in done.stderr
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") == 1
    done = shell(f"teso run no.mp4 --json {tmp_path}/j 2>&-")
    assert done.returncode == 2 and done.stdout == b""


def test_results_never_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Otherwise a library that prints to descriptor 2 would print into the report."""
    program = f"""
import os, sys
sys.argv = ["teso-deploy", "doctor", "--json", {str(tmp_path / "r.json")!r}]
from teso_deploy.cli import doctor, main
examine = doctor.examine
def examine_and_print():
    os.write(2, b"a library's message")
    return examine()
doctor.examine = examine_and_print
main()
"""
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" 2>&- >&- <&-', sys.executable, program], check=True, timeout=300)
    assert (tmp_path / "r.json").read_text().startswith("{")


def test_a_standard_output_that_is_full_or_gone(clip: Path) -> None:
    done = shell("teso doctor --json - > /dev/full")
    assert done.returncode == 2 and b"No space left" in done.stderr and b"Exception ignored" not in done.stderr
    done = shell("{ teso doctor --json -; echo $? >&2; } | true")
    assert b"Exception ignored" not in done.stderr and b"Traceback" not in done.stderr
    assert done.stderr.strip().endswith((b"2", b"0")), "0 where the pipe took it before it ended"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "out.mp4").write_text("the last good one")
    clip = find_shipped_path("export/demo/clip.mp4")
    command = [*COMMAND, "run", str(clip), "--threads", "1", "--out", "out.mp4", "--masks", "masks"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while len(list(tmp_path.rglob("*.png"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(names_in(tmp_path)) > 4, "staged"
        process.send_signal(number)
        _, expected = process.communicate(timeout=120)
    assert process.returncode == 128 + number and b"Traceback" not in expected
    assert names_in(tmp_path) == ["out.mp4"] and (tmp_path / "out.mp4").read_text() == "the last good one"


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        fail_with(KeyError("x"), monkeypatch)
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
