"""Files of ``torch.save``, zipped or from before PyTorch 1.6, and plain pickles of NumPy arrays."""

from __future__ import annotations

import io
import mmap
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from teso_deploy.errors import CheckpointError
from teso_deploy.models.file_kinds import LEGACY_TORCH_MAGIC
from teso_deploy.models.pickle_reading import PickleReader, Placeholder
from teso_deploy.models.stored_tensors import Storage, find_dtype, make_tensor

_LITTLE = sys.byteorder == "little"


def read_zipped(path: Path) -> Any:
    """Read a file of ``torch.save``: mappings with :class:`StoredTensor` for tensors.

    Raises :class:`CheckpointError` with a reason to print after the file's name; random bytes raise other errors.
    """
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise CheckpointError("was repacked with compression: save its state_dict again")
    if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
        raise CheckpointError("is shorter than its contents say: copy it again")
    place = next(name for name in entries if name.endswith("/data.pkl")).removesuffix("data.pkl")
    order = f"{place}byteorder"
    if order in entries and (archive.read(order) == b"little") != _LITTLE:
        raise CheckpointError("was written on a machine of another byte order: save its state_dict as safetensors")
    rows: dict[str, Tensor] = {}

    def row(name: str) -> Tensor:
        """Return the bytes of a storage. Each storage is read once."""
        if name not in rows:
            raw = torch.empty(entries[name].file_size, dtype=torch.uint8)
            with archive.open(entries[name]) as stream:
                stream.readinto(raw.numpy())  # type: ignore[attr-defined]
            rows[name] = raw
        return rows[name]

    def persistent(named: Any) -> Any:
        kind, of, key, *_, count = named[:5]
        # Printing or hashing nested tuples may take forever.
        if kind != "storage" or not isinstance(count, int) or count < 0 or not isinstance(key, str):
            raise ValueError("not a storage")
        dtype, name = find_dtype(of), f"{place}data/{key}"
        if count * dtype.itemsize > entries[name].file_size:
            raise ValueError("a storage has fewer numbers than it claims")
        return Storage(dtype, count, lambda wanted: _as_type(row(name), wanted))

    return PickleReader(io.BytesIO(archive.read(f"{place}data.pkl")), make_tensor, persistent).read()


def _as_type(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """View bytes (N,) as numbers. The bytes of an incomplete last number are dropped."""
    return raw[: raw.numel() // dtype.itemsize * dtype.itemsize].view(dtype)


def _map_file(path: Path) -> mmap.mmap:
    """Map the file into memory. Reading beyond its end returns what exists."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _no_storage(named: Any) -> Any:
    return Placeholder("persistent", (named,))


def read_pickle(path: Path) -> Any:
    """Read a pickle without PyTorch's frame, as in Detectron2's model zoo. Raises the errors of `read_zipped`."""
    with _map_file(path) as file:
        return PickleReader(_as_file(file), make_tensor, _no_storage).read()


def _as_file(file: mmap.mmap) -> IO[bytes]:
    return file  # type: ignore[return-value]  # it has read, tell and readline like a file


def read_legacy(path: Path) -> Any:
    """Read a file from before PyTorch 1.6: pickles, then the numbers.

    Raises the errors of :func:`read_zipped`.
    """
    file = _map_file(path)
    rows: dict[str, tuple[int, int]] = {}  # key of a storage → (offset of its numbers, count)
    claimed: dict[str, int] = {}

    def at(key: str, dtype: torch.dtype) -> Callable[[torch.dtype], Tensor]:
        def read(wanted: torch.dtype) -> Tensor:
            begin, count = rows[key]
            return torch.frombuffer(file, dtype=wanted, count=count * dtype.itemsize // wanted.itemsize, offset=begin)

        return read

    widths: dict[str, int] = {}

    def persistent(named: Any) -> Any:
        kind, of, key, _location, count, view = named
        if kind != "storage" or not isinstance(count, int) or count < 0 or not isinstance(key, str):
            raise ValueError("not a storage")
        if view is not None:
            raise CheckpointError("was written by a PyTorch before 0.4: save its state_dict again with a newer one")
        dtype = find_dtype(of)
        claimed[key], widths[key] = count, dtype.itemsize
        return Storage(dtype, count, at(key, dtype))

    def part() -> Any:
        return PickleReader(_as_file(file), make_tensor, persistent).read()

    magic, _protocol, system = part(), part(), part()
    if magic != LEGACY_TORCH_MAGIC or not isinstance(system, dict):
        raise ValueError("not of PyTorch")
    if system.get("little_endian", True) != _LITTLE:
        raise CheckpointError("was written on a machine of another byte order: save its state_dict as safetensors")
    content = part()
    for key in part():
        if not isinstance(key, str):
            raise ValueError("not a storage")
        (count,) = struct.unpack("<q", file.read(8))
        begin = file.tell()
        if count != claimed[key] or begin + count * widths[key] > len(file):
            raise ValueError("a storage has fewer numbers than it claims")
        rows[key] = begin, count
        file.seek(begin + count * widths[key])
    return content
