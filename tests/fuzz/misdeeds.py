"""Commands that break one rule each, to show that the judge finds it. They replace ``teso-deploy``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.cases import CANARY_KEY


def refuse(sentence: str = "the input is odd: give another") -> None:
    """End as a command must if its input is odd."""
    print(f"teso-deploy: {sentence}", file=sys.stderr)
    sys.exit(2)


def raise_error() -> None:
    raise KeyError("x")


def exit_with_3() -> None:
    print("teso-deploy: three", file=sys.stderr)
    sys.exit(3)


def say_nothing() -> None:
    sys.exit(2)


def say_two_sentences() -> None:
    print("teso-deploy: one", file=sys.stderr)
    refuse("two")


def say_too_much() -> None:
    refuse("x" * 2000)


def ask_for_a_report() -> None:
    refuse("unexpected KeyError: 'x'; please report it with the output of --traceback")


def print_an_escape() -> None:
    refuse("\x1b[31mred")


def log_as_libraries_do() -> None:
    print("[mov,mp4 @ 0x55d0c0ffee00] moov atom not found", file=sys.stderr)
    refuse()


def show_the_key() -> None:
    print(os.environ["TESO_CUES_API_KEY"])
    refuse()


def write_the_key() -> None:
    Path(os.environ["HOME"], "kept").write_text(f"key: {CANARY_KEY}")
    refuse()


def leave_a_temporary_file() -> None:
    Path(os.environ["TMPDIR"], "x").touch()
    refuse()


def leave_a_staged_file() -> None:
    Path("../out/.report.123.json").touch()
    refuse()


def leave_an_output() -> None:
    Path("../out/report.json").write_text("{}")
    refuse()


def change_an_input() -> None:
    Path("../in/input").write_text("other")
    refuse()


def remove_an_input() -> None:
    Path("../in/input").unlink()
    refuse()


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(60)


def leave_a_thread() -> None:
    import threading

    threading.Thread(target=time.sleep, args=(60,)).start()
    refuse()


def take_memory() -> None:
    held = []
    while True:
        held.append(b"x" * (4 << 20))
        time.sleep(0.01)


def take_the_processor() -> None:
    while True:
        pass


def leave_a_process() -> None:
    subprocess.Popen(["sleep", "60"])
    refuse()


def write_no_output() -> None:
    sys.exit(0)


def write_nan() -> None:
    Path("../out/report.json").write_text('{"x": NaN}')


def end_well() -> None:
    Path("../out/report.json").write_text('{"x": 1}')
    print("a note", file=sys.stderr)
