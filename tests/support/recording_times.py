"""A pytest plugin that writes the duration of each test to a file while the tests run."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path

import pytest


def measure_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class TimeRecorder:
    """Writes one line for each phase of each test. Several processes may write to one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _record(self, item: pytest.Item, phase: str) -> Generator[None, object, object]:
        cpu, wall = measure_cpu_seconds(), time.monotonic()
        try:
            return (yield)
        finally:
            cpu, wall = measure_cpu_seconds() - cpu, time.monotonic() - wall
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{cpu:.3f} {wall:.3f} {phase} {item.nodeid}\n")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._record(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._record(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._record(item, "teardown"))
