"""Put weights and activations on pages of 2 MiB, if Linux supports it.

A frame of Swin-B reads 400 MB of weights. With pages of 4 KiB, the prefetcher stops at each of the 100,000 pages;
``benchmarks/ladder.py`` measures what large pages save. Large pages are optional: if the kernel is older than 6.1 or
refuses, the pages stay small.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUGE_BYTES = 2 << 20
MAPS = Path("/proc/self/maps")
#: From Linux's <asm-generic/mman-common.h>.
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
#: Ranges of addresses, [start, end).
Ranges = list[tuple[int, int]]


def list_writable_memory() -> Ranges:
    """List the process's memory except files and stacks, in order of address. The list is empty without /proc."""
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


def subtract(ranges: Ranges, taken: Ranges) -> Ranges:
    """Return the parts of ``ranges`` that are not in ``taken``; both are in order of address."""
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


def align(ranges: Ranges) -> Ranges:
    """Return the complete large pages inside each range."""
    found = [(-(-start // HUGE_BYTES) * HUGE_BYTES, end // HUGE_BYTES * HUGE_BYTES) for start, end in ranges]
    return [(start, end) for start, end in found if start < end]


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move memory that is allocated inside the block, and still exists at its end, to large pages."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = list_writable_memory()
    yield
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for start, end in align(subtract(list_writable_memory(), before)):
        madvise(start, end - start, MADV_HUGEPAGE)
        for page in range(start, end, HUGE_BYTES):  # one by one, because an empty page ends the call
            madvise(page, HUGE_BYTES, MADV_COLLAPSE)
