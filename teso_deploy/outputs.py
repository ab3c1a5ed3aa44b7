"""Writing results so that a file is either whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from teso_deploy.errors import OutputError, TesoError
from teso_deploy.text import replace_undecodable

_MASK_NAME = re.compile(r"\d{6,}\.png")


def _check_parent(path: Path) -> None:
    parent = path.absolute().parent
    if not os.path.isdir(parent):  # Path.is_dir raises where a folder may not be looked into
        raise OutputError(f"{path} can't be written: there is no folder {parent}; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} can't be written: you may not write to {parent}; name another place")


def check_file(path: Path, suffix: str = "") -> None:
    """Refuse, before work starts, a file that can't be written or ends otherwise (:class:`OutputError`)."""
    if suffix and path.suffix.lower() != suffix:
        raise OutputError(f"{path} can't be written: its name must end in {suffix}")
    if os.path.isdir(path):
        raise OutputError(f"{path} can't be written: it is a folder; name a file in it")
    _check_parent(path)


def check_mask_folder(path: Path) -> None:
    """Refuse a folder for masks that can't be written or holds anything but masks (:class:`OutputError`)."""
    _check_parent(path)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} can't be written: it is a file; name a folder")
    if path.is_dir() and any(not _MASK_NAME.fullmatch(entry.name) for entry in path.iterdir()):
        raise OutputError(f"{path} holds something else than masks of an earlier run: name a new or an empty folder")


def check_folder(path: Path) -> None:
    """Refuse a folder that neither exists nor can be made in one that does (:class:`OutputError`)."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} can't be written: it is a file; name a folder")
    if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
        raise OutputError(f"{path} can't be written: you may not write to it; name another folder")
    if not path.exists():
        _check_parent(path)


def make_folder(path: Path) -> None:
    """Make a folder, its parent being there (:class:`OutputError`)."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} can't be made ({error.strerror}): name another folder") from error


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its name when the block ends well, and vanishes otherwise."""
    check_file(path)
    staged = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield staged
        os.replace(staged, path)
    except OSError as error:
        if isinstance(error, TesoError):
            raise
        raise OutputError(f"{path} can't be written ({error.strerror}): name another place") from error
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def read_vouched(path: Path) -> bytes | None:
    """A file that :func:`write_vouched` wrote; None where there is none, or its content is not what was written."""
    try:
        content, digest = path.read_bytes(), _digest_of(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return content if hashlib.sha256(content).hexdigest() == digest.strip() else None


def write_vouched(path: Path, content: bytes) -> None:
    """Write a file that only saves time, and its hash; where that can't be, nothing is said.

    A folder that is not there is made, for this user alone: what is kept may be code.
    """
    with suppress(OSError):  # OutputError is one
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place, data in ((path, content), (_digest_of(path), hashlib.sha256(content).hexdigest().encode())):
            with staged_file(place) as staged:
                staged.write_bytes(data)


@contextmanager
def staged_mask_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that takes its place when the block ends well; masks that were there go."""
    check_mask_folder(path)
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror}): name another place") from error
    try:
        new = work / "new"
        new.mkdir()
        yield new
        check_mask_folder(path)
        if path.exists():
            os.replace(path, work / "old")
        os.replace(new, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole (:class:`OutputError`)."""
    with staged_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


def as_json(report: Any) -> str:
    """Indented JSON with a closing newline."""
    return replace_undecodable(json.dumps(report, indent=1, ensure_ascii=False)) + "\n"
