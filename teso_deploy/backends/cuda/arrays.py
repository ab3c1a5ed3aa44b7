"""Arrays in device memory, shared with torch, CuPy and others by DLPack or by the CUDA array interface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda import dlpack
from teso_deploy.backends.cuda.device import Device, Stream
from teso_deploy.backends.cuda.host_views import host_view
from teso_deploy.errors import DeviceError

#: Of DLPack and of the CUDA array interface: the default stream of old, and no stream at all.
_LEGACY_STREAM, _NO_STREAM = 1, -1


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """An array in C order at an address. It is a :class:`~teso_deploy.backends.engine.Tensor`.

    ``owner`` keeps the memory. ``device``: None is the host's memory. ``stream``: on which what is in it is written;
    None: it is there already. ``owner_stream``: handle of the one that its owner works on, where that is known:
    whoever queues reads of it lets that stream wait for them (:meth:`Device.order_streams`), and else the host,
    before the owner may write it again. Raises :class:`TypeError` for a dtype of Python objects.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object
    device: Device | None = None
    stream: Stream | None = None
    is_readonly: bool = False
    owner_stream: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        if self.dtype.hasobject:
            raise TypeError(f"an array of {self.dtype} can't be shared by its address")

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_on_host(self) -> bool:
        """Whether its memory is the host's."""
        return self.device is None

    def contiguous(self, dtype: DTypeLike) -> DeviceArray:
        """Itself. Raises :class:`DeviceError` where it is of another dtype: it is not converted on the device."""
        if self.dtype != np.dtype(dtype):
            raise DeviceError(f"an array of {self.dtype} was given where {np.dtype(dtype)} is needed: convert it first")
        return self

    def numpy(self) -> NDArray[Any]:
        """On the host: a copy of device memory, a view of host memory. Waits for its stream."""
        if self.device is None:
            return host_view(self.pointer, self.shape, self.dtype, self.owner, self.is_readonly)
        host = np.empty(self.shape, self.dtype)
        stream = self.stream or self.device.stream()
        self.device.copy_out(host, self.pointer, stream)
        stream.synchronize()
        return host

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. An AttributeError, as for any object without it, on the host and for types beyond NumPy's."""
        if self.device is None or self.dtype.kind == "V":
            raise AttributeError("__cuda_array_interface__")
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.nbytes else 0, self.is_readonly),
            "strides": None,
            "stream": self.stream.handle if self.stream else None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """(type, number) of where it is."""
        return (dlpack.CPU, 0) if self.device is None else (dlpack.CUDA, self.device.index)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule. What is queued on ``stream`` from now on sees what is in it. Raises BufferError."""
        is_versioned = max_version is not None and max_version[0] >= 1
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            if tuple(dl_device) != (dlpack.CPU, 0):
                raise BufferError(f"an array on {self.__dlpack_device__()} can't be exported to {dl_device}")
            if copy is False:
                raise BufferError("an array on a GPU can't come to the host without a copy")
            return _on_host(self.numpy())._export(is_versioned, is_copied=True)
        if self.device is None:
            if stream is not None:
                raise BufferError("there are no streams on the host: stream has to be None")
            if copy:
                return _on_host(self.numpy().copy())._export(is_versioned, is_copied=True)
            return self._export(is_versioned)
        if stream == 0:
            raise BufferError("stream 0 is ambiguous: 1 is the default stream, 2 that of the thread")
        reader = _LEGACY_STREAM if stream is None else stream
        if copy:
            return self._copied(reader)._export(is_versioned, is_copied=True)
        if self.stream is not None and reader not in (_NO_STREAM, self.stream.handle):
            self.device.order_streams(self.stream.handle, reader)
        return self._export(is_versioned)

    def _copied(self, reader: int) -> DeviceArray:
        assert self.device is not None
        memory = self.device.allocate(self.nbytes)
        stream = self.stream or self.device.stream()
        self.device.copy_on(memory.pointer, self.pointer, self.nbytes, stream)
        if reader == _NO_STREAM:
            stream.synchronize()
        else:
            self.device.order_streams(stream.handle, reader)
        # With this array too: the copy may still be under way when the reader has let go of it.
        return DeviceArray(memory.pointer, self.shape, self.dtype, (memory, self), self.device)

    def _export(self, is_versioned: bool, is_copied: bool = False) -> Any:
        block = dlpack.Block(
            self.pointer, self.__dlpack_device__(), self.shape, self.dtype, None, self.is_readonly, self.owner
        )
        return dlpack.export(block, is_versioned, is_copied)


def _on_host(array: NDArray[Any]) -> DeviceArray:
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, array)


def device_array(array: object, device: Device | None = None, stream: Stream | None = None) -> DeviceArray:
    """An array of another library, without a copy: whatever offers DLPack or the CUDA array interface.

    What is queued on ``stream`` from now on sees what is in it; without a stream the host waits until it is there.
    An array in host memory is taken as that (:attr:`DeviceArray.is_on_host`), whatever ``device`` is.

    Until when it is read, its owner does not learn from this: see :attr:`DeviceArray.owner_stream`, which the CUDA
    array interface may name and DLPack does not.

    Raises :class:`DeviceError` where it is on another GPU than ``device``, not in C order, of a type that NumPy does
    not have, or offers neither.
    """
    # DLPack first: it orders the streams on both sides, and torch's CUDA array interface names none.
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _by_dlpack(array, device, stream)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise DeviceError(
            f"{type(array).__name__} offers neither DLPack nor the CUDA array interface: convert it first"
        )
    return _by_interface(array, interface, device, stream)


def _needed(device: Device | None, index: int | None = None) -> Device:
    if device is None or index not in (None, device.index):
        where = "a GPU" if index is None else f"GPU {index}"
        here = "no GPU was opened for it" if device is None else f"GPU {device.index} is used: move it there first"
        raise DeviceError(f"an array is on {where}, and {here}")
    return device


def _checked_order(shape: tuple[int, ...], strides: tuple[int, ...] | None, step: int) -> None:
    """Raise :class:`DeviceError` unless the array is in C order. ``step``: from one element to the next, in strides."""
    if strides is None or 0 in shape:
        return
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            raise DeviceError("an array is not in C order: make it contiguous first")
        step *= size


def _by_dlpack(array: Any, device: Device | None, stream: Stream | None) -> DeviceArray:
    kind, index = (int(number) for number in array.__dlpack_device__())
    how: dict[str, Any] = {}
    if kind in (dlpack.CPU, dlpack.CUDA_PINNED):
        gpu = None
    elif kind in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        # Managed memory is on no GPU in particular.
        gpu = _needed(device, index if kind == dlpack.CUDA else None)
        waiting = stream or gpu.stream()
        how["stream"] = waiting.handle
    else:
        raise DeviceError(f"an array is on a device that is no NVIDIA GPU (DLPack's type {kind}): move it to one first")
    try:
        try:
            capsule = array.__dlpack__(max_version=(1, 0), **how)
        except TypeError:  # from before DLPack 1.0
            capsule = array.__dlpack__(**how)
        block = dlpack.take(capsule)
    except (BufferError, RuntimeError) as error:
        raise DeviceError(f"{type(array).__name__} can't be shared by DLPack: {error}") from error
    _checked_order(block.shape, block.strides, 1)
    if gpu is not None and stream is None:
        waiting.synchronize()
    here = stream if gpu else None
    theirs = array.stream.handle if gpu and isinstance(array, DeviceArray) and array.stream else None
    return DeviceArray(block.pointer, block.shape, block.dtype, block.owner, gpu, here, block.is_readonly, theirs)


def _by_interface(
    array: object, interface: dict[str, Any], device: Device | None, stream: Stream | None
) -> DeviceArray:
    gpu = _needed(device)  # on which one it is, the interface does not say
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    if interface.get("mask") is not None:
        raise DeviceError("an array has a mask: give it without")
    strides = interface.get("strides")
    _checked_order(shape, None if strides is None else tuple(strides), dtype.itemsize)
    writer = interface.get("stream")
    if writer == 0:
        raise DeviceError("an array names stream 0, which is ambiguous: 1 is the default stream, 2 that of the thread")
    if writer is not None and (stream is None or writer != stream.handle):
        waiting = stream or gpu.stream()
        gpu.order_streams(writer, waiting.handle)
        if stream is None:
            waiting.synchronize()
    pointer, is_readonly = interface["data"]
    return DeviceArray(pointer or 0, shape, dtype, array, gpu, stream, bool(is_readonly), writer)
