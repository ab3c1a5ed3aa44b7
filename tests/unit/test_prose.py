"""The prose check counts phrases in text, and leaves code alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import prose

_MODULE = '''"""Frames that nobody waits for: behind a cut, `nobody` is code."""


def matched(image, size, colour):
    """Match a picture.

    Behind the cut there is no sound.
    """
    # A comment goes on across the line: what is
    # heard. This is no list.
    raise ValueError(f"{size} tells the caller so")


def match(image, size, colour):
    """Match a picture.

    Args:
        image: (H, W, 3) uint8.
    """
    behind = "behind"
    return behind
'''


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "teso_deploy").mkdir()
    (tmp_path / "teso_deploy" / "module.py").write_text(_MODULE)
    (tmp_path / "README.md").write_text("Masks anew.\n\n```python\nbehind = 1\n```\n\n[so long](behind.md)\n")
    return tmp_path


def test_markers_are_found_with_their_lines(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prose.main(["--root", str(checkout), "--list"]) == 1
    lines = [line.split(": ") for line in capsys.readouterr().out.splitlines() if re.match(r"[\w/.]+:\d+: ", line)]
    assert sorted((where, marker) for where, marker, *_ in lines) == [
        ("README.md:1", "anew"),
        ("README.md:7", "so many"),
        ("teso_deploy/module.py:1", "behind"),
        ("teso_deploy/module.py:1", "nobody"),
        ("teso_deploy/module.py:10", "is no"),
        ("teso_deploy/module.py:11", "tell"),
        ("teso_deploy/module.py:4", "no Args"),
        ("teso_deploy/module.py:7", "behind"),
        ("teso_deploy/module.py:9", "what is heard"),
    ]


def test_participles_are_reported(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prose.main(["--root", str(checkout), "--names"])
    out = capsys.readouterr().out
    assert "teso_deploy/module.py:4: matched" in out
    assert "module.py:15" not in out


def test_text_without_markers_passes(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("Write a video with its masks.\n")
    assert prose.main(["--root", str(tmp_path)]) == 0
