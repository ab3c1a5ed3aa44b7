"""Weights and activations on pages of 2 MiB, where Linux lets a process ask for them.

A frame of Swin-B walks through 400 MB of weights. On pages of 4 KiB the prefetcher stops at every one of a
hundred thousand; what large ones are worth is a rung of ``benchmarks/ladder.py``. Nothing depends on them:
where the kernel is older than 6.1 or says no, the pages stay as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUGE_BYTES = 2 << 20
MAPS = Path("/proc/self/maps")
#: Of Linux's <asm-generic/mman-common.h>.
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
#: [start, end) of addresses.
Ranges = list[tuple[int, int]]


def writable_memory() -> Ranges:
    """The process's own memory, neither files nor stacks, in order of address; nothing where there is no /proc."""
    try:
        lines = MAPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        if access.startswith("rw") and inode == "0" and (not name or name[0] == "[heap]"):
            start, end = (int(part, 16) for part in addresses.split("-"))
            found.append((start, end))
    return found


def without(ranges: Ranges, taken: Ranges) -> Ranges:
    """What is in ``ranges`` and not in ``taken``; both in order of address."""
    left = []
    for start, end in ranges:
        for other_start, other_end in taken:
            if other_end <= start or other_start >= end:
                continue
            if start < other_start:
                left.append((start, other_start))
            start = other_end
        if start < end:
            left.append((start, end))
    return left


def aligned(ranges: Ranges) -> Ranges:
    """The whole large pages inside of each range."""
    found = [(-(-start // HUGE_BYTES) * HUGE_BYTES, end // HUGE_BYTES * HUGE_BYTES) for start, end in ranges]
    return [(start, end) for start, end in found if start < end]


@contextmanager
def huge_pages() -> Iterator[None]:
    """What is allocated in this block, and is still there when it ends, goes on large pages."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = writable_memory()
    yield
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for start, end in aligned(without(writable_memory(), before)):
        madvise(start, end - start, MADV_HUGEPAGE)
        for page in range(start, end, HUGE_BYTES):  # one by one: a page that holds nothing ends the call
            madvise(page, HUGE_BYTES, MADV_COLLAPSE)
