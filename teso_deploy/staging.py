"""Files and folders that are written beside their place first, and then take it in one step.

Each has a name that can't be guessed, is created exclusively, and is locked by the process that writes it. A lock ends
with its process, also across containers. What can be locked was left by a process that died, and is removed.
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

#: ``part``: not finished. ``aside``: holds what is about to be replaced, under its own name.
_Kind = Literal["part", "aside"]
_NAME = re.compile(r"\.teso-[0-9a-f]{16}\.(part|aside)")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def is_staged(name: str) -> bool:
    """Tell whether a name in a folder is one that this module gives."""
    return _NAME.fullmatch(name) is not None


def _new_path(folder: Path, kind: _Kind) -> Path:
    return folder / f".teso-{secrets.token_hex(8)}.{kind}"


def _lock(descriptor: int, path: Path) -> bool:
    """Lock what was just created; False if another process has removed it before that."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: what is left there stays
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def create_file(folder: Path) -> BinaryIO:
    """Create an empty file, open for reading and writing; ``name`` is its path. Raises OSError."""
    while True:
        path = _new_path(folder, "part")
        file = open(path, "x+b")  # noqa: SIM115 - the caller closes it
        if _lock(file.fileno(), path):
            return file
        file.close()


@contextmanager
def created_folder(folder: Path, kind: _Kind = "part") -> Iterator[Path]:
    """Create an empty folder, and remove what has its name when the block ends. Raises OSError."""
    while True:
        path = _new_path(folder, kind)
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
    """Remove from a folder what processes left that have died. What can't be removed stays."""
    with suppress(OSError):
        for name in [name for name in os.listdir(folder) if is_staged(name)]:
            with suppress(OSError):
                _clear(folder / name)


def _clear(path: Path) -> None:
    is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    # Some network file systems lock only what is open for writing. A folder can't be.
    how = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_NONBLOCK
    descriptor = os.open(path, how | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_folder:
            os.unlink(path)
            return
        if path.suffix == ".aside":
            for name in os.listdir(path):
                if not os.path.lexists(path.parent / name):  # its process died between the two steps
                    os.rename(path / name, path.parent / name)
        shutil.rmtree(path)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Exchange the names of two files or folders, in one step. Raises OSError where the system can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    renameat2 = libc.renameat2
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def put_in_place(new: Path, place: Path) -> None:
    """Give a staged folder its name. What had the name is then called ``new``.

    If the process is killed, the name is that of the old folder or of the new one. Where the system can't exchange
    names, the old folder may be in one ending in ``.aside`` then, and :func:`clear_leftovers` brings it back.
    Raises OSError.
    """
    if not os.path.lexists(place):
        os.rename(new, place)
        return
    with suppress(OSError):
        exchange(new, place)
        return
    with created_folder(place.parent, "aside") as aside:
        old = aside / place.name
        try:
            os.rename(place, old)
            os.rename(new, place)
        except BaseException:  # an interrupt as well
            if os.path.lexists(old) and not os.path.lexists(place):
                os.rename(old, place)
            raise
        os.rename(old, new)
