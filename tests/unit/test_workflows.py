"""The checks on a developer's commit and on a pull request."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from tests.support.imports import ROOT


def read_yaml(name: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML (extra: docs) is not installed")
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return found


def targets_of(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


def test_the_workflow_runs_what_continuous_integration_runs() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    script = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert commands == [line for line in script if line.startswith("make ")]
    assert {command.removeprefix("make ") for command in commands} <= targets_of((ROOT / "Makefile").read_text())


def test_the_workflow_runs_every_python_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    named = [line.removeprefix(prefix) for line in project["classifiers"] if line.startswith(prefix)]
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == named
    lowest = next(step["with"] for step in jobs["lowest"]["steps"] if "with" in step)
    assert lowest["python-version"] == named[0]


def test_actions_have_versions() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", name) for name in used)


def test_commit_hooks_run_the_checks() -> None:
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    checks = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ncheck:")[1].split("\n\n")[0]
    commands = {line.strip().removeprefix("$(BIN)/") for line in checks.splitlines()[1:]}
    hooks = {hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]}
    simplified = {re.sub(r" (--fix|--force-exclude|--check|\.)(?= |$)", "", command) for command in hooks | commands}
    assert simplified == {"ruff check", "ruff format", "mypy", "python -m tests.support.prose"}
