"""A folder of numbered results, and a marker file that says that we wrote the folder and may replace it."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teso_deploy.errors import InputNotFoundError, OutputError
from teso_deploy.outputs import Target, as_json, check_folder, explain_errors, find_target, write_whole
from teso_deploy.small_files import parse_json, read_text
from teso_deploy.staging import clear_leftovers, create_folder, is_staged, put_in_place

_MOST_MARKER_BYTES = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedFolder:
    """A kind of folder with numbered files.

    Attributes:
        what: What the files are, in messages: "masks".
        marker: Name of the JSON file that says so.
        keys: Keys that the marker has.
        pattern: The names of the numbered files, as a regular expression.
    """

    what: str
    marker: str
    keys: frozenset[str]
    pattern: str

    def _is_numbered(self, entry: os.DirEntry[str]) -> bool:
        return bool(re.fullmatch(self.pattern, entry.name)) and entry.is_file(follow_symlinks=False)

    def _has_marker(self, folder: Path) -> bool:
        try:
            text = read_text(folder / self.marker, f"a {self.marker}", limit_bytes=_MOST_MARKER_BYTES)
            content = parse_json(text, self.marker, error=OutputError)
        except (InputNotFoundError, OutputError):
            return False
        return isinstance(content, dict) and content.keys() >= self.keys

    def check(self, path: Path) -> Target:
        """Refuse a folder that can't be written, or that holds anything but such files with their marker.

        A link to a folder, a mount point and ``.`` are allowed. Raises :class:`OutputError`.
        """
        check_folder(path)
        target = find_target(path)
        if target.kind == "missing":
            return target
        with explain_errors(path), os.scandir(target.path) as entries:
            found = [
                (entry.name, self._is_numbered(entry))
                for entry in entries
                if entry.name != self.marker and not is_staged(entry.name)
            ]
        strange = sorted(name for name, is_numbered in found if not is_numbered)
        if self._has_marker(target.path):
            if strange:
                raise OutputError(f"{path} holds {strange[0]} beside {self.what}: move it away, or name another folder")
        elif strange or os.path.lexists(target.path / self.marker):
            raise OutputError(
                f"{path} holds {(strange or [self.marker])[0]}, which is not one of the {self.what} and is not "
                "deleted: name a new or an empty folder"
            )
        elif found:
            raise OutputError(
                f"{path} holds numbered pictures but no {self.marker}: if they are {self.what} of an older version, or "
                f"were moved there, delete {path}/*; otherwise name another folder"
            )
        return target

    def _write_marker(self, folder: Path, content: dict[str, Any], shown: Path) -> None:
        write_whole(folder / self.marker, as_json(content).encode(), shown=shown)

    def _list_names(self, folder: Path) -> set[str]:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if self._is_numbered(entry)}

    def _move_in(self, new: Path, folder: Path) -> None:
        """Move new files into a folder that stays, then delete the old ones. A killed process may leave both."""
        before, coming = self._list_names(folder), self._list_names(new)
        shutil.move(new / self.marker, folder / self.marker)  # first, so that the next run knows the folder as ours
        for name in sorted(coming):
            shutil.move(new / name, folder / name)
        for name in before - coming:
            os.unlink(folder / name)

    @contextmanager
    def open_staged(self, path: Path, content: dict[str, Any]) -> Iterator[Path]:
        """Yield a folder that replaces ``path`` if the block ends without an error.

        Until then the files of an earlier run stay at ``path``. ``content``: of the marker. Raises
        :class:`OutputError`.
        """
        target = self.check(path)
        place = target.path
        with explain_errors(path):
            stays = target.kind == "folder" and _must_stay(place)
            home = place if stays else place.parent
            for folder in {home, place}:
                clear_leftovers(folder)
            with create_folder(home) as new:
                yield new
                self._write_marker(new, content, path)
                if self.check(path).kind == "folder":
                    with suppress(OSError):
                        os.chmod(new, stat.S_IMODE(os.stat(place).st_mode))
                if not stays:
                    try:
                        put_in_place(new, place)
                    except OSError:  # for example a mount of a folder on the same disk
                        stays = os.path.isdir(place)
                        if not stays:
                            raise
                if stays:
                    self._move_in(new, place)

    def open_growing(self, path: Path, content: dict[str, Any]) -> Path:
        """Make or empty a folder in which each file appears as soon as it is made, and return its path.

        ``content``: of the marker. Raises :class:`OutputError`.
        """
        folder = self.check(path).path
        with explain_errors(path):
            folder.mkdir(exist_ok=True)
            clear_leftovers(folder)
            self._write_marker(folder, content, path)  # before anything is deleted: the folder is still known as ours
            for name in self._list_names(folder):
                os.unlink(folder / name)
        return folder


def _must_stay(folder: Path) -> bool:
    """Return whether the folder can't be replaced by another one."""
    return (
        os.path.ismount(folder)
        or os.path.samefile(folder, os.curdir)
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )
