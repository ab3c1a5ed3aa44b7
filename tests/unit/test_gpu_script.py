"""``benchmarks/gpu.sh`` and the merging of its parts, without a GPU."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_gpu_benchmark import script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PARTS = (
    "tests", "kernels", "engines-fp32-1", "engines-fp16-1", "engines-fp32-8", "engines-fp16-8", "engines-fp32-32",
    "engines-fp16-32", "live", "training", "finetuning",
)  # fmt: skip
gpu_report = script("gpu_report")


def gpu_sh(*arguments: object, python: object = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    inside = os.environ | {"PYTHON": str(python), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], env=inside, capture_output=True, text=True, check=False
    )


def commands(*arguments: object, **environment: str) -> list[list[str]]:
    done = gpu_sh("--print", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_it_is_a_script() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)
    done = gpu_sh("--help")
    assert done.returncode == 0 and all(part in done.stdout for part in PARTS) and "#" not in done.stdout


@pytest.mark.parametrize("arguments", [["enginees"], ["tests", "engines-fp32-2"], ["--fast"]])
def test_what_it_does_not_know_is_a_sentence(arguments: list[str], tmp_path: Path) -> None:
    done = gpu_sh(tmp_path, *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and arguments[-1] in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_is_a_sentence(tmp_path: Path) -> None:
    done = gpu_sh(tmp_path, "kernels")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "driver" in done.stderr
    assert not list(tmp_path.iterdir())


def test_parts_and_their_order(tmp_path: Path) -> None:
    assert gpu_report.ORDER == PARTS

    def results(found: list[list[str]]) -> list[str]:
        return [Path(re.sub("^--junitxml=", "", next(w for w in c if "GPU/" in w))).stem for c in found]

    assert results(commands()) == list(PARTS)
    assert results(commands(tmp_path, "engines")) == list(PARTS[2:8])
    assert results(commands("finetuning", "kernels")) == ["finetuning", "kernels"]
    (tests,) = commands(f"{tmp_path}/new", "tests")
    assert tests[:2] == ["env", "TESO_REQUIRE_GPU=1"] and tests[-1] == f"--junitxml={tmp_path}/new/GPU/tests.xml"
    (engines,) = commands("engines-fp16-32", "--quick", BUNDLE=str(tmp_path / "my bundle"))
    assert engines[1:5] == ["-m", "benchmarks", "run", "gpu-engines"] and "--quick" in engines
    given = {option: value for option, value in pairwise(engines) if option.startswith("--")}
    assert (given["--precision"], given["--batch"]) == ("fp16", "32")
    assert given["--bundle"] == str(tmp_path / "my bundle")


@functools.cache
def help_of(benchmark: str) -> str:
    command = [sys.executable, "-m", "benchmarks", "run", benchmark, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_option_is_known() -> None:
    for command in [*commands(BUNDLE="b"), *commands("--quick")]:
        if "pytest" in command:
            continue
        assert command[1:4] == ["-m", "benchmarks", "run"]
        for option in [word for word in command if word.startswith("--") and word != "--quick"]:
            assert re.search(rf"{option}\b", help_of(command[4])), (command[4], option)


STUB = """
import json, os, subprocess, sys
from pathlib import Path
arguments = sys.argv[1:]
name = {{"pytest": "tests", "benchmarks": arguments[3] if len(arguments) > 3 else ""}}.get(arguments[1], arguments[1])
if name == "benchmarks.gpu_report":
    if "--name" in arguments:
        print("a-gpu")
        sys.exit()
    sys.exit(subprocess.run([{python!r}, *arguments]).returncode)
if name in os.environ["FAILING"].split():
    print("it began")
    print("the reason | why")
    print()
    sys.exit(3)
if name == "tests":
    out = next(word for word in arguments if word.startswith("--junitxml=")).partition("=")[2]
    Path(out).write_text({junit!r})
else:
    out = Path(arguments[arguments.index("--out") + 1])
    out.write_text(json.dumps({{"schema_version": 1, "device": "A", "rows": [{{"name": out.stem, "p50_ms": 1.5}}]}}))
"""
JUNIT = """<?xml version="1.0"?><testsuites><testsuite><testcase name="test_a"/><testcase name="test_b[x]">
<properties><property name="portable on A" value="refused: a &amp; b"/></properties></testcase>
<testcase name="test_c"><failure message="two&#10;lines">trace</failure></testcase>
<testcase name="test_d"><skipped message="nothing here">…</skipped></testcase></testsuite></testsuites>"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Replace Python, so that no part measures anything, and the parts in FAILING fail."""
    code, path = tmp_path / "stub.py", tmp_path / "python"
    code.write_text(STUB.format(python=sys.executable, junit=JUNIT))
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {code} "$@"\n')
    path.chmod(0o755)
    return path


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "a-gpu.json").read_text())
    return found


def test_a_part_that_fails_takes_no_other_along(python: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = gpu_sh(f"{out}/", python=python, FAILING="kernels finetuning")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "failed: kernels, finetuning"
    found = report(out)
    assert found["gpu"] == "a-gpu" and list(found["parts"]) == [p for p in PARTS if p not in ("kernels", "finetuning")]
    assert found["failed"] == dict.fromkeys(("kernels", "finetuning"), "exit code 3: the reason | why")
    assert found["parts"]["tests"] == {
        "schema_version": 1, "passed": 2, "failure": 1, "skipped": 1,
        "rows": [
            {"name": "test_c", "outcome": "failure", "reason": "two lines"},
            {"name": "test_d", "outcome": "skipped", "reason": "nothing here"},
        ],
        "recorded": {"portable on A": "refused: a & b"},
    }  # fmt: skip
    page = (out / "a-gpu.md").read_text()
    assert page.startswith("# a-gpu\n") and "| kernels | exit code 3: the reason \\| why |" in page
    assert "## training\n" in page and "| engines-fp16-32 | 1.5 |" in page and "- device: A" in page
    assert "2 passed, 1 failure, 1 skipped" in page and "| portable on A | refused: a & b |" in page
    # A second run: results stay, repaired parts are added, and a part that fails now loses its earlier result.
    done = gpu_sh(out, "kernels", "training", python=python, FAILING="training")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "failed: training"
    found = report(out)
    assert list(found["failed"]) == ["training", "finetuning"] and "kernels" in found["parts"]
    assert "training" not in found["parts"] and "engines-fp32-8" in found["parts"]
    assert gpu_sh(out, "training", "finetuning", python=python, FAILING="").returncode == 0
    assert report(out)["failed"] == {} and list(report(out)["parts"]) == list(PARTS)


def test_a_report_that_was_cut_off_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a-gpu"
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_report",
        str(folder),
        "--out",
        str(tmp_path / "r.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "holds no reports" in done.stderr
    (folder / "kernels.json").write_text('{"rows": [')
    (folder / "tests.xml").write_text("<testsuites>")
    found = gpu_report.merged(folder)
    assert not found["parts"] and list(found["failed"]) == ["tests", "kernels"]


def test_a_gpu_as_files_are_named() -> None:
    assert gpu_report.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert gpu_report.slug("Tesla T4 (MIG 1g/5gb)") == "tesla-t4-mig-1g-5gb"
