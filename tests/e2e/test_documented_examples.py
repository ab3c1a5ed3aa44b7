"""Every code block of the documentation runs, page by page, in a folder with the files that the text names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from teso_deploy.resources import find_shipped_path
from tests.support.code_blocks import ROOT, CodeBlock, find_pages, write_example_clip

PAGES = {page: blocks for page, blocks in find_pages().items() if any(block.is_run for block in blocks)}
SECONDS = 600


def _params() -> list[object]:
    """Mark pages with commands as slow: each command starts a process and loads the model."""
    return [
        pytest.param(page, marks=pytest.mark.slow if any(b.is_run and b.language == "bash" for b in blocks) else ())
        for page, blocks in PAGES.items()
    ]


@pytest.fixture(scope="module")
def example_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a second of the shipped clip."""
    path = tmp_path_factory.mktemp("example") / "clip.mp4"
    write_example_clip(path, ROOT / "export/demo/clip.mp4")
    return path


@pytest.fixture
def folder(tmp_path: Path, example_clip: Path) -> Path:
    """Make the files that the pages name: ``clip.mp4``, ``other.mp4``, ``holiday/`` with two videos, ``bundle/``."""
    (tmp_path / "holiday").mkdir()
    for name in ("clip.mp4", "other.mp4", "holiday/beach.mp4", "holiday/farm.mp4"):
        shutil.copy(example_clip, tmp_path / name)
    (tmp_path / "bundle").symlink_to(find_shipped_path("engines/bundles/teso-nano"))
    return tmp_path


def _run(block: CodeBlock, folder: Path, environment: dict[str, str]) -> None:
    shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*shell, block.code], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, (
        f"{block.page}:{block.line}\n{block.code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )


@pytest.mark.parametrize("page", _params())
def test_blocks_run(page: str, folder: Path) -> None:
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "OMP_NUM_THREADS": "1",
    }
    for block in PAGES[page]:
        if not block.is_run:
            continue
        if "needs" in block.notes:
            pytest.importorskip(block.notes["needs"])
        _run(block, folder, environment)
