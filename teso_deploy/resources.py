"""Paths of the shipped recipes, bundles and clips, in the wheel or in a checkout; and of this user's cache."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path


def find_shipped_path(relative: str) -> Path:
    """Return the path of a shipped file or folder.

    A wheel has these files under ``teso_deploy/_shipped``; a checkout (also of an editable install) has them two
    levels above this module. Wheels are always installed unpacked, so a real path exists. The returned path may not
    exist: then the caller names what is missing. ``relative`` is the path in the repository.
    """
    package = Path(str(files("teso_deploy")))
    packed = package / "_shipped"
    return (packed if packed.is_dir() else package.parent) / relative


def cache_folder(kind: str) -> Path:
    """Return the cache folder for files of one kind: in $XDG_CACHE_HOME, else in ``~/.cache``. It may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teso-deploy" / kind
