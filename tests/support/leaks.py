"""Finds threads and open files that remain after a test."""

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
    """Check that within a minute after the block no more files and threads exist than before it.

    ``threads``: count only threads whose name begins with this.
    """
    before = _open(threads)
    yield
    deadline = time.monotonic() + 60
    while (more := {kind: n for kind, n in _open(threads).items() if n > before[kind]}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not more, f"{more}, before {before}"
