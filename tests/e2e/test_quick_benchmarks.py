"""Quick runs of benchmarks that need no GPU, on the tiny bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results_files import read_report
from tests.support.imports import ROOT


@pytest.mark.parametrize(
    ("name", "needs_media"), [("throughput", False), ("precisions", True), ("cue-sources", True), ("live", False)]
)
def test_quick_run(name: str, needs_media: bool, tiny_bundle: Path, media_folder: Path, tmp_path: Path) -> None:
    media = [str(media_folder)] if needs_media else []
    command = [
        sys.executable, "-m", "benchmarks", "run", name, "--quick", "--out", str(tmp_path),
        *media, "--bundle", str(tiny_bundle), "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("*.json")
    report = read_report(result)
    assert report["rows"] and report["environment"]["cpu"] and report["bound_by"]
    assert result.with_suffix(".md").read_text() == done.stdout
