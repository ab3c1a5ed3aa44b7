"""``python -m benchmarks``: the list, the arguments of a run, and the comparison of two results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import results_files
from benchmarks.registry import BENCHMARKS
from tests.support.imports import ROOT, find_file

#: Modules of ``benchmarks`` that are not a benchmark themselves.
HELPERS = {
    "__init__",
    "__main__",
    "registry",
    "results_files",
    "composed_clips",
    "gpu_contenders",
    "gpu_report",
    "gpu_torch",
    "shipped_weights",
}


def test_every_script_is_in_the_registry() -> None:
    modules = {benchmark.subject.partition(":")[0] for benchmark in BENCHMARKS.values()}
    assert all(find_file(module) for module in modules)
    assert {
        f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in HELPERS
    } == modules


def test_what_benchmarks_need_is_known() -> None:
    extras = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {need for benchmark in BENCHMARKS.values() for need in benchmark.needs} <= {"GPU", "media", *extras}


def test_every_benchmark_takes_its_quick_settings() -> None:
    for name, benchmark in BENCHMARKS.items():
        source = find_file(benchmark.subject.partition(":")[0])
        assert source is not None
        text = source.read_text(encoding="utf-8")
        assert "add_out(parser)" in text, f"{name} does not take --out"
        for option in (word for word in benchmark.quick if word.startswith("--")):
            assert f'"{option}"' in text, f"{name} has no option {option}"


def test_the_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(BENCHMARKS)


def test_arguments_of_the_caller_come_last() -> None:
    assert runner.compose_arguments("throughput", is_quick=False, out=None, given=["--seconds", "9"]) == [
        "--seconds",
        "9",
    ]
    quick = runner.compose_arguments("throughput", is_quick=True, out=None, given=["--seconds", "9"])
    assert quick == ["--seconds", "0.2", "--out", str(results_files.QUICK_RESULTS), "--seconds", "9"]
    assert runner.compose_arguments("training", is_quick=False, out="a.json", given=[]) == ["--out", "a.json"]


def test_a_run_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def measure(arguments: list[str]) -> int:
        given.append(arguments)
        return 1

    monkeypatch.setattr(runner, "load_object", lambda subject: measure)
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    assert runner.main(["run", "live", "--out", "here", "--streams", "4", "--quick", "--bundle", "b"]) == 1
    assert given == [["--seconds", "14", "--out", "here", "--streams", "4", "--bundle", "b"]]


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def find_nothing(subject: str) -> object:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(runner, "load_object", find_nothing)
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    assert runner.main(["run", "ladder"]) == 2
    assert capsys.readouterr().err == "ladder needs scipy, of the extra bench of teso-deploy\n"


@pytest.mark.parametrize("arguments", [["run", "walking"], ["compare", "a.json"], ["list", "--fast"], []])
def test_what_it_does_not_know_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        runner.main(arguments)
    assert ended.value.code == 2


def test_two_results_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "a", "stage": "frame", "p50_ms": 10.0, "note": "x"},
        {"name": "a", "stage": "new", "p50_ms": 4},
        {"name": "old", "p50_ms": 1},
    ]
    newer = [
        {"name": "a", "stage": "frame", "p50_ms": 5.0, "note": "y"},
        {"name": "a", "stage": "new", "p50_ms": 6},
        {"name": "b", "p50_ms": 1},
    ]
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps({"rows": rows}))
    after.write_text(json.dumps({"rows": newer}))
    found = results_files.compare_reports(results_files.read_report(before), results_files.read_report(after))
    assert [(row["row"], row["column"], row["ratio"]) for row in found] == [
        ("a, frame", "p50_ms", 0.5),
        ("a, new", "p50_ms", 1.5),
    ]
    assert runner.main(["compare", str(before), str(after)]) == 0
    assert "| a, frame | p50_ms | 10.0 | 5.0 | 0.5 |" in capsys.readouterr().out
    after.write_text("[]")
    assert runner.main(["compare", str(before), str(after)]) == 2
    assert runner.main(["compare", str(before), str(tmp_path / "none.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("is_file", [False, True])
def test_a_result_is_recorded(tmp_path: Path, is_file: bool) -> None:
    out = tmp_path / "out.json" if is_file else tmp_path / "out"
    report = {"rows": [{"name": "a", "p50_ms": 1.0}], "bound_by": "Nothing.", "environment": {"cpu": "one"}}
    results_files.record("name", "Title", report, out=out)
    written = out if is_file else out / "name.json"
    assert results_files.read_report(written) == report
    assert is_file or (out / "name.md").read_text().startswith("# Title")
