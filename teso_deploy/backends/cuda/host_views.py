"""NumPy arrays on host memory that another library allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class _Block:
    """The base of a NumPy array. It is kept until the array and all its views are gone."""

    def __init__(self, pointer: int, nbytes: int, *, is_readonly: bool, owner: object) -> None:
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (pointer, is_readonly), "version": 3}
        self.owner = owner


def make_host_view(
    pointer: int, shape: tuple[int, ...], dtype: DTypeLike, *, owner: object, is_readonly: bool = False
) -> NDArray[Any]:
    """Make an array on existing memory.

    Args:
        pointer: Address of the memory.
        shape: Shape, in C order.
        dtype: Type of the elements.
        owner: The object that keeps the memory alive; it is kept until the array and all its views are gone.
        is_readonly: Whether the array can't be written. Default: it can.

    Returns:
        The array.
    """
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if nbytes == 0:
        return np.empty(shape, kind)
    # Go through bytes: this also works for types that are not NumPy's own (bfloat16).
    return np.asarray(_Block(pointer, nbytes, is_readonly=is_readonly, owner=owner)).view(kind).reshape(shape)
