"""The tests that `make test` omits, and the order in which the test files run.

``tests/tiers.toml`` holds the measured times. To measure again on an idle machine:

    python -m pytest --record-times times.txt          (or several processes, with -n 2)
    python -m tests.support.tiers times.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "tiers.toml"
#: All tests that pytest found, before it selected some of them.
COLLECTED = pytest.StashKey[list[pytest.Item]]()
#: A test is slow if it uses the CPU for at least the first time, or takes at least the second time.
SLOW_CPU_SECONDS, SLOW_SECONDS = 2.0, 6.0
#: A file waits if its tests take this many times as long as their CPU time, and at least a few seconds.
WAITING_RATIO, WAITING_SECONDS = 3.0, 5.0
#: The assumed time of a file that was not measured.
UNKNOWN_SECONDS = 1.0
WHOLE_FILE = "*"
_PARAMETERS = re.compile(r"\[.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tiers:
    """The measured facts.

    Attributes:
        slow: File → its slow tests: names of functions, names with parameters, or ``*`` for all of them.
        waiting: Files whose tests mostly wait for a process, a stream or a clock.
        seconds: File → seconds that all of its tests take.
    """

    slow: Mapping[str, frozenset[str]]
    waiting: frozenset[str]
    seconds: Mapping[str, float]

    def is_slow(self, nodeid: str) -> bool:
        """Whether `make test` omits a test."""
        return self.find_entry(nodeid) is not None

    def find_entry(self, nodeid: str) -> tuple[str, str] | None:
        """Return the file and the name in :attr:`slow` that make a test slow; None if it is not slow."""
        file, _, name = nodeid.partition("::")
        names = self.slow.get(file, frozenset())
        found = next((each for each in (WHOLE_FILE, _PARAMETERS.sub("", name), name) if each in names), None)
        return None if found is None else (file, found)

    def entries(self) -> Iterator[tuple[str, str]]:
        """Yield all entries of :attr:`slow`."""
        for file, names in self.slow.items():
            for name in names:
                yield file, name


@cache
def load_tiers(path: Path = FILE) -> Tiers:
    """Read ``tests/tiers.toml``."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    slow = {file: frozenset(names) for file, names in tables["slow"].items()}
    return Tiers(slow, frozenset(tables["waiting"]), tables["seconds"])


@dataclass(slots=True)
class Times:
    """The CPU time and the duration of one test with its fixtures, in seconds."""

    cpu: float = 0.0
    wall: float = 0.0


def read_times(lines: Iterable[str]) -> dict[str, Times]:
    """Sum the lines that ``--record-times`` wrote: CPU seconds, seconds, phase and test."""
    times: dict[str, Times] = defaultdict(Times)
    for line in lines:
        cpu, wall, _, nodeid = line.rstrip("\n").split(" ", 3)
        times[nodeid].cpu += float(cpu)
        times[nodeid].wall += float(wall)
    return dict(times)


def choose_tiers(times: Mapping[str, Times]) -> Tiers:
    """Decide from measured times which tests are slow, which files wait, and how long each file takes."""
    by_function: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)
    for nodeid, taken in times.items():
        file, _, name = nodeid.partition("::")
        is_slow = taken.cpu >= SLOW_CPU_SECONDS or taken.wall >= SLOW_SECONDS
        by_function[file, _PARAMETERS.sub("", name)][name] = is_slow
    slow: dict[str, set[str]] = defaultdict(set)
    for (file, function), cases in by_function.items():
        if all(cases.values()):
            slow[file].add(function)
        elif any(cases.values()):
            slow[file] |= {name for name, is_slow in cases.items() if is_slow}
    chosen = {file: frozenset(names) for file, names in slow.items()}
    rest: dict[str, Times] = defaultdict(Times)
    seconds: dict[str, float] = defaultdict(float)
    for nodeid, taken in times.items():
        seconds[nodeid.partition("::")[0]] += taken.wall
        sums = rest[nodeid.partition("::")[0]]
        if not Tiers(chosen, frozenset(), {}).is_slow(nodeid):
            sums.cpu += taken.cpu
            sums.wall += taken.wall
    waiting = {
        file for file, sums in rest.items() if sums.wall >= max(WAITING_SECONDS, WAITING_RATIO * max(sums.cpu, 0.01))
    }
    return Tiers(chosen, frozenset(waiting), {file: round(sum_, 1) for file, sum_ in seconds.items()})


def describe(tiers: Tiers) -> str:
    """Return the text of ``tests/tiers.toml``."""

    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = [
        "# Written by `python -m tests.support.tiers`; see there. `make test` omits the slow tests.",
        "",
        "# Files whose tests mostly wait; one process runs them beside the others.",
        "waiting = [",
        *(f"  {quote(file)}," for file in sorted(tiers.waiting)),
        "]",
        "",
        "[slow]",
    ]
    for file, names in sorted(tiers.slow.items()):
        lines += [f"{quote(file)} = [", *(f"  {quote(name)}," for name in sorted(names)), "]"]
    lines += ["", "# Seconds of each file; the longest starts first.", "[seconds]"]
    by_length = sorted(tiers.seconds.items(), key=lambda item: (-item[1], item[0]))
    lines += [f"{quote(file)} = {seconds}" for file, seconds in by_length if seconds >= UNKNOWN_SECONDS]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write the table from files of times."""
    lines = [line for name in arguments for line in Path(name).read_text(encoding="utf-8").splitlines()]
    FILE.write_text(describe(choose_tiers(read_times(lines))), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
