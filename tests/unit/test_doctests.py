"""The examples in the package's docstrings run as written."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.support.imports import ROOT, find_absent_packages

#: The example at the top of the package uses the reader's own video.
NOT_RUN = {"teso_deploy/__init__.py"}


def _find_modules() -> list[str]:
    files = [file for file in (ROOT / "teso_deploy").rglob("*.py") if ">>> " in file.read_text(encoding="utf-8")]
    return sorted(name for file in files if (name := str(file.relative_to(ROOT))) not in NOT_RUN)


@pytest.mark.parametrize("path", _find_modules())
def test_examples_of_docstrings(path: str) -> None:
    absent = find_absent_packages(ROOT / path)
    if absent:
        pytest.skip(f"{path} needs {', '.join(sorted(absent))}")
    module = importlib.import_module(".".join(Path(path).with_suffix("").parts))
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_there_are_examples() -> None:
    assert len(_find_modules()) >= 10
