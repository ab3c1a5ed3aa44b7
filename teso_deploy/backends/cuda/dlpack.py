"""DLPack capsules by ctypes: share memory with another library without a copy.

A capsule holds a C struct that describes an array and has a ``deleter``. The consumer renames the capsule and, when it
has finished with the array, calls the deleter once, from any thread. If nothing consumes the capsule, it calls the
deleter itself when it is freed.

Both versions are supported: DLPack 1.0 (``dltensor_versioned``) and the one before it (``dltensor``).
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

CPU, CUDA, CUDA_PINNED, CUDA_MANAGED = 1, 2, 3, 13

_NAME, _USED_NAME = b"dltensor", b"used_dltensor"
_NAME_VERSIONED, _USED_NAME_VERSIONED = b"dltensor_versioned", b"used_dltensor_versioned"
_READ_ONLY, _IS_COPIED = 1, 2

#: NumPy's kind of a type → DLPack's code. bfloat16 is not a NumPy type, so it is recognised by its name.
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_CODE_OF_BFLOAT16 = 4


class _DataType(ctypes.Structure):
    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("dtype", _DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


def _python(name: str, result: Any, *parameters: Any) -> Any:
    # Make a separate function object: those of ctypes.pythonapi are shared by the whole process.
    return ctypes.PYFUNCTYPE(result, *parameters)((name, ctypes.pythonapi))


_new_capsule = _python("PyCapsule_New", ctypes.py_object, c_void_p, c_char_p, c_void_p)
# These take the capsule's address: in its destructor, a capsule has no references left and must not get new ones.
_is_valid = _python("PyCapsule_IsValid", ctypes.c_int, c_void_p, c_char_p)
_pointer_in = _python("PyCapsule_GetPointer", c_void_p, c_void_p, c_char_p)
_rename = _python("PyCapsule_SetName", ctypes.c_int, c_void_p, c_char_p)
_keep = _python("Py_IncRef", None, ctypes.py_object)
_release = _python("Py_DecRef", None, c_void_p)

_DELETER = ctypes.CFUNCTYPE(None, c_void_p)


# Called from any thread, with or without the interpreter's lock; ctypes takes the lock.
@_DELETER
def _delete(address: int, _struct: Any = _Managed, _release: Any = _release) -> None:
    _release(_struct.from_address(address).context)


@_DELETER
def _delete_versioned(address: int, _struct: Any = _ManagedVersioned, _release: Any = _release) -> None:
    _release(_struct.from_address(address).context)


@_DELETER
def _destroy_capsule(
    capsule: int,
    _is_valid: Any = _is_valid,
    _pointer_in: Any = _pointer_in,
    _deleter: Any = _DELETER,
    _forms: Any = ((_NAME, _Managed), (_NAME_VERSIONED, _ManagedVersioned)),
) -> None:
    for name, struct in _forms:
        if _is_valid(capsule, name):
            address = _pointer_in(capsule, name)
            _deleter(struct.from_address(address).deleter)(address)


# Other libraries may call them after this module is unloaded, so they are never freed.
for _function in (_delete, _delete_versioned, _destroy_capsule, _NAME, _NAME_VERSIONED):
    _keep(_function)


@dataclass(frozen=True, slots=True)
class Block:
    """An array as DLPack describes it. ``strides`` are in elements; None is C order."""

    pointer: int
    device: tuple[int, int]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None
    is_readonly: bool
    owner: object


class _Holder:
    """Keeps everything an exported array needs until it is released: the struct, its tables, and the memory."""

    def __init__(self, struct: Any, shape: Any, owner: object) -> None:
        self.struct, self.shape, self.owner = struct, shape, owner


def _data_type(dtype: np.dtype[Any]) -> _DataType:
    code = _CODE_OF_BFLOAT16 if dtype.name == "bfloat16" else _CODES.get(dtype.kind)
    if code is None or not dtype.isnative:
        raise BufferError(f"DLPack has no type {dtype}")
    return _DataType(code, dtype.itemsize * 8, 1)


def export(block: Block, is_versioned: bool, is_copied: bool = False) -> Any:
    """Make a capsule of an array in C order. The array's owner is kept until the consumer calls the deleter.

    Args:
        block: The array.
        is_versioned: Whether the capsule has the format of DLPack 1.0 instead of the older one.
        is_copied: Whether the array was copied for this capsule, which only DLPack 1.0 records. Default: no.

    Returns:
        The capsule.

    Raises:
        BufferError: The array is read-only, which the older format can't express.
    """
    if block.is_readonly and not is_versioned:
        raise BufferError("a read-only array can't be exported by a DLPack before 1.0")
    shape = (c_int64 * len(block.shape))(*block.shape)
    strides = (c_int64 * len(block.shape))()  # NULL was allowed before DLPack 1.2
    step = 1
    for axis in reversed(range(len(block.shape))):
        strides[axis], step = step, step * max(1, block.shape[axis])
    tensor = _Tensor(block.pointer or None, *block.device, len(block.shape), _data_type(block.dtype), shape, strides, 0)
    struct: Any
    if is_versioned:
        flags = _READ_ONLY * block.is_readonly | _IS_COPIED * is_copied
        deleter = ctypes.cast(_delete_versioned, c_void_p)
        struct = _ManagedVersioned(1, 0, None, deleter, flags, tensor)
    else:
        struct = _Managed(tensor, None, ctypes.cast(_delete, c_void_p))
    holder = _Holder(struct, (shape, strides), block.owner)
    struct.context = id(holder)
    name = _NAME_VERSIONED if is_versioned else _NAME
    capsule = _new_capsule(ctypes.addressof(struct), name, ctypes.cast(_destroy_capsule, c_void_p))
    _keep(holder)  # released by the deleter
    return capsule


class _Taken:
    """Keeps a consumed array; its deleter is called once, when nothing refers to this object any more."""

    def __init__(self, struct: Any) -> None:
        if struct.deleter:
            finalizer = weakref.finalize(self, _DELETER(struct.deleter), ctypes.addressof(struct))
            finalizer.atexit = False  # arrays may outlive the other finalizers


def take(capsule: Any) -> Block:
    """Consume a capsule and return its array. Raises BufferError for an unknown version or type."""
    address = id(capsule)
    struct: Any
    if _is_valid(address, _NAME_VERSIONED):
        struct = _ManagedVersioned.from_address(_pointer_in(address, _NAME_VERSIONED))
        if struct.major != 1:
            raise BufferError(f"an array uses DLPack {struct.major}, but only version 1 is supported")
        used, is_readonly = _USED_NAME_VERSIONED, bool(struct.flags & _READ_ONLY)
    elif _is_valid(address, _NAME):
        struct = _Managed.from_address(_pointer_in(address, _NAME))
        used, is_readonly = _USED_NAME, False
    else:
        raise BufferError("this is not a DLPack capsule, or its array was already taken")
    tensor = struct.tensor
    kinds = {code: kind for kind, code in _CODES.items()}
    kind = kinds.get(tensor.dtype.code)
    if kind is None or tensor.dtype.lanes != 1 or tensor.dtype.bits % 8:
        raise BufferError(f"NumPy has no type for DLPack's {tensor.dtype.code} of {tensor.dtype.bits} bits")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    dtype = np.dtype(f"{kind}{tensor.dtype.bits // 8}")
    _rename(address, used)
    return Block(
        (tensor.data or 0) + tensor.byte_offset,
        (tensor.device_type, tensor.device_id),
        shape,
        dtype,
        strides,
        is_readonly,
        _Taken(struct),
    )
