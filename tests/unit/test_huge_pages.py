"""Which memory is moved to huge pages, and that its content does not change."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teso_deploy.backends import huge_pages as huge_pages_module
from teso_deploy.backends.huge_pages import (
    HUGE_BYTES,
    MADV_COLLAPSE,
    Ranges,
    align,
    huge_pages,
    list_writable_memory,
    subtract,
)

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6).map(
    lambda found: sorted((start, start + length) for start, length in found)
)


def disjoint(found: Ranges) -> Ranges:
    """Remove ranges that overlap an earlier one."""
    kept: Ranges = []
    for start, end in found:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def cells(found: Ranges) -> set[int]:
    """Return every address in the ranges."""
    return {place for start, end in found for place in range(start, end)}


@given(ranges.map(disjoint), ranges.map(disjoint))
def test_what_was_there_before_is_left_out(after: Ranges, before: Ranges) -> None:
    assert cells(subtract(after, before)) == cells(after) - cells(before)


def test_only_whole_pages_count() -> None:
    assert align([(1, HUGE_BYTES), (HUGE_BYTES - 1, 2 * HUGE_BYTES), (5, 3 * HUGE_BYTES + 5)]) == [
        (HUGE_BYTES, 2 * HUGE_BYTES),
        (HUGE_BYTES, 3 * HUGE_BYTES),
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has them")
def test_what_is_allocated_inside_is_asked_for_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    class Library:
        @staticmethod
        def madvise(start: int, length: int, advice: int) -> int:
            asked.append((start, length, advice))
            return 0

    monkeypatch.setattr("teso_deploy.backends.huge_pages.ctypes.CDLL", lambda name: Library)

    def allocated() -> np.ndarray[Any, Any]:
        """Allocate memory that is new to the process. malloc might return what was freed before."""
        return np.frombuffer(mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)

    def pages(array: np.ndarray[Any, Any]) -> set[int]:
        start = array.ctypes.data
        whole = align([(start, start + array.nbytes)])
        return {page for first, end in whole for page in range(first, end, HUGE_BYTES)}

    before = allocated()
    with huge_pages():
        inside = allocated()
    collapsed = {start for start, length, advice in asked if advice == MADV_COLLAPSE and length == HUGE_BYTES}
    assert pages(inside) and pages(inside) <= collapsed and not pages(before) & collapsed


def test_contents_stay() -> None:
    with huge_pages():
        array = np.random.default_rng(0).standard_normal(2_000_000)
        expected = array.copy()
    np.testing.assert_array_equal(array, expected)


def test_a_system_without_proc_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages_module, "MAPS", tmp_path / "none")
    assert list_writable_memory() == []
    with huge_pages():
        pass
