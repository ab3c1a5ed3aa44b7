"""Small files: one that is not regular, or can't be read, is refused in one sentence."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from teso_deploy.errors import CueError, InputNotFoundError, TesoError
from teso_deploy.small_files import parse_json, parse_toml, read_text


def _no_folder(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_no_folder, "is a folder"),
        (os.mkfifo, "is a pipe"),
        (_socket, "is a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to(path), "can't be read"),
        (lambda path: path.write_bytes(b"a" * 101), "more than 100 bytes"),
        (lambda path: path.write_bytes(b"a\xff"), r"byte 1 is not UTF-8"),
        (lambda path: path.write_bytes("a".encode("utf-16")), r"UTF-16\): save it as UTF-8"),
    ],
)
def test_what_is_not_a_small_text_file(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(CueError, match=said):
        read_text(path, "a list of words", limit_bytes=100, error=CueError)


@pytest.mark.parametrize("name", ["none", "none/x", "a\0b", "\ud800", "x" * 300])
def test_what_does_not_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError) as raised:
        read_text(tmp_path / name, "a list of words")
    assert "name a list of words" in str(raised.value)


def test_the_files_that_people_have(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfdog\r\ncat")
    (tmp_path / "link").symlink_to("x")
    assert read_text(tmp_path / "link", "words", limit_bytes=11) == "dog\r\ncat"
    assert "Name:" in read_text(Path("/proc/self/status"), "a file that says it has no byte")


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_json, "[" * 100_000, "nested too deeply"),
        (parse_json, "9" * 5000, "digits"),
        (parse_json, '{"a\n\x1b[31m": 1', "Invalid control character"),
        (parse_json, "", "Expecting value"),
        (parse_json, r'{"\ud800": 1}', "half a character"),
        (parse_toml, "a = " + "[" * 50_000, "nested too deeply"),
        (parse_toml, "a = " + "9" * 6000, "digits"),
        (parse_toml, "a", "not TOML"),
        (parse_toml, "d = 2024-13-45", "not TOML"),
    ],
)
def test_what_can_t_be_parsed(parse: Callable[..., object], text: str, said: str) -> None:
    with pytest.raises(TesoError, match=said) as raised:
        parse(text, "x.file", error=CueError)
    message = str(raised.value)
    assert type(raised.value) is CueError and message.startswith("x.file is not") and message.isprintable()


def test_what_can_be_parsed() -> None:
    assert parse_json(r'{"\ud83d\ude00": "\\ud800"}', "x", error=CueError) == {"😀": r"\ud800"}
    assert parse_toml("a = 1\r\n", "x", error=CueError) == {"a": 1}
