"""Finding the files from which an ONNX graph reads its weights.

A graph names its weight files itself, so a bundle's graph could name any file of the machine. The base install has no
``onnx`` package. So this module parses the few protobuf fields that matter: from the model down to the tensors,
including those in subgraphs, functions and attributes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from teso_deploy.errors import BundleError
from teso_deploy.sealed import FileEntry
from teso_deploy.text import to_one_line

SUFFIX = ".onnx"
#: Message → field number → the nested message. Only messages on the path to a tensor's external data.
FIELDS: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto", 22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}  # fmt: skip
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: Each relevant entry contains this text. A part of a file without it has no external data.
_LOCATION = b"location"
_MOST_DIGITS = 19
#: Protobuf itself reads no deeper messages. Each level is searched, so a larger depth would take hours.
MOST_DEPTH = 100
Buffer = bytes | mmap.mmap


class _Malformed(Exception):
    """The bytes are not a valid protobuf message."""


@dataclass(frozen=True, slots=True)
class ExternalData:
    """The place of a tensor's bytes. ``location`` is relative to the graph's folder; ``end`` in bytes, 0 if unknown."""

    location: str
    end: int = 0


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """Return a number and the position after it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Malformed


def _fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of every field that contains bytes, and skip other fields."""
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, at - 1, end)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES and at < end:
            length = data[at]
            at += 1
            if length >= 0x80:
                length, at = _varint(data, at - 1, end)
            stop = at + length
            if not number or stop > end:
                raise _Malformed
            yield number, at, stop
            at = stop
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:  # groups, which ONNX does not use
            raise _Malformed
        if not number or at > end:
            raise _Malformed


def _entries(data: Buffer, at: int, end: int) -> ExternalData | None:
    """Combine a tensor's entries of external data."""
    location, numbers = None, {"offset": 0, "length": 0}
    for number, start, stop in _fields(data, at, end):
        if FIELDS["TensorProto"].get(number) is None:
            continue
        pair = {field: bytes(data[a:b]) for field, a, b in _fields(data, start, stop)}
        key, value = pair.get(_KEY, b""), pair.get(_VALUE, b"")
        try:
            if key == _LOCATION:
                if location not in (None, value.decode()):
                    raise _Malformed  # with two locations, readers could choose different ones
                location = value.decode()
            elif (said := key.decode()) in numbers:
                if not value.isdigit() or len(value) > _MOST_DIGITS:
                    raise _Malformed
                numbers[said] = int(value)
        except ValueError:
            raise _Malformed from None
    return None if location is None else ExternalData(location, sum(numbers.values()))


def _walk(data: Buffer) -> Iterator[ExternalData]:
    waiting = [("ModelProto", 0, len(data), 0)]
    while waiting:
        message, at, end, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise _Malformed
        if message == "TensorProto":
            if found := _entries(data, at, end):
                yield found
            continue
        inner = FIELDS[message]
        for number, start, stop in _fields(data, at, end):
            if number in inner and data.find(_LOCATION, start, stop) >= 0:
                waiting.append((inner[number], start, stop, depth + 1))


def external_data(path: Path) -> set[ExternalData]:
    """Return all places outside of a graph's own file where its tensors are stored. Raises :class:`BundleError`."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return set()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return set(_walk(data))
    except _Malformed:
        raise BundleError(f"{path} is not an ONNX graph; export it again") from None


def check_graph(folder: Path, name: str, files: Mapping[str, FileEntry]) -> None:
    """Check that the weights of a graph are files of its folder.

    Args:
        folder: The bundle's folder.
        name: The graph's file, one of ``files``.
        files: The files of the manifest, by relative POSIX path. Their hashes are compared elsewhere.

    Raises:
        BundleError: The file is not an ONNX graph, or it names a file that is outside the folder, missing in the
            manifest, or too short.
    """
    if PurePosixPath(name).suffix != SUFFIX:  # ONNX Runtime chooses the format by the suffix
        raise BundleError(f"{folder}: the graph {to_one_line(name)} must end in {SUFFIX}; export it again")
    for found in external_data(folder / name):
        place, location = PurePosixPath(name).with_name("-").parent, found.location
        entry = None if set(location) & set("/\\") else files.get((place / location).as_posix())
        if entry is None:
            raise BundleError(
                f"{folder}: the graph {to_one_line(name)} reads its weights from {to_one_line(repr(location))}, "
                "which is not a file that the manifest lists beside it; do not use this bundle"
            )
        if found.end > entry.bytes:
            raise BundleError(
                f"{folder}: the graph {to_one_line(name)} reads beyond the end of {to_one_line(location)}; "
                "export it again"
            )
