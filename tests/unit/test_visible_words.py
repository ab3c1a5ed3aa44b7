"""The words that a file next to a video lists as visible; other files are not taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from teso_deploy.conversion.frames import read_visible_words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"visible": ["dog", "cow"], "heard": {}}', ["dog", "cow"]),
        (b'\xef\xbb\xbf{"visible": ["dog", 3, null]}', ["dog"]),
        (b'{"title": "what a downloader wrote"}', []),
        (b'{"visible": "dog"}', []),
        (b'["dog"]', []),
        (b"{", []),
        (b"[" * 100_000, []),
        (b"\xff", []),
    ],
)
def test_visible_words(content: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_bytes(content)
    assert read_visible_words(tmp_path / "clip.json") == words
    assert read_visible_words(tmp_path / "none.json") == []
