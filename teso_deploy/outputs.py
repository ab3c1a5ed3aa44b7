"""Writing results so that a file is either complete or absent, and no other file is touched."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from teso_deploy.errors import OutputError, TesoError
from teso_deploy.staging import clear_leftovers, create_file
from teso_deploy.text import escape_hidden, replace_undecodable

#: The path of ``--json -``: standard output.
STDOUT = Path("-")
_STDOUT_FILE = Path("/dev/stdout")
_MOST_LINKS = 40
_DESCRIPTOR = re.compile(r"(?:/proc/(?P<process>\d+)(?:/task/\d+)?|/dev)/fd/(?P<number>\d+)")


@dataclass(frozen=True, slots=True)
class Target:
    """The file or stream that an output's name leads to.

    Attributes:
        path: The path with all links resolved.
        kind: ``stream`` is a device, a pipe or an open descriptor: it is written to and never replaced.
        descriptor: Its number, if the name is a descriptor such as ``/dev/stdout``.
    """

    path: Path
    kind: Literal["missing", "file", "folder", "stream"]
    descriptor: int | None = None


def show_path(path: str | Path) -> str:
    """Return a path as text that can go into a report: bytes that are not UTF-8 become ``�``."""
    return replace_undecodable(str(path))


def _explain(path: Path, error: OSError) -> OutputError:
    """Explain a system error to the user who named ``path`` as an output."""
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(f"{path} can't be written: the name is too long for this file system; give a shorter one")
    if error.errno == errno.ELOOP:
        return OutputError(f"{path} can't be written: its links form a circle; name a file")
    reason = error.strerror or str(error) or type(error).__name__
    return OutputError(f"{path} can't be written ({reason}): name another place")


@contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn system errors of a block into an :class:`OutputError` about ``path``."""
    try:
        yield
    except TesoError:
        raise
    except OSError as error:
        raise _explain(path, error) from error


def _check_name(path: Path) -> None:
    try:
        can_be = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        can_be = False
    if not can_be:
        raise OutputError(f"{str(path)!a} can't be the name of a file: name another")


def find_target(path: Path) -> Target:
    """Follow an output's links to the file that would be written.

    Raises:
        OutputError: The name can't be followed, or is a socket, a disk, or a descriptor that is not open for writing.
    """
    _check_name(path)
    with explain_errors(path):
        here = path
        for _ in range(_MOST_LINKS):
            here = Path(os.path.realpath(here.parent)) / here.name
            match = _DESCRIPTOR.fullmatch(str(here))
            if match and match["process"] in (None, str(os.getpid())):
                return _find_descriptor_target(path, here, int(match["number"]))
            if not os.path.islink(here):
                break
            here = here.parent / os.readlink(here)
        else:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        try:
            mode = os.stat(here).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return Target(here, "missing")
    if stat.S_ISDIR(mode):
        return Target(here, "folder")
    if stat.S_ISREG(mode):
        return Target(here, "file")
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return Target(here, "stream")
    raise OutputError(f"{path} can't be written: it is neither a file nor a pipe; name a file")


def _find_descriptor_target(path: Path, here: Path, descriptor: int) -> Target:
    try:
        is_writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        is_writable = False
    if not is_writable:
        raise OutputError(f"{path} can't be written: it is not open for writing; name a file")
    return Target(here, "stream", descriptor)


def _check_parent(path: Path, target: Path) -> None:
    parent = target.parent
    try:
        is_folder = stat.S_ISDIR(os.stat(parent).st_mode)
    except PermissionError:
        raise OutputError(f"{path} can't be written: you may not look into its folder; name another place") from None
    except OSError:
        is_folder = False
    if not is_folder:
        raise OutputError(f"{path} can't be written: there is no folder {parent}; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} can't be written: you may not write to {parent}; name another place")


