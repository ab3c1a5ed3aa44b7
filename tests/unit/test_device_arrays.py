"""DeviceArray and DLPack capsules on host memory: what keeps memory alive, how long, and that it is freed once."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack

from teso_deploy.backends.cuda import dlpack
from teso_deploy.backends.cuda.arrays import DeviceArray, take_array
from teso_deploy.errors import DeviceError


class Owner:
    """Host memory, (3, 4) float32, that records its release in ``freed``."""

    def __init__(self) -> None:
        self.array = np.arange(12, dtype=np.float32).reshape(3, 4)
        self.freed: list[bool] = []

    def __del__(self) -> None:
        self.freed.append(True)


def _shared(owner: Owner, is_readonly: bool = False) -> DeviceArray:
    array = owner.array
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, owner, is_readonly=is_readonly)


def _take_by_numpy(array: DeviceArray) -> Any:
    return np.from_dlpack(array)


def _take_by_torch(array: DeviceArray) -> Any:
    return from_dlpack(array)


def _take_by_us(array: DeviceArray) -> Any:
    return take_array(array).numpy()


def _take_old_capsule(array: DeviceArray) -> Any:
    return from_dlpack(array.__dlpack__())


def _take_copy_of_host(array: DeviceArray) -> Any:
    return array.numpy()


TAKERS = [_take_by_numpy, _take_by_torch, _take_by_us, _take_old_capsule, _take_copy_of_host]


@pytest.mark.parametrize("take", TAKERS)
def test_memory_lives_until_the_last_taker_lets_go(take: Any) -> None:
    owner = Owner()
    freed = owner.freed
    array = _shared(owner)
    taken, other = take(array), take(array)
    assert np.shares_memory(np.asarray(taken), owner.array) and np.array_equal(np.asarray(taken), owner.array)
    taken[0, 0] = 7
    assert owner.array[0, 0] == 7
    del owner, array
    gc.collect()
    assert not freed
    row = taken[1]
    del taken, other
    gc.collect()
    assert not freed and float(row[0]) == 4
    del row
    gc.collect()
    assert freed == [True]


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 3), (2, 0)])
def test_a_capsule_that_is_not_taken_frees_its_memory(version: tuple[int, int] | None) -> None:
    owner = Owner()
    freed = owner.freed
    capsule = _shared(owner).__dlpack__(max_version=version)
    del owner
    gc.collect()
    assert not freed
    assert ('"dltensor_versioned"' in repr(capsule)) == (version is not None and version[0] >= 1)
    del capsule
    gc.collect()
    assert freed == [True]


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule_is_taken_once(version: tuple[int, int] | None) -> None:
    owner = Owner()
    freed = owner.freed
    capsule = _shared(owner).__dlpack__(max_version=version)
    block = dlpack.take(capsule)
    with pytest.raises(BufferError, match="array was already taken"):
        dlpack.take(capsule)
    del owner, capsule
    gc.collect()
    assert not freed and block.shape == (3, 4) and block.strides == (4, 1)
    del block
    gc.collect()
    assert freed == [True]


def test_a_taker_may_let_go_in_another_thread() -> None:
    owner = Owner()
    freed = owner.freed
    taken = [from_dlpack(_shared(owner))]
    del owner
    thread = threading.Thread(target=taken.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert freed == [True]


def test_what_others_share_is_held_and_given_back() -> None:
    source = np.arange(6.0)
    held = weakref.ref(source)
    array = take_array(source)
    assert array.is_on_host and array.pointer == source.ctypes.data and array.__dlpack_device__() == (1, 0)
    del source
    gc.collect()
    assert held() is not None
    view = array.numpy()
    del array
    gc.collect()
    assert held() is not None and np.array_equal(view, np.arange(6.0))
    del view
    gc.collect()
    assert held() is None


DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_goes_there_and_back(dtype: str) -> None:
    for shape in ((2, 3), (), (0, 4), (1,)):
        source = np.ones(shape, dtype)
        array = take_array(DeviceArray(source.ctypes.data, source.shape, source.dtype, source))
        assert array.dtype == source.dtype and array.shape == source.shape
        assert np.array_equal(array.numpy(), source) and np.array_equal(np.from_dlpack(array), source)
        assert from_dlpack(array).shape == source.shape


def test_bfloat16_goes_to_torch() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    source = np.arange(4).astype(ml_dtypes.bfloat16)
    array = DeviceArray(source.ctypes.data, source.shape, source.dtype, source)
    assert torch.equal(from_dlpack(array), torch.arange(4).to(torch.bfloat16))
    assert array.numpy().dtype == source.dtype and np.array_equal(array.numpy(), source)
    with pytest.raises(DeviceError, match="NumPy has no type"):
        take_array(torch.zeros(3, dtype=torch.bfloat16))


def test_read_only_stays_so() -> None:
    owner = Owner()
    array = _shared(owner, is_readonly=True)
    assert not np.from_dlpack(array).flags.writeable and not array.numpy().flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        array.__dlpack__()
    source = np.arange(3)
    source.flags.writeable = False
    assert take_array(source).is_readonly


def test_copies_are_their_own() -> None:
    owner = Owner()
    freed = owner.freed
    array = _shared(owner)
    copy = np.from_dlpack(array, copy=True)
    assert np.array_equal(copy, owner.array) and not np.shares_memory(copy, owner.array)
    assert dlpack.take(array.__dlpack__(copy=False)).pointer == array.pointer
    assert dlpack.take(array.__dlpack__(dl_device=(1, 0))).pointer == array.pointer
    del owner, array
    gc.collect()
    assert freed == [True] and copy[2, 3] == 11


def test_what_cannot_be_exported_is_refused() -> None:
    owner = Owner()
    array = _shared(owner)
    for how in ({"stream": 1}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            array.__dlpack__(**how)  # type: ignore[arg-type]
    assert not hasattr(array, "__cuda_array_interface__")
    with pytest.raises(TypeError, match="can't be shared by its address"):
        DeviceArray(8, (1,), np.dtype(object), None)
    for dtype in (">f4", "S3", [("a", "f4")]):
        with pytest.raises(BufferError, match="DLPack has no type"):
            DeviceArray(owner.array.ctypes.data, (1,), np.dtype(dtype), owner).__dlpack__()


def test_what_cannot_be_taken_is_refused() -> None:
    for strange in (torch.zeros(3, 4).T, torch.zeros(4)[::2], np.zeros((4, 4))[:, ::2]):
        with pytest.raises(DeviceError, match="not in C order"):
            take_array(strange)
    for fine in (torch.zeros(1, 4).T, torch.zeros(3, 0).T, np.zeros((4, 4))[1:]):
        take_array(fine)
    with pytest.raises(DeviceError, match="can't be shared by DLPack"):
        take_array(torch.zeros(3, requires_grad=True))
    with pytest.raises(DeviceError, match="list offers neither"):
        take_array([1, 2])
    with pytest.raises(BufferError, match="not a DLPack capsule"):
        dlpack.take(object())

    class Vulkan:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 7, 0

        def __dlpack__(self, **how: Any) -> Any:
            raise AssertionError

    with pytest.raises(DeviceError, match="not an NVIDIA GPU"):
        take_array(Vulkan())


def test_libraries_from_before_dlpack_1_are_understood() -> None:
    owner = Owner()

    class Old:
        def __init__(self, array: DeviceArray) -> None:
            self.array = array

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, stream: int | None = None) -> Any:
            return self.array.__dlpack__(stream=stream)

    taken = take_array(Old(_shared(owner)))
    assert np.array_equal(taken.numpy(), owner.array)
    assert taken.contiguous(np.float32) is taken
    with pytest.raises(DeviceError, match="float32 was given where int64 is needed"):
        taken.contiguous(np.int64)
