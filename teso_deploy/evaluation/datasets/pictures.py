"""Reads pictures and tables of a data set. An error names the damaged file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError, InputNotFoundError

_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture for a block.

    Raises :class:`InputNotFoundError` if it is missing, :class:`DataError` if it is damaged.
    """
    if not path.is_file():
        raise InputNotFoundError(f"no picture {path}: the data set changed after it was read")
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{path} can't be read ({error}): copy it again from the data set") from error


def read_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels. Only the header is read."""
    with open_picture(path) as image:
        return image.size


def load_frame(path: Path) -> NDArray[np.uint8]:
    """Read a frame, (H, W, 3) uint8 RGB. Raises :class:`DataError` if the picture is damaged."""
    with open_picture(path) as image:
        return np.array(image.convert("RGB"))


def read_table(table: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV file.

    Args:
        table: The file.
        needed: Columns that it must have.

    Returns:
        Column → value, stripped, for each row; the first column is also under the key ``""``.

    Raises:
        DataError: It can't be read, or lacks a column.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, restkey="", restval="")
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [{name: str(row[name]).strip() for name in columns} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} can't be read ({error}): copy it again from the data set") from error
    if not set(needed) <= set(columns):
        raise DataError(f"{table} must have the columns {','.join(needed)}; it has {','.join(columns) or 'none'}")
    return [row | {"": row[columns[0]]} for row in rows]