def check_file(path: Path, suffix: str = "") -> Target:
    """Check, before work starts, that a file can be written.

    Args:
        path: The file. A link to one stays a link.
        suffix: The required end of its name. If given, a device or a pipe is refused as well.

    Returns:
        The file or stream that will be written.

    Raises:
        OutputError: The file can't be written, and why.
    """
    if suffix and path.suffix.lower() != suffix:
        raise OutputError(f"{path} can't be written: its name must end in {suffix}")
    target = find_target(path)
    if target.kind == "folder":
        raise OutputError(f"{path} can't be written: it is a folder; name a file in it")
    if target.kind == "stream":
        if suffix:
            raise OutputError(f"{path} can't be written: a {suffix} file can't go to a device or a pipe; name a file")
    else:
        _check_parent(path, target.path)
    if target.kind != "missing" and target.descriptor is None and not os.access(target.path, os.W_OK):
        raise OutputError(f"{path} can't be written: you may not write to it; name another file")
    return target


def check_folder(path: Path) -> None:
    """Check that a folder exists, or can be made in an existing one. Raises :class:`OutputError`."""
    target = find_target(path)
    if target.kind not in ("folder", "missing"):
        raise OutputError(f"{path} can't be written: it is a file; name a folder")
    if target.kind == "missing":
        _check_parent(path, target.path)
    elif not os.access(target.path, os.W_OK | os.X_OK):
        raise OutputError(f"{path} can't be written: you may not write to it; name another folder")


def make_folder(path: Path) -> None:
    """Make a folder in an existing one. Raises :class:`OutputError`."""
    try:
        find_target(path).path.mkdir(exist_ok=True)
    except OSError as error:
        if isinstance(error, TesoError):
            raise
        raise OutputError(f"{path} can't be made ({error.strerror}): name another folder") from error


#: Device and inode of the nearest existing file or folder, then the names below it that do not exist.
_Place = tuple[int | str, ...]
_LENGTH_OF_EXISTING = 2


def _place(path: Path) -> _Place | None:
    """Return a key that is equal for all names of a place, or None for a device such as ``/dev/null``."""
    path = _STDOUT_FILE if path == STDOUT else path
    _check_name(path)
    below: list[str] = []
    here = path
    with explain_errors(path):
        while True:
            try:
                found = os.stat(here)
            except (FileNotFoundError, NotADirectoryError):
                here = find_target(here).path
                below.insert(0, here.name)
                here = here.parent
                continue
            if stat.S_ISCHR(found.st_mode):
                return None
            return (found.st_dev, found.st_ino, *below)


def _place_to_read(path: Path) -> _Place | None:
    """Return the same for an input, or None if it can't be reached; its reader refuses it with a better message."""
    with suppress(OutputError):
        return _place(path)
    return None


def _list_folders_around(path: Path) -> set[_Place]:
    """Return the places of all folders that contain a file or folder, existing or not."""
    path = _STDOUT_FILE if path == STDOUT else path
    with explain_errors(path):
        parents = list(Path(os.path.realpath(path)).parents)
    places: set[_Place] = set()
    for parent in parents:
        with suppress(OutputError):  # a folder without read permission
            places.add(_place(parent) or ())
    return places


def _is_bundle(folder: Path) -> bool:
    """Whether a folder has a manifest of all its files, so that no other file may be added."""
    return os.path.isfile(folder / "bundle.json")


def check_apart(
    inputs: Iterable[str | Path | None],
    files: Iterable[Path | None] = (),
    folders: Iterable[Path | None] = (),
) -> None:
    """Refuse outputs that would overwrite an input or each other, whatever name or link leads there.

    Args:
        inputs: Files and folders that are read. None and names of files that do not exist are skipped.
        files: Files that are written. None is skipped.
        folders: Folders that are replaced as a whole. None is skipped.

    Raises:
        OutputError: An output is an input or another output, exists in a folder that is an input, is in a bundle or
            in a folder that is another output, or is a folder that contains an input.
    """
    read = [Path(path) for path in inputs if path is not None]
    places = [(path, place) for path in read if os.path.lexists(path) and (place := _place_to_read(path))]
    around = [(path, _list_folders_around(path)) for path, _ in places]
    replaced: list[tuple[Path, _Place]] = []
    written: dict[_Place, Path] = {}
    for is_folder, outputs in ((True, folders), (False, files)):
        for out in outputs:
            place = None if out is None else _place(out)
            if out is None or place is None:
                continue
            here = _list_folders_around(out)
            for path, other in places:
                if other == place:
                    raise OutputError(f"{out} is also an input, so it can't be written: name another output")
                if other in here and (len(place) == _LENGTH_OF_EXISTING or _is_bundle(path)):
                    raise OutputError(f"{out} is inside {path}, which is an input: name an output outside of it")
            for path, parents in around:
                if is_folder and place in parents:
                    raise OutputError(f"{path} is an input and is inside {out}: name another folder for the output")
            if place in written:
                raise OutputError(f"{written[place]} and {out} are the same output: give each its own")
            for path, other in replaced:
                if other in here:
                    raise OutputError(f"{out} is inside {path}, which is an output too: name another place")
            if is_folder:
                for path in written.values():
                    if place in _list_folders_around(path):
                        raise OutputError(f"{path} is inside {out}, which is an output too: name another place")
                replaced.append((out, place))
            written[place] = out


