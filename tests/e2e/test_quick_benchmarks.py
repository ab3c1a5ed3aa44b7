"""Quick runs of benchmarks that need no GPU, on the tiny bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results_files import read_report
from teso_deploy.evaluation.tables.schema import list_shipped_tables
from tests.support.avs_layouts import write_avss
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


def test_quick_run_of_the_tables(tmp_path: Path) -> None:
    """The shipped bundle, because the tables need a tagger whose cues are the default."""
    data = write_avss(tmp_path / "data", subsets=("v1s", "v1m", "v2"))
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "benchmarks", "run", "tables", "--quick", "--data", str(data), "--out", str(out),
        "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = read_report(out / "tables.json")
    assert [row["name"] for row in report["rows"]] == list(list_shipped_tables())
    assert all(row["measured"] for row in report["rows"] if row["name"] != "H10"), report["rows"]
    assert len(list((out / "tables").glob("*.md"))) == len(list_shipped_tables())
    # Table 4 has V1M with several sounds. The other tables take its numbers.
    assert done.stderr.count("teso-nano on v1m") == 4  # with the tagger, with labels, without cues, filtered
