"""Handles signals that end a command, and a standard output or terminal that is closed early."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from teso_deploy.errors import OutputError

#: SIGHUP means that the terminal, or the connection to it, was closed.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def printing() -> Iterator[None]:
    """Flush standard output at the end of a block. Raises :class:`OutputError` if its reader has ended."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _point_nowhere(sys.stdout)  # otherwise Python's own flush at exit would fail on the rest of the buffer
        raise OutputError(f"standard output can't be written ({error.strerror}): name a file") from error


def _point_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def leave_terminal(number: int) -> None:
    """After SIGHUP, discard what is printed to the closed terminal. Otherwise printing would fail."""
    if number != signal.SIGHUP:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            _point_nowhere(stream)


def _end(number: int, frame: FrameType | None) -> None:
    # A process that is ended may get several signals. Only Ctrl-C interrupts the clean-up.
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    leave_terminal(number)
    # An exception lets the blocks on the way out remove incomplete files.
    sys.exit(128 + number)


def end_by_exception() -> None:
    """Let signals that end a process raise SystemExit, so that incomplete files are removed.

    A signal that is ignored, for example because of ``nohup``, stays ignored.
    """
    if threading.current_thread() is threading.main_thread():
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