@contextmanager
def open_staged_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file, open for reading and writing, that is renamed to ``path`` if the block succeeds.

    Otherwise it is removed. A link stays, and the file that it leads to is replaced. For a device or a pipe, the
    content is kept in memory and written when the block succeeds. Raises :class:`OutputError`.
    """
    target = check_file(path)
    with explain_errors(path):
        if target.kind == "stream":
            content = io.BytesIO()
            yield content
            with open_stream(target) as stream:
                stream.write(content.getvalue())
            return
        clear_leftovers(target.path.parent)
        file = create_file(target.path.parent)
        try:
            yield file
            finish_file(file, target.path)
        finally:
            with suppress(OSError):
                os.unlink(file.name)
            with suppress(OSError):  # a failed write was already raised
                file.close()


def finish_file(file: BinaryIO, place: Path) -> None:
    """Rename a staged file to its final name after all of its content is on disk. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())
    with suppress(OSError):  # keep the mode of the file that is replaced
        os.fchmod(file.fileno(), stat.S_IMODE(os.stat(place).st_mode))
    os.replace(file.name, place)


def open_stream(target: Target) -> BinaryIO:
    """Open a device, a pipe or a descriptor for writing. Raises OSError."""
    if target.descriptor is not None:
        return open(os.dup(target.descriptor), "wb")
    return open(os.open(target.path, os.O_WRONLY | os.O_CLOEXEC), "wb")


def open_growing(path: Path) -> BinaryIO:
    """Open a file that may be read while it is written. It is emptied now. Raises :class:`OutputError`."""
    target = check_file(path)
    with explain_errors(path):
        return open_stream(target) if target.kind == "stream" else open(target.path, "wb")


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def read_vouched(path: Path) -> bytes | None:
    """Read a file that :func:`write_vouched` wrote. Return None if it is missing or was changed."""
    try:
        content, digest = path.read_bytes(), _digest_of(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return content if hashlib.sha256(content).hexdigest() == digest.strip() else None


def write_vouched(path: Path, content: bytes) -> None:
    """Write a file that only saves time, together with its hash. Failures are ignored.

    A missing folder is created for this user only, because the content may be code.
    """
    with suppress(OSError):  # OutputError is one
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        clear_leftovers(path.parent)
        for place, data in ((path, content), (_digest_of(path), hashlib.sha256(content).hexdigest().encode())):
            write_whole(place, data)


def write_whole(path: Path, content: bytes, *, shown: Path | None = None) -> None:
    """Write one of many small files completely or not at all, without waiting for the disk or checking the target.

    Args:
        path: The file.
        content: All of it.
        shown: The path that errors name, such as the user's folder. Default: ``path``.

    Raises:
        OutputError: The file can't be written.
    """
    with explain_errors(shown or path):
        file = create_file(path.parent)
        try:
            with file:
                file.write(content)
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all. Raises :class:`OutputError`."""
    with open_staged_file(path) as staged:
        staged.write(replace_undecodable(text).encode())


def as_json(report: Any) -> str:
    """Format a report as indented JSON with a closing newline. NaN and infinity, which JSON lacks, become null."""
    content = json.dumps(replace_non_finite(report), indent=1, ensure_ascii=False, allow_nan=False)
    return escape_hidden(replace_undecodable(content)) + "\n"


def replace_non_finite(value: Any) -> Any:
    """Replace NaN and infinity by None in a value that becomes JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: replace_non_finite(inside) for name, inside in value.items()}
    return [replace_non_finite(inside) for inside in value] if isinstance(value, list | tuple) else value
