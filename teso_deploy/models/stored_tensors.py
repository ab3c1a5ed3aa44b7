"""Tensors of a file that are read when they are needed, and the pickled forms of PyTorch and NumPy.

A training checkpoint is three times as large as its weights, so unneeded tensors are not read. Sizes that a file claims
are compared with its content before memory is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teso_deploy.models.pickle_reading import Global, Placeholder


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor in a file.

    Args:
        shape: Its shape.
        dtype: Its data type.
        read: A function that reads it from the file.
        trouble: The reason why it can't be read, such as "is sparse"; empty if it can be read.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    trouble: str = ""

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A row of numbers that tensors are views of. ``read`` returns at least ``count`` of them as (N,) of ``dtype``."""

    dtype: torch.dtype
    count: int
    read: Callable[[torch.dtype], Tensor]


#: PyTorch's names of storages that differ from the name of the type.
_OLD_NAMES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "Long": "int64", "Int": "int32", "Short": "int16",
    "Char": "int8", "Byte": "uint8", "Bool": "bool", "BFloat16": "bfloat16", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "Untyped": "uint8",
}  # fmt: skip


def find_dtype(of: Any) -> torch.dtype:
    """Return the data type that a pickle names (``torch.FloatStorage``, ``torch.float32``). Raises ``ValueError``."""
    name = of.name.rsplit(".", 1)[-1] if isinstance(of, Global) else ""
    found = getattr(torch, _OLD_NAMES.get(name.removesuffix("Storage"), name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"unknown type of number: {name}")
    return found


def _check_sizes(of: Any) -> tuple[int, ...]:
    numbers = of.arguments[0] if isinstance(of, Placeholder) and of.arguments else of
    sizes = tuple(numbers)
    if len(sizes) > 64 or not all(isinstance(size, int) and 0 <= size < 2**62 for size in sizes):
        raise ValueError("invalid sizes")
    return sizes


def _make_view(given: tuple[Any, ...], dtype: torch.dtype | None = None) -> StoredTensor:
    """Return the view that (storage, offset, size, stride) describe. Raises ``ValueError`` if it is too large."""
    storage, offset, size, stride = given
    if not isinstance(storage, Storage):
        raise ValueError("not a storage")
    shape, steps = _check_sizes(size), _check_sizes(stride)
    kind = dtype or storage.dtype
    width = kind.itemsize
    count = storage.count * storage.dtype.itemsize // width
    if len(shape) != len(steps) or not isinstance(offset, int) or offset < 0:
        raise ValueError("an invalid view")
    last = offset + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    if 0 not in shape and last >= count:
        raise ValueError("a tensor is larger than its storage")

    def read() -> Tensor:
        if 0 in shape:
            return torch.empty(shape, dtype=kind)
        return torch.as_strided(storage.read(kind), shape, steps, offset)

    return StoredTensor(shape, kind, read)


def _make_typed_view(_name: str, given: tuple[Any, ...]) -> StoredTensor:
    """Return a view whose pickle names the data type, because types such as float8 have no storage class."""
    *view, _requires_grad, _hooks, dtype = given[:7]
    return _make_view(tuple(view), find_dtype(dtype))


def _refuse(trouble: str) -> StoredTensor:
    return StoredTensor((), torch.uint8, lambda: torch.empty(0), trouble)


def _make_array(shape: Any, described: Any, content: Any, *, fortran: bool) -> Any:
    """Return a NumPy array from the parts of its pickle, or a placeholder if its elements are not numbers."""
    if not isinstance(described, Placeholder) or not isinstance(content, bytes | bytearray | str):
        return Placeholder("numpy.ndarray")
    kind = described.arguments[0]
    order = described.state[1] if isinstance(described.state, tuple) and len(described.state) > 1 else "|"
    if kind == "b1":
        kind = "?"
    if kind not in ("?", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
        return Placeholder("numpy.ndarray")
    dtype = np.dtype(kind if order not in "<>" else order + kind)
    sizes = _check_sizes(shape)
    if math.prod(sizes) * dtype.itemsize != len(content):
        raise ValueError("an array whose size differs from its content")

    def read() -> Tensor:
        # PyTorch requires the native byte order and writable memory.
        raw = content.encode("latin-1") if isinstance(content, str) else content  # Python 2 pickles bytes as text
        values = np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.array(values.reshape(sizes, order="F" if fortran else "C"), order="C"))

    return StoredTensor(sizes, torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype, read)


class Array(Placeholder):
    """A NumPy array. A pickle gives its numbers later, as its state."""

    __slots__ = ()

    def to_tensor(self) -> Any:
        """Return the tensor, or the placeholder itself if it has no numbers."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return self
        _, shape, described, fortran, content = self.state
        try:
            return _make_array(shape, described, content, fortran=bool(fortran))
        except Exception:  # parts that do not fit together: ValueError, TypeError, IndexError
            return _refuse("is damaged")


def _text_as_bytes(name: str, given: tuple[Any, ...]) -> Any:
    """Return the result of ``_codecs.encode``, with which Python 2 and protocols below 3 write bytes.

    The text is kept until its numbers are read: a copy would cost its memory at each call that names it.
    """
    if len(given) == 2 and isinstance(given[0], str) and given[1] in ("latin1", "latin-1"):
        return given[0]
    return Placeholder(name, given)


def _make_typed(name: str, given: tuple[Any, ...]) -> Any:
    """Return a subclass of a tensor from (function, class, arguments, state)."""
    function, _, arguments, _ = given
    return make_tensor(function.name, tuple(arguments)) if isinstance(function, Global) else Placeholder(name, given)


def _make_mapping(name: str, given: tuple[Any, ...]) -> Any:
    """Return an ordered mapping, empty or made of pairs."""
    pairs = given[-1] if given and isinstance(given[-1], list) else []
    found = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and isinstance(pair[0], str | int)}
    pairs.clear()  # use each list of pairs only once, or a short pickle could fill the memory with copies
    return found


_MAKERS: Mapping[str, Callable[[str, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _make_mapping,
    "collections.defaultdict": _make_mapping,
    "builtins.dict": _make_mapping,
    "_codecs.encode": _text_as_bytes,
    "torch._utils._rebuild_tensor": lambda _, given: _make_view(given[:4]),
    "torch._utils._rebuild_tensor_v2": lambda _, given: _make_view(given[:4]),
    "torch._utils._rebuild_tensor_v3": _make_typed_view,
    "torch._utils._rebuild_parameter": lambda _, given: given[0],
    "torch._utils._rebuild_parameter_with_state": lambda _, given: given[0],
    "torch._tensor._rebuild_from_type_v2": _make_typed,
    "torch._tensor._rebuild_from_type": _make_typed,
    "torch._utils._rebuild_qtensor": lambda *_: _refuse("is quantised"),
    "torch._utils._rebuild_sparse_tensor": lambda *_: _refuse("is sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": lambda *_: _refuse("is sparse"),
    "torch._utils._rebuild_nested_tensor": lambda *_: _refuse("is nested"),
    "torch._utils._rebuild_wrapper_subclass": lambda *_: _refuse("is of a special class"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: _refuse('has no numbers (device "meta")'),
    "torch._utils._rebuild_device_tensor_from_numpy": lambda _, given: given[0],
    **{f"numpy.{core}.multiarray._reconstruct": (lambda name, given: Array(name, given)) for core in ("core", "_core")},
    **{
        f"numpy.{core}.numeric._frombuffer": (
            lambda _, given: _make_array(given[2], given[1], given[0], fortran=given[3] == "F")
        )
        for core in ("core", "_core")
    },
}


def make_tensor(name: str, given: tuple[Any, ...]) -> Any:
    """Return the value for a call in a pickle: tensors and mappings, and placeholders for everything else.

    Raises ``ValueError`` and others for arguments that do not fit.
    """
    maker = _MAKERS.get(name)
    return Placeholder(name, given) if maker is None else maker(name, given)
