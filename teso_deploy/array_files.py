"""Reading untrusted .npz files: every size is compared with the expected one before memory is allocated."""

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

#: Limit for all arrays of one file. The largest exported reference has 0.3 GB for each picture size.
MOST_BYTES = 2 << 30
_KINDS = {"b": "truth values", "f": "floating-point numbers", "i": "integers", "u": "integers", "U": "words"}


@dataclass(frozen=True, slots=True)
class Expected:
    """The type and shape an array must have: NumPy's ``kind`` (``f``, ``b``, ``U`` …); None in a shape means any."""

    kind: str
    shape: tuple[int | None, ...]

    def fits(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        """Whether a type and a shape match."""
        sides = zip(self.shape, shape, strict=False)
        return dtype.kind == self.kind and len(shape) == len(self.shape) and all(a in (None, b) for a, b in sides)

    def __str__(self) -> str:
        sides = " x ".join("any number of" if side is None else str(side) for side in self.shape)
        return f"{sides} {_KINDS[self.kind]}"


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array in NumPy's format."""
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of NumPy's format")
    shape, _, dtype = read(file)
    if any(side < 0 for side in shape):
        raise ValueError("a negative size")
    return shape, dtype


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return array name → its entry in the file."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"it holds {name} twice")
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
    """Read the arrays of a .npz file. Objects (pickles), and arrays that claim too much memory, are refused.

    Args:
        path: The file, as written by ``numpy.savez`` or ``numpy.savez_compressed``.
        wanted: Array name → type and shape it must have. Only these are read. None: read all arrays.

    Returns:
        The arrays by name. A wanted array that the file lacks is absent.

    Raises:
        BundleError: The file is not a .npz file, is damaged or encrypted, or an array is not as expected.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, wanted)
    except Exception as error:  # zipfile, zlib, NumPy and its header tokenizer raise a dozen classes
        raise BundleError(
            f"{path} holds no plain arrays ({to_one_line(error) or type(error).__name__}); export it again"
        ) from error
