"""Where the shipped recipes, bundles and clips lie, in the wheel or in a checkout; and where what was made is kept."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path


def shipped_path(relative: str) -> Path:
    """Path of a shipped file or folder, ``relative`` as it lies in the repository.

    A wheel carries them under ``teso_deploy/_shipped``; a checkout (also an editable
    install) has them two levels above this module. Wheels are always installed unpacked,
    so that a real path exists. The path may not exist: the caller says what is missing.
    """
    package = Path(str(files("teso_deploy")))
    packed = package / "_shipped"
    return (packed if packed.is_dir() else package.parent) / relative


def cache_folder(kind: str) -> Path:
    """Where this user's machine keeps what can be made again, by its kind: $XDG_CACHE_HOME, else ``~/.cache``.

    It may not exist.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teso-deploy" / kind
