"""A folder of masks: numbered PNGs, and ``masks.json``, which says that we wrote the folder and may replace it."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from teso_deploy.errors import InputNotFoundError, OutputError
from teso_deploy.media.overlay import make_palette
from teso_deploy.outputs import Target, as_json, check_folder, explain_errors, find_target, write_whole
from teso_deploy.small_files import parse_json, read_text
from teso_deploy.staging import clear_leftovers, create_folder, is_staged, put_in_place

MARKER = "masks.json"
SCHEMA_VERSION = 1
_KEYS = {"schema_version", "classes", "input", "bundle"}
_MASK_NAME = re.compile(r"\d{6,}\.png")
_MOST_MARKER_BYTES = 2**22


def describe_masks(classes: Sequence[str], source: str, bundle: str) -> dict[str, Any]:
    """Return the content of ``masks.json``.

    Args:
        classes: Names of the labels from 1.
        source: The file or stream that was segmented, without credentials.
        bundle: Name of the bundle.
    """
    colors = make_palette()
    return {
        "schema_version": SCHEMA_VERSION,
        "classes": [
            {"id": number, "name": name, "color": "#" + colors[number].tobytes().hex()}
            for number, name in enumerate(classes, 1)
        ],
        "input": source,
        "bundle": bundle,
    }


def _has_marker(folder: Path) -> bool:
    try:
        text = read_text(folder / MARKER, f"a {MARKER}", limit_bytes=_MOST_MARKER_BYTES)
        content = parse_json(text, MARKER, error=OutputError)
    except (InputNotFoundError, OutputError):
        return False
    return isinstance(content, dict) and content.keys() >= _KEYS


def check_mask_folder(path: Path) -> Target:
    """Refuse a folder that can't be written, or that holds anything but masks with their ``masks.json``.

    A link to a folder, a mount point and ``.`` are allowed. Raises :class:`OutputError`.
    """
    check_folder(path)
    target = find_target(path)
    if target.kind == "missing":
        return target
    with explain_errors(path), os.scandir(target.path) as entries:
        found = [
            (entry.name, bool(_MASK_NAME.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False))
            for entry in entries
            if entry.name != MARKER and not is_staged(entry.name)
        ]
    strange = sorted(name for name, is_mask in found if not is_mask)
    if _has_marker(target.path):
        if strange:
            raise OutputError(f"{path} holds {strange[0]} beside masks: move it away, or name another folder")
    elif strange or os.path.lexists(target.path / MARKER):
        raise OutputError(
            f"{path} holds {(strange or [MARKER])[0]}, which is not a mask and is not deleted: name a new or an "
            "empty folder"
        )
    elif found:
        raise OutputError(
            f"{path} holds numbered pictures but no {MARKER}: if they are masks of an older version, delete "
            f"{path}/*.png; otherwise name another folder"
        )
    return target


def _write_marker(folder: Path, marker: dict[str, Any], shown: Path) -> None:
    write_whole(folder / MARKER, as_json(marker).encode(), shown=shown)


def _mask_names(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {e.name for e in entries if _MASK_NAME.fullmatch(e.name) and e.is_file(follow_symlinks=False)}


def _must_stay(folder: Path) -> bool:
    """Return whether the folder can't be replaced by another one."""
    return (
        os.path.ismount(folder)
        or os.path.samefile(folder, os.curdir)
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _move_in(new: Path, folder: Path) -> None:
    """Move masks into a folder that stays, then delete the old ones. If the process is killed, it may hold both."""
    before, coming = _mask_names(folder), _mask_names(new)
    shutil.move(new / MARKER, folder / MARKER)  # first, so that the next run knows the folder as ours
    for name in sorted(coming):
        shutil.move(new / name, folder / name)
    for name in before - coming:
        os.unlink(folder / name)


@contextmanager
def open_staged_mask_folder(path: Path, marker: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder for masks that replaces ``path`` if the block ends without an error.

    Until then the masks of an earlier run stay at ``path``. ``marker``: see :func:`describe_masks`. Raises
    :class:`OutputError`.
    """
    target = check_mask_folder(path)
    place = target.path
    with explain_errors(path):
        stays = target.kind == "folder" and _must_stay(place)
        home = place if stays else place.parent
        for folder in {home, place}:
            clear_leftovers(folder)
        with create_folder(home) as new:
            yield new
            _write_marker(new, marker, path)
            if check_mask_folder(path).kind == "folder":
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
                _move_in(new, place)


def open_mask_folder(path: Path, marker: dict[str, Any]) -> Path:
    """Make or empty a folder in which each mask appears as soon as it is made, and return its path.

    ``marker``: see :func:`describe_masks`. Raises :class:`OutputError`.
    """
    folder = check_mask_folder(path).path
    with explain_errors(path):
        folder.mkdir(exist_ok=True)
        clear_leftovers(folder)
        _write_marker(folder, marker, path)  # before anything is deleted, so that the folder is still known as ours
        for name in _mask_names(folder):
            os.unlink(folder / name)
    return folder
