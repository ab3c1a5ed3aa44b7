"""Reading small text files that a user names: prompts, recipes, manifests, cue files, word lists.

They are read completely, so a file is refused if it is not regular, too large, or not UTF-8. Errors of libraries about
malformed files (deep recursion, a number of thousands of digits) become errors of this package.
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

#: The size limit of a file in bytes, larger than any word list or cue file so far.
LIMIT_BYTES = 64 * 2**20
#: Start of the file that a clone without Git LFS has in place of each large file.
LFS_POINTER = b"version https://git-lfs"
#: Explanation and advice for such a file.
LFS_ADVICE = "is a pointer of Git LFS, not the file: run `git lfs pull` where it was cloned"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _check_regular(mode: int, path: Path, *, what: str, error: type[TesoError]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise error(f"{path} can't be read (it is {kind}): name {what}")


def read_text(
    path: Path, what: str, *, limit_bytes: int = LIMIT_BYTES, error: type[TesoError] = InputNotFoundError
) -> str:
    """Read a regular file as UTF-8, with or without a byte order mark.

    Args:
        path: The file. Links are followed.
        what: The expected kind of file, with its article, for messages: ``"a prompt's TOML file"``.
        limit_bytes: A larger file is refused before it is read. Default: 64 MiB.
        error: The class to raise for a file that exists and can't be used. Default: InputNotFoundError.

    Returns:
        The text, with the line ends of the file.

    Raises:
        InputNotFoundError: The file does not exist.
        TesoError: Of class ``error``: the file is a folder, a pipe or a device, has no read permission, is too large,
            or is not UTF-8.
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
    """Read a regular file completely. Arguments and errors are as for :func:`read_text`.

    Args:
        path: The file. Links are followed.
        what: The expected kind of file, for messages.
        limit_bytes: A larger file is refused before it is read.
        error: The class to raise for a file that exists and can't be used.
    """
    try:
        _check_regular(os.stat(path).st_mode, path, what=what, error=error)  # opening a pipe may wait forever
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            _check_regular(status.st_mode, path, what=what, error=error)
            # Files of /proc report a size of 0 bytes.
            content = b"" if status.st_size > limit_bytes else file.read(limit_bytes + 1)
    except TesoError:  # these are also an OSError or a ValueError
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputNotFoundError(f"{path} can't be read (it does not exist): name {what}") from None
    except OSError as failure:
        raise error(f"{path} can't be read ({failure.strerror}): name {what}") from None
    except ValueError:  # a zero byte, or a character that the file system does not allow
        raise InputNotFoundError(f"{str(path)!a} can't be the name of a file: name {what}") from None
    if status.st_size > limit_bytes or len(content) > limit_bytes:
        raise error(f"{path} can't be read (it has more than {limit_bytes:,} bytes): name {what}")
    return content


def parse_json(text: str, name: object, *, error: type[TesoError], advice: str = "write it again") -> Any:
    """Parse untrusted JSON.

    Args:
        text: The JSON.
        name: The name of its origin for messages: a path, or a server.
        error: The class to raise.
        advice: The advice at the end of the message. Default: "write it again".

    Raises:
        TesoError: Of class ``error``: the text is not JSON, is nested too deeply, has a number of thousands of
            digits, or has a string with half a character, which no file and no terminal accepts.
    """
    try:
        content = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # a pair of surrogates is a character, a single one is not
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise error(f"{name} is not JSON (a string has half a character): {advice}") from None
    except RecursionError:
        raise error(f"{name} is not JSON that can be read (it is nested too deeply): {advice}") from None
    except ValueError as failure:
        raise error(f"{name} is not JSON ({to_one_line(failure)}): {advice}") from None
    return content


def parse_toml(text: str, name: object, *, error: type[TesoError]) -> dict[str, Any]:
    """Parse untrusted TOML. Arguments and errors are as for :func:`parse_json`.

    Args:
        text: The TOML.
        name: The name of its origin for messages.
        error: The class to raise.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise error(f"{name} is not TOML that can be read (it is nested too deeply): correct it") from None
    except ValueError as failure:
        raise error(f"{name} is not TOML ({to_one_line(failure)}): correct it") from None
