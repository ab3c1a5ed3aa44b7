"""Reading .npz files of others: every size is compared with what is expected before memory is taken for it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from teso_deploy.errors import BundleError
from teso_deploy.text import to_one_line

#: All arrays of one file together. The largest reference that was exported has 0.3 GB for each picture size.
MOST_BYTES = 2 << 30
_KINDS = {"b": "truth values", "f": "floating-point numbers", "i": "integers", "u": "integers", "U": "words"}


@dataclass(frozen=True, slots=True)
class Expected:
    """What an array has to be: NumPy's ``kind`` of its type (``f``, ``b``, ``U`` …) and its shape; None: any."""

    kind: str
    shape: tuple[int | None, ...]

    def fits(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        """Whether an array of this type and shape is one."""
        sides = zip(self.shape, shape, strict=False)
        return dtype.kind == self.kind and len(shape) == len(self.shape) and all(a in (None, b) for a, b in sides)

    def __str__(self) -> str:
        sides = " x ".join("any number of" if side is None else str(side) for side in self.shape)
        return f"{sides} {_KINDS[self.kind]}"


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in NumPy's format."""
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of NumPy's format")
    shape, _, dtype = read(file)
    if any(side < 0 for side in shape):
        raise ValueError("a negative size")
    return shape, dtype


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Name of an array → its place in the file."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{name} is in it twice")
        if info.flag_bits & 1:
            raise ValueError(f"{name} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed in a way that NumPy does not use")
        found[name] = info
    return found


def _read(archive: zipfile.ZipFile, wanted: Mapping[str, Expected] | None) -> dict[str, NDArray[Any]]:
    members, left = _members(archive), MOST_BYTES
    arrays = {}
    for name in members if wanted is None else wanted:
        if name not in members:
            continue
        with archive.open(members[name]) as file:
            shape, dtype = _header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in _KINDS or not dtype.itemsize:
            raise ValueError(f"{name} is an array of {dtype}")
        if wanted is not None and not wanted[name].fits(dtype, shape):
            raise ValueError(f"{name} is {dtype.name} of shape {shape}, expected is {wanted[name]}")
        if not size <= members[name].file_size or size > left:
            raise ValueError(f"{name} claims {size:,} bytes")
        left -= size
        with archive.open(members[name]) as file:
            arrays[name] = npy.read_array(file, allow_pickle=False)
    return arrays


def read_arrays(path: Path, wanted: Mapping[str, Expected] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file. Objects (pickles) are refused, and so is what claims more memory than it may.

    Args:
        path: The file, as ``numpy.savez`` or ``numpy.savez_compressed`` writes it.
        wanted: Name of an array → what it has to be. Only these are read. None: all, whatever they are.

    Returns:
        The arrays by name. A wanted name that the file lacks is not in it.

    Raises:
        BundleError: The file is something else, is damaged or encrypted, or holds an array that is not as expected.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, wanted)
    except Exception as error:  # zipfile, zlib, NumPy and the tokenizer of its headers raise a dozen classes
        raise BundleError(
            f"{path} holds no plain arrays ({to_one_line(error) or type(error).__name__}); export it again"
        ) from error
