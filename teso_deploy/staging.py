"""Files and folders that are written under a temporary name first, and renamed in one step.

Each has a name that can't be guessed, is created exclusively, and is locked by the process that writes it. A lock ends
with its process, also across containers. So a temporary file that can be locked was left by a dead process and is
removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

#: ``part``: not finished. ``aside``: contains, under its own name, what is about to be replaced.
_Kind = Literal["part", "aside"]
_NAME = re.compile(r"\.teso-[0-9a-f]{16}\.(part|aside)")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def is_staged(name: str) -> bool:
    """Whether a name in a folder is a temporary name of this module."""
    return _NAME.fullmatch(name) is not None


def _make_path(folder: Path, kind: _Kind) -> Path:
    return folder / f".teso-{secrets.token_hex(8)}.{kind}"


def _lock(descriptor: int, path: Path) -> bool:
    """Lock what was just created. Return False if another process removed it before that."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: leftovers stay there
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def create_file(folder: Path) -> BinaryIO:
    """Create an empty file, open for reading and writing. Its path is ``name``. Raises OSError."""
    while True:
        path = _make_path(folder, "part")
        file = open(path, "x+b")  # noqa: SIM115 - the caller closes it
        if _lock(file.fileno(), path):
            return file
        file.close()


@contextmanager
def create_folder(folder: Path, kind: _Kind = "part") -> Iterator[Path]:
    """Yield a new empty folder, and remove whatever has its name at the end. Raises OSError."""
    while True:
        path = _make_path(folder, kind)
        path.mkdir()
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if _lock(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def clear_leftovers(folder: Path) -> None:
    """Remove from a folder what dead processes left there. What can't be removed stays."""
    with suppress(OSError):
        for name in [name for name in os.listdir(folder) if is_staged(name)]:
            with suppress(OSError):
                _clear(folder / name)


def _clear(path: Path) -> None:
    is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    # Some network file systems lock only files that are open for writing. A folder can't be.
    how = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_NONBLOCK
    descriptor = os.open(path, how | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_folder:
            os.unlink(path)
            return
        if path.suffix == ".aside":
            for name in os.listdir(path):
                if not os.path.lexists(path.parent / name):
                    # The process died after it moved this aside and before it put the new one in its place.
                    os.rename(path / name, path.parent / name)
        shutil.rmtree(path)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Exchange the names of two files or folders in one step. Raises OSError if the system can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    renameat2 = libc.renameat2
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def put_in_place(new: Path, place: Path) -> None:
    """Rename a staged folder to its final name. The folder that had this name is then called ``new``.

    If the process is killed, the name belongs to the old folder or to the new one. On a system that can't exchange
    names, the old folder may then be in a folder ending in ``.aside``; :func:`clear_leftovers` brings it back.
    Raises OSError.
    """
    if not os.path.lexists(place):
        os.rename(new, place)
        return
    with suppress(OSError):
        exchange(new, place)
        return
    with create_folder(place.parent, "aside") as aside:
        old = aside / place.name
        try:
            os.rename(place, old)
            os.rename(new, place)
        except BaseException:  # interrupts too
            if os.path.lexists(old) and not os.path.lexists(place):
                os.rename(old, place)
            raise
        os.rename(old, new)
