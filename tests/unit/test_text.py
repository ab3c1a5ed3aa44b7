"""Foreign text becomes one printable line."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from rich.table import Table

from teso_deploy.cli.reports import as_markup, say
from teso_deploy.outputs import as_json
from teso_deploy.text import LIMIT, escape_hidden, replace_undecodable, shorten_middle, to_one_line, to_printable
from tests.support.commands import refused


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\n\tc", "a b c"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07x\x1b]8;;http://h\x1b\\link\x1b]8;;\x1b\\ \x9b2Jy", "red xlink y"),
        ("abc\x1b", "abc"),
        ("a\u202egpj.exe\u2066 b\u200bc\ufeff", "a gpj.exe b c"),  # reversed, hidden
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


def test_json_holds_no_raw_character_that_a_terminal_obeys() -> None:
    content = {"a\x9b2J": "b\u202e\x7f\x1b\u2028 犬🐶 \\u202e \u200d"}
    text = escape_hidden(json.dumps(content, ensure_ascii=False))
    assert text.isprintable() and "犬🐶" in text and json.loads(text) == content
    assert as_json(content).replace("\n", "").isprintable() and json.loads(as_json(content)) == content


def test_json_has_no_nan() -> None:
    """Broken weights give NaN. Browsers, jq and most languages refuse it in JSON."""
    report = {"error": float("nan"), "rows": [1.5, float("inf"), (2, float("-inf"))], "name": "NaN"}
    assert json.loads(as_json(report)) == {"error": None, "rows": [1.5, None, [2, None]], "name": "NaN"}
    assert "NaN" not in as_json(report).replace('"NaN"', "")


def test_markup_of_strangers_is_text() -> None:
    console = Console(record=True, width=80)
    table = Table(as_markup("[red]x[/red]"))
    table.add_row(as_markup("[/]\n\x1b[2J y"))
    console.print(table)
    say(console, "[bold]z\x1b]0;title\x07\nq")
    text = console.export_text()
    assert all(part in text for part in ("[red]x[/red]", "[/] y", "[bold]z q")) and "\x1b" not in text


def test_the_middle_of_a_long_message_is_left_out() -> None:
    message = f"/{'a' * 4000}.mp4 does not exist: name a video"
    short = shorten_middle(message)
    assert len(short) <= 1000 and short.startswith("/aaa") and short.endswith("aaa.mp4 does not exist: name a video")
    assert shorten_middle("x" * 1000) == "x" * 1000


def test_a_path_of_any_length_is_named_in_a_short_sentence() -> None:
    sentence = refused("run", "/" + "a" * 4000, "--json", "-", names="aaa … aaa")
    assert len(sentence) <= 1000 + len("teso-deploy: ")
