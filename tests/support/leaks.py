"""Threads and open files that are left after a test."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def _open(threads: str) -> dict[str, int]:
    mine = [thread for thread in threading.enumerate() if thread.name.startswith(threads)]
    return {"threads": len(mine), "files": len(os.listdir("/proc/self/fd"))}


@contextmanager
def nothing_left(threads: str = "") -> Iterator[None]:
    """Within five seconds of the end there are no more threads (of names that begin so) and files than before."""
    before = _open(threads)
    yield
    deadline = time.monotonic() + 5
    while (more := {kind: n for kind, n in _open(threads).items() if n > before[kind]}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not more, f"{more}, before {before}"
