"""The cache of the Hugging Face hub: the folder with the files of a downloaded model."""

from __future__ import annotations

import os
from pathlib import Path

from teso_deploy.errors import TesoError
from teso_deploy.small_files import read_text


def hub_snapshot(folder: Path) -> Path:
    """Return the folder with the files of a model, given its root in the hub's cache.

    The root (``models--OWNER--NAME``) has a folder for each revision in ``snapshots``. The one named by ``refs/main``
    is returned, or the only one. Any other folder is returned unchanged.

    >>> hub_snapshot(Path("bundle"))
    PosixPath('bundle')
    """
    snapshots = folder / "snapshots"
    if not os.path.isdir(snapshots):
        return folder
    try:
        name = read_text(folder / "refs" / "main", "a revision", limit_bytes=1000, error=TesoError).strip()
        if name.isalnum() and os.path.isdir(snapshots / name):
            return snapshots / name
    except TesoError:  # after a download by a commit's hash, there is no file "main"
        pass
    try:
        there = [entry for entry in snapshots.iterdir() if entry.is_dir()]
    except OSError:
        return folder
    return there[0] if len(there) == 1 else folder
