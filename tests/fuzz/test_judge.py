"""The judge finds a violation of each rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.cases import Case
from tests.fuzz.forking import Limits
from tests.fuzz.harness import Fuzzer
from tests.fuzz.seeds import Seeds

LIMITS = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=64 << 20)
#: Command of misdeeds.py → the rules that it breaks.
BROKEN = {
    "raise_error": {"traceback", "exit code"},
    "exit_with_3": {"exit code"},
    "say_nothing": {"sentence"},
    "say_two_sentences": {"sentence"},
    "say_too_much": {"sentence"},
    "ask_for_a_report": {"last resort"},
    "print_an_escape": {"not printable"},
    "log_as_libraries_do": {"noise"},
    "show_the_key": {"secret"},
    "write_the_key": {"secret"},
    "leave_a_temporary_file": {"left behind"},
    "leave_a_staged_file": {"left behind"},
    "leave_an_output": {"left behind"},
    "change_an_input": {"input changed"},
    "remove_an_input": {"input changed"},
    "die": {"signal"},
    "hang": {"time"},
    "leave_a_thread": {"time"},
    "take_memory": {"memory"},
    "take_the_processor": {"time"},
    "leave_a_process": {"process left"},
    "write_no_output": {"output missing"},
    "write_nan": {"report"},
    "refuse": set(),
    "end_well": set(),
}


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    folder = tmp_path_factory.mktemp("judge")
    with Fuzzer(Seeds(folder), folder, LIMITS, preloaded=["tests.fuzz.misdeeds"]) as fuzzer:
        yield fuzzer


@pytest.mark.parametrize("misdeed", BROKEN)
def test_each_rule_can_be_broken(misdeed: str, fuzzer: Fuzzer) -> None:
    shop = fuzzer.make_workshop(misdeed)
    shop.write("input", b"mine")
    case = Case([], misdeed, frozenset({"report.json"}))
    tried = fuzzer.run(case, shop.folder, 1, command=f"tests.fuzz.misdeeds:{misdeed}")
    found = {finding.rule for finding in tried.findings}
    assert found - {"sentence"} == BROKEN[misdeed] - {"sentence"} and found >= BROKEN[misdeed], tried


def test_an_output_of_a_failed_live_run_may_remain(fuzzer: Fuzzer) -> None:
    shop = fuzzer.make_workshop("growing")
    names = frozenset({"report.json"})
    case = Case([], "growing", names, may_remain=names)
    assert not fuzzer.run(case, shop.folder, 1, command="tests.fuzz.misdeeds:leave_an_output").findings


def test_the_place_of_the_streams_is_no_part_of_a_case(fuzzer: Fuzzer) -> None:
    shop = fuzzer.make_workshop("streams")
    tried = fuzzer.run(Case([], "", frozenset({"report.json"})), shop.folder, 1, command="tests.fuzz.misdeeds:end_well")
    assert tried.stderr == b"a note\n" and not Path(shop.folder).exists()
