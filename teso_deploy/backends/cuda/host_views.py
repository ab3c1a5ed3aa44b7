"""Host memory that was allocated elsewhere, as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class _Block:
    """What NumPy takes as the base of an array: it lives as long as the array and all views of it."""

    def __init__(self, pointer: int, nbytes: int, is_readonly: bool, owner: object) -> None:
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (pointer, is_readonly), "version": 3}
        self.owner = owner


def host_view(
    pointer: int, shape: tuple[int, ...], dtype: DTypeLike, owner: object, is_readonly: bool = False
) -> NDArray[Any]:
    """The array of ``shape`` (C order) at an address. ``owner`` lives as long as the array and all views of it."""
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if nbytes == 0:
        return np.empty(shape, kind)
    # By bytes, so that types beyond NumPy's own (bfloat16) go through, too.
    return np.asarray(_Block(pointer, nbytes, is_readonly, owner)).view(kind).reshape(shape)
