"""Signals that end a command, and standard output or a terminal that ends before it."""

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

#: SIGHUP: the terminal was closed, or the connection to it.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def printing() -> Iterator[None]:
    """Print what the block writes to standard output at its end. Raises :class:`OutputError` (a pipe that ended)."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _point_nowhere(sys.stdout)  # what is left in the buffer would fail once more when Python ends
        raise OutputError(f"standard output can't be written ({error.strerror}): name a file") from error


def _point_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def leave_terminal(number: int) -> None:
    """After SIGHUP: let what is still printed to the closed terminal go nowhere, for it would fail."""
    if number != signal.SIGHUP:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            _point_nowhere(stream)


def _end(number: int, frame: FrameType | None) -> None:
    # A process may get several signals when it is ended. Only Ctrl-C interrupts the cleaning up.
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    leave_terminal(number)
    # As an exception, so that what is half written is removed on the way out.
    sys.exit(128 + number)


def end_by_exception() -> None:
    """Let signals that end a process raise SystemExit, so that what is half written vanishes.

    A signal that is ignored (by ``nohup``, say) stays ignored.
    """
    if threading.current_thread() is threading.main_thread():
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
