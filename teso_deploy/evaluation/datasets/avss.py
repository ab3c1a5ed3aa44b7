"""AVSBench-semantic (Zhou et al., IJCV 2024): masks of 70 classes::

    metadata.csv                      vid,uid,s_min,s_sec,a_obj,split,label
    {label}/{uid}/frames/{i}.jpg                        label: v1s, v1m (i = 0..4), v2 (i = 0..9)
    {label}/{uid}/labels_semantic/{i}.png               v1s in train: only 0
    {label}/{uid}/audio.wav

``labels_semantic`` are index images whose values are those of ``label2idx.json`` less one: 0 is the background.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.evaluation.datasets import ms3, s4
from teso_deploy.evaluation.datasets.contracts import SUBSETS, DataLayout, DataRow, MaskKind, VideoSample
from teso_deploy.evaluation.datasets.pictures import open_picture
from teso_deploy.evaluation.datasets.published import Place, list_table_rows, read_numbered_sample
from teso_deploy.resources import find_shipped_path

#: Values of an index mask: the background and 70 classes.
CLASSES = 71
_INDEX_MODES = ("L", "P", "I", "I;16")
TABLE = "metadata.csv"


def list_avss_classes() -> tuple[str, ...]:
    """List the 70 classes of AVSS as words. The k-th (from 0) has the value k + 1 in an index mask.

    Raises :class:`InputNotFoundError` if the installation lacks ``export/vocabulary/avss70.txt``.
    """
    path = find_shipped_path("export/vocabulary/avss70.txt")
    if not path.is_file():
        raise InputNotFoundError(f"no word list {path}: install the package again")
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


@cache
def _list_classes_by_letters() -> dict[str, str]:
    """Return the classes without spaces → the classes. The released table has "h orse"."""
    return {word.replace(" ", ""): word for word in list_avss_classes()}


def split_objects(objects: str) -> tuple[str, ...]:
    """Return the classes in ``a_obj``, each once, without what is not a class, as ``background``."""
    found = (
        _list_classes_by_letters().get(part.replace("-", "").replace(" ", "").lower()) for part in objects.split("_")
    )
    return tuple(dict.fromkeys(word for word in found if word))


def find_folder(root: Path) -> Path | None:
    """Return the root if it has a folder of a subset."""
    return root if any((root / subset).is_dir() for subset in SUBSETS) else None


def _list_rows(root: Path, folder: Path) -> list[DataRow]:
    table = root / TABLE
    if not table.is_file():
        raise DataError(f"{folder} has no {TABLE}: the data set includes this table, put it there")
    return list_table_rows(table, ("uid", "a_obj", "split", "label"), uid="uid", subset="label")


def read_row(folder: Path, row: DataRow) -> VideoSample:
    """Find the files of a row. Raises :class:`DataError` if one is missing or does not fit."""
    home = folder / row.subset / row.uid
    place = Place(
        frames=home / "frames",
        masks=home / "labels_semantic",
        audio=home / "audio.wav",
        first=0,
        category=row.fields["a_obj"],
        vid=row.fields.get("vid", ""),
    )
    return read_numbered_sample(row, place)


def read_index_mask(path: Path, kind: MaskKind) -> NDArray[np.uint8]:
    """Read the classes of an index image. For ``binary`` the result is 1 wherever any class is."""
    with open_picture(path) as image:
        indices = _read_indices(path, image)
    return np.minimum(indices, 1) if kind == "binary" else indices


def _read_indices(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    if image.mode not in _INDEX_MODES:
        raise DataError(f"{path} is not an index image but {image.mode}: take it from labels_semantic, not labels_rgb")
    indices = np.array(image)
    outside = (indices < 0) | (indices >= CLASSES)
    if outside.any():
        raise DataError(f"{path} has the class {indices[outside][0]}: AVSS has 0 (background) to {CLASSES - 1}")
    return indices.astype(np.uint8)


LAYOUT = DataLayout(
    "avss",
    "metadata.csv with a folder v1s, v1m or v2",
    find_folder,
    _list_rows,
    read_row,
    read_index_mask,
    SUBSETS,
    split_objects,
    columns=("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"),
    published={**s4.PUBLISHED, **ms3.PUBLISHED, ("v2", "train"): 4750, ("v2", "val"): 500, ("v2", "test"): 750},
    has_classes=True,
    protocol="avss",
)
