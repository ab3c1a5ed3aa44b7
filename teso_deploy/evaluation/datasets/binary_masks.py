"""Functions that the layouts with binary masks, s4 and ms3, share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.contracts import MaskKind
from teso_deploy.evaluation.datasets.pictures import open_picture


def find_data(root: Path, *, outer: str, inner: str, table: str) -> Path | None:
    """Find the folder with the data.

    Args:
        root: The folder that the user named: the archive's root, the collection in it, or the data's own folder.
        outer: The collection's name, ``Single-source``.
        inner: The folder's name, ``s4_data``.
        table: The table's name.

    Returns:
        The folder that has ``visual_frames``; None if there is none.
    """
    for folder in (root / outer / inner, root / inner):
        if (folder / "visual_frames").is_dir():
            return folder
    here = root.absolute()
    is_named = here.name == inner or (root / table).is_file() or (here.parent / table).is_file()
    return root if is_named and (root / "visual_frames").is_dir() else None


def find_table(root: Path, folder: Path, name: str) -> Path:
    """Find the table next to the data folder, in it, or at the root.

    Args:
        root: The folder that a user named.
        folder: The folder with the data.
        name: The table's name.

    Raises:
        DataError: The table is in none of the three places.
    """
    for place in (folder.absolute().parent, folder, root):
        if (place / name).is_file():
            return place / name
    raise DataError(f"{folder} has no {name} in it or beside it: the data set includes this table, put it there")


def read_binary_mask(path: Path, kind: MaskKind, layout: str) -> NDArray[np.uint8]:
    """Read a mask: 1 wherever the picture, in colour or grey, is not black.

    Args:
        path: The mask's file.
        kind: Must be ``binary``.
        layout: The name of the layout, for messages.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: The file is damaged, or classes were requested.
    """
    if kind == "semantic":
        raise DataError(f"{path}: {layout} has binary masks, only avss has classes")
    with open_picture(path) as image:
        # If the picture has a palette, compare its colours: the index of black differs between palettes.
        pixels = np.asarray(image if image.mode in ("1", "L", "I", "I;16", "F") else image.convert("RGB"))
        foreground = pixels > 0
        return np.array(foreground.any(axis=2) if foreground.ndim == 3 else foreground, np.uint8)
