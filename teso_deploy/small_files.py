"""Small text files that a user names: prompts, recipes, manifests, cue files, lists of words.

They are read whole, so nothing is read that is not a regular file, is too large, or is not UTF-8. A library's way to
say that a file is malformed (a deep recursion, a number of thousands of digits) becomes an error of ours.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from teso_deploy.errors import InputNotFoundError, TesoError
from teso_deploy.text import to_one_line

#: Larger than any list of words or cue file that was met.
LIMIT_BYTES = 64 * 2**20
#: What a clone without Git LFS has in place of each large file begins with this.
LFS_POINTER = b"version https://git-lfs"
#: What such a file is, and what to do.
LFS_ADVICE = "is a pointer of Git LFS, not the file: run `git lfs pull` where it was cloned"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _check_regular(mode: int, path: Path, what: str, error: type[TesoError]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise error(f"{path} can't be read (it is {kind}): name {what}")


def read_text(
    path: Path, what: str, *, limit_bytes: int = LIMIT_BYTES, error: type[TesoError] = InputNotFoundError
) -> str:
    """Read a regular file as UTF-8, with or without a byte order mark.

    Args:
        path: The file. A link to one is followed.
        what: What the file should be, with its article, for the messages: ``"a prompt's TOML file"``.
        limit_bytes: A larger file is refused before it is read.
        error: The class to raise for a file that exists and is not such a file.

    Returns:
        The text. Line ends are as they are in the file.

    Raises:
        InputNotFoundError: The file does not exist.
        TesoError: Of class ``error``: a folder, a pipe or a device, a file that may not be read, is too large, or is
            not UTF-8.
    """
    content = read_bytes(path, what, limit_bytes=limit_bytes, error=error)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise error(f"{path} can't be read (it is UTF-16): save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as decoding:
        raise error(f"{path} can't be read (byte {decoding.start} is not UTF-8): name {what}") from None


def read_bytes(
    path: Path, what: str, *, limit_bytes: int = LIMIT_BYTES, error: type[TesoError] = InputNotFoundError
) -> bytes:
    """Read a regular file whole. The arguments are those of :func:`read_text`, and so are the errors."""
    try:
        _check_regular(os.stat(path).st_mode, path, what, error)  # to open a pipe may wait for ever
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            _check_regular(status.st_mode, path, what, error)
            # A file of /proc says that it has 0 bytes.
            content = b"" if status.st_size > limit_bytes else file.read(limit_bytes + 1)
    except TesoError:  # ours are also an OSError or a ValueError
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputNotFoundError(f"{path} can't be read (it does not exist): name {what}") from None
    except OSError as failure:
        raise error(f"{path} can't be read ({failure.strerror}): name {what}") from None
    except ValueError:  # a zero byte, or a character that the file system can't have
        raise InputNotFoundError(f"{str(path)!a} can't be the name of a file: name {what}") from None
    if status.st_size > limit_bytes or len(content) > limit_bytes:
        raise error(f"{path} can't be read (it has more than {limit_bytes:,} bytes): name {what}")
    return content


def parse_json(text: str, name: object, *, error: type[TesoError], advice: str = "write it again") -> Any:
    """Parse JSON of a stranger.

    Args:
        text: The JSON.
        name: What the message calls it: a path, or a server.
        error: The class to raise.
        advice: What the message says to do.

    Raises:
        TesoError: Of class ``error``: not JSON, nested too deeply, a number of thousands of digits, or a string that
            holds half a character, which no file and no terminal takes.
    """
    try:
        content = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # pairs of these are a character, one alone is not
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise error(f"{name} is not JSON (a string has half a character): {advice}") from None
    except RecursionError:
        raise error(f"{name} is not JSON that can be read (it is nested too deeply): {advice}") from None
    except ValueError as failure:
        raise error(f"{name} is not JSON ({to_one_line(failure)}): {advice}") from None
    return content


def parse_toml(text: str, name: object, *, error: type[TesoError]) -> dict[str, Any]:
    """Parse TOML of a stranger. The arguments are those of :func:`parse_json`, and so are the errors."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise error(f"{name} is not TOML that can be read (it is nested too deeply): correct it") from None
    except ValueError as failure:
        raise error(f"{name} is not TOML ({to_one_line(failure)}): correct it") from None
