"""The tests that `make test` runs, and their distribution."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.imports import ROOT
from tests.support.tiers import COLLECTED, Tiers, choose_tiers, describe, load_tiers, read_times

TESTS = ROOT / "tests"


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> list[pytest.Item]:
    """Return all tests of this repository. Skip if pytest was asked for some files only."""
    items = request.config.stash[COLLECTED]
    files = {file for file in TESTS.rglob("test_*.py") if "\ndef test_" in file.read_text(encoding="utf-8")}
    if files - {item.path for item in items}:
        pytest.skip("this run is of some files only")
    return items


def test_at_least_half_of_all_tests_are_in_the_fast_tier(collected: list[pytest.Item]) -> None:
    on_cpu = [item for item in collected if item.get_closest_marker("gpu") is None]
    fast = [item for item in on_cpu if item.get_closest_marker("slow") is None]
    assert len(fast) >= len(on_cpu) / 2
    assert len(on_cpu) >= 3400, "tests were lost: 3,455 were there before the tiers were made"


def test_each_entry_of_the_slow_tests_is_a_test(collected: list[pytest.Item]) -> None:
    tiers = load_tiers()
    used = {tiers.find_entry(item.nodeid) for item in collected}
    assert not set(tiers.entries()) - used, "tests/tiers.toml names tests that are gone: remove or rename the entries"


def test_files_of_the_tiers_exist() -> None:
    tiers = load_tiers()
    assert not [file for file in {*tiers.slow, *tiers.waiting, *tiers.seconds} if not (ROOT / file).is_file()]


def test_slow_tests_are_listed_in_one_place() -> None:
    mark = "mark." + "slow"
    # Pages of the documentation are marked by what their blocks run.
    marked = {file.name for file in TESTS.rglob("*.py") if mark in file.read_text(encoding="utf-8")}
    assert marked == {"test_documented_examples.py"}


def test_continuous_integration_runs_every_test() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    wanted = ["make demo", "make check", "make test-all", "make test-lowest"]
    lines = [line for line in script.splitlines() if line in wanted]
    assert lines == wanted
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^(test[a-z-]*):.*\n\t(.*)$", makefile, re.MULTILINE))
    assert "not slow" in recipes["test"] and "slow" not in recipes["test-all"]


def test_tiers_are_chosen_by_measured_times() -> None:
    times = read_times(
        [
            "0.1 0.1 setup tests/a.py::test_quick",
            "0.2 0.3 call tests/a.py::test_quick",
            "9.0 9.0 setup tests/a.py::test_heavy[one]",
            "0.1 0.1 call tests/a.py::test_heavy[one]",
            "9.0 9.0 call tests/a.py::test_heavy[two words]",
            "0.1 0.1 call tests/b.py::test_mixed[a::b]",
            '9.0 9.0 call tests/b.py::test_mixed[c "d"]',
            "0.1 9.0 call tests/b.py::test_sleepy",
            *(f"0.1 4.0 call tests/c.py::test_waits{number}" for number in range(3)),
        ]
    )
    quick = times["tests/a.py::test_quick"]
    assert [quick.cpu, quick.wall] == pytest.approx([0.3, 0.4])
    tiers = choose_tiers(times)
    assert tiers.slow == {"tests/a.py": {"test_heavy"}, "tests/b.py": {'test_mixed[c "d"]', "test_sleepy"}}
    assert tiers.waiting == {"tests/c.py"}
    assert tiers.seconds == {"tests/a.py": 18.5, "tests/b.py": 18.1, "tests/c.py": 12.0}
    assert [nodeid for nodeid in times if tiers.is_slow(nodeid)] == [
        "tests/a.py::test_heavy[one]",
        "tests/a.py::test_heavy[two words]",
        'tests/b.py::test_mixed[c "d"]',
        "tests/b.py::test_sleepy",
    ]


def test_what_was_chosen_is_read_back(tmp_path: Path) -> None:
    slow = {"tests/a.py": frozenset({"*"}), "tests/b.py": frozenset({'test_mixed[c "d\\x00"]'})}
    tiers = Tiers(slow, frozenset({"tests/c.py"}), {"tests/c.py": 12.0, "tests/a.py": 1.5})
    path = tmp_path / "tiers.toml"
    path.write_text(describe(tiers), encoding="utf-8")
    assert load_tiers(path) == tiers
    assert tiers.is_slow("tests/a.py::test_any[1]") and not tiers.is_slow("tests/b.py::test_mixed[a]")


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_the_longest_file_of_a_kind_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support import distribution

    seconds = {"computes": 30.0, "computes longer": 40.0, "waits": 20.0, "waits longer": 25.0}
    tiers = Tiers({}, frozenset({"waits", "waits longer"}), seconds)
    monkeypatch.setattr(distribution, "load_tiers", lambda: tiers)
    files = [*seconds, "unknown"]
    orders: dict[bool, list[str]] = {}
    for prefers_waiting in (True, False):
        left = list(files)
        orders[prefers_waiting] = []
        while left:
            left.remove(file := distribution.choose_file(left, prefers_waiting))
            orders[prefers_waiting].append(file)
    assert orders[True] == ["waits longer", "waits", "computes longer", "computes", "unknown"]
    assert orders[False] == ["computes longer", "computes", "unknown", "waits longer", "waits"]
