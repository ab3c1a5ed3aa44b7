"""Text of strangers is one printable line."""

from __future__ import annotations

import pytest

from teso_deploy.text import LIMIT, replace_undecodable, to_one_line, to_printable


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\n\tc", "a b c"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07x\x1b]8;;http://h\x1b\\link\x1b]8;;\x1b\\ \x9b2Jy", "red xlink y"),
        ("abc\x1b", "abc"),
        ("a\u202egpj.exe\u2066 b\u200bc\ufeff", "a gpj.exe b c"),  # turned round, hidden
        ("a\x00b\x07\x08c\x85d\u2028e", "a b c d e"),
        ("name\udcff.mp4", "name�.mp4"),
        ("  größe 犬 🐶 ", "größe 犬 🐶"),
        ("", ""),
    ],
)
def test_one_line_without_what_a_terminal_obeys(text: str, line: str) -> None:
    assert to_one_line(text) == to_printable(text) == line
    assert line.isprintable()


def test_names_with_two_spaces_stay() -> None:
    assert to_printable("a  b.mp4:  \n  no file") == "a  b.mp4: no file"
    assert to_one_line("a  b") == "a b"


def test_what_is_long_is_cut() -> None:
    assert to_one_line("x" * LIMIT) == "x" * LIMIT
    assert to_one_line("x" * 10**7) == "x" * (LIMIT - 1) + "…"
    assert to_one_line(ValueError("abcdef"), 4) == "abc…"


def test_names_that_are_not_text_can_be_written() -> None:
    assert replace_undecodable("a\udce9\udc80.mp4 größe 🐶\n") == "a��.mp4 größe 🐶\n"
