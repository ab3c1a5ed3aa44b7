"""Arrays in device memory, shared with torch, CuPy and other libraries by DLPack or the CUDA array interface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda import dlpack
from teso_deploy.backends.cuda.device import Device, Stream
from teso_deploy.backends.cuda.host_views import make_host_view
from teso_deploy.errors import DeviceError

#: Numbers of streams in DLPack and the CUDA array interface: the legacy default stream, and no stream.
_LEGACY_STREAM, _NO_STREAM = 1, -1


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """An array in C order at an address. It is a :class:`~teso_deploy.backends.engine.Tensor`.

    Attributes:
        pointer: The address.
        shape: The shape.
        dtype: The type of the elements.
        owner: The object that keeps the memory alive.
        device: The GPU; None for memory of the host.
        stream: The stream that writes the content; None if the content is already complete.
        is_readonly: Whether writing is forbidden.
        owner_stream: Handle of the stream that the owner works on, if it is known. Before the owner may write the array
            again, that stream has to wait for queued reads (:meth:`Device.order_streams`). If it is unknown, the host
            has to wait.

    Raises:
        TypeError: The dtype holds Python objects.
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
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_on_host(self) -> bool:
        """Whether its memory is the host's."""
        return self.device is None

    def contiguous(self, dtype: DTypeLike) -> DeviceArray:
        """Return the array unchanged. Raises :class:`DeviceError` for another dtype, because nothing is converted."""
        if self.dtype != np.dtype(dtype):
            raise DeviceError(f"an array of {self.dtype} was given where {np.dtype(dtype)} is needed: convert it first")
        return self

    def numpy(self) -> NDArray[Any]:
        """Wait for the stream; return a copy of device memory, or a view of host memory."""
        if self.device is None:
            return make_host_view(self.pointer, self.shape, self.dtype, owner=self.owner, is_readonly=self.is_readonly)
        host = np.empty(self.shape, self.dtype)
        stream = self.stream or self.device.stream()
        self.device.copy_out(host, self.pointer, stream)
        stream.synchronize()
        return host

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface. AttributeError for host memory and for types that NumPy does not have."""
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
        """DLPack's (type, number) of the device."""
        return (dlpack.CPU, 0) if self.device is None else (dlpack.CUDA, self.device.index)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Make a DLPack capsule.

        Args:
            stream: Work that is queued on this stream after the call sees the content. Default: the legacy default
                stream.
            max_version: The newest DLPack version (major, minor) that the consumer supports. Default: before 1.0.
            dl_device: DLPack's (type, number) of the device that the consumer wants. Default: this array's device.
            copy: True for a copy, False to refuse one. Default: no copy is made.

        Raises:
            BufferError: The array can't be exported in this way.
        """
        is_versioned = max_version is not None and max_version[0] >= 1
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            if tuple(dl_device) != (dlpack.CPU, 0):
                raise BufferError(f"an array on {self.__dlpack_device__()} can't be exported to {dl_device}")
            if copy is False:
                raise BufferError("an array on a GPU can't be read on the host without a copy")
            return _is_on_host(self.numpy())._export(is_versioned, is_copied=True)
        if self.device is None:
            if stream is not None:
                raise BufferError("there are no streams on the host: stream has to be None")
            if copy:
                return _is_on_host(self.numpy().copy())._export(is_versioned, is_copied=True)
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
        self.device.copy_on(memory.pointer, self.pointer, nbytes=self.nbytes, stream=stream)
        if reader == _NO_STREAM:
            stream.synchronize()
        else:
            self.device.order_streams(stream.handle, reader)
        # This array is kept as well: the copy may still run when the reader has released the result.
        return DeviceArray(memory.pointer, self.shape, self.dtype, (memory, self), self.device)

    def _export(self, is_versioned: bool, is_copied: bool = False) -> Any:
        block = dlpack.Block(
            self.pointer, self.__dlpack_device__(), self.shape, self.dtype, None, self.is_readonly, self.owner
        )
        return dlpack.export(block, is_versioned, is_copied)


def _is_on_host(array: NDArray[Any]) -> DeviceArray:
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, array)


def take_array(array: object, device: Device | None = None, stream: Stream | None = None) -> DeviceArray:
    """Take an array of another library without a copy.

    The array's owner does not learn how long it is read. See :attr:`DeviceArray.owner_stream`, which the CUDA array
    interface may name and DLPack never names.

    Args:
        array: Any object with DLPack or the CUDA array interface.
        device: The GPU that is used. Arrays in host memory are accepted too (:attr:`DeviceArray.is_on_host`).
        stream: Work that is queued on it after the call sees the content. Default: the host waits for the content.

    Returns:
        The array, on the same memory.

    Raises:
        DeviceError: The array is on another GPU, not in C order, of a type that NumPy does not have, or has neither
            interface.
    """
    # Try DLPack first: it orders the streams on both sides, while torch's CUDA array interface names no stream.
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _take_dlpack(array, device, stream)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise DeviceError(
            f"{type(array).__name__} offers neither DLPack nor the CUDA array interface: convert it first"
        )
    return _take_interface(array, interface, device=device, stream=stream)


def _check_device(device: Device | None, index: int | None = None) -> Device:
    if device is None or index not in (None, device.index):
        where = "a GPU" if index is None else f"GPU {index}"
        here = "no GPU was opened for it" if device is None else f"GPU {device.index} is used: move it there first"
        raise DeviceError(f"an array is on {where}, and {here}")
    return device


def _check_order(shape: tuple[int, ...], strides: tuple[int, ...] | None, step: int) -> None:
    """Raise :class:`DeviceError` if an array is not in C order; ``step``: the stride of the last axis."""
    if strides is None or 0 in shape:
        return
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            raise DeviceError("an array is not in C order: make it contiguous first")
        step *= size


def _take_dlpack(array: Any, device: Device | None, stream: Stream | None) -> DeviceArray:
    kind, index = (int(number) for number in array.__dlpack_device__())
    how: dict[str, Any] = {}
    if kind in (dlpack.CPU, dlpack.CUDA_PINNED):
        gpu = None
    elif kind in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        # Managed memory does not belong to one GPU.
        gpu = _check_device(device, index if kind == dlpack.CUDA else None)
        waiting = stream or gpu.stream()
        how["stream"] = waiting.handle
    else:
        raise DeviceError(f"an array's device is not an NVIDIA GPU (DLPack's type {kind}): move it to one first")
    try:
        try:
            capsule = array.__dlpack__(max_version=(1, 0), **how)
        except TypeError:  # a library from before DLPack 1.0
            capsule = array.__dlpack__(**how)
        block = dlpack.take(capsule)
    except (BufferError, RuntimeError) as error:
        raise DeviceError(f"{type(array).__name__} can't be shared by DLPack: {error}") from error
    _check_order(block.shape, block.strides, 1)
    if gpu is not None and stream is None:
        waiting.synchronize()
    here = stream if gpu else None
    theirs = array.stream.handle if gpu and isinstance(array, DeviceArray) and array.stream else None
    return DeviceArray(block.pointer, block.shape, block.dtype, block.owner, gpu, here, block.is_readonly, theirs)


def _take_interface(
    array: object, interface: dict[str, Any], *, device: Device | None, stream: Stream | None
) -> DeviceArray:
    gpu = _check_device(device)  # the interface does not say on which GPU it is
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    if interface.get("mask") is not None:
        raise DeviceError("an array has a mask, which is not supported: give it without the mask")
    strides = interface.get("strides")
    _check_order(shape, None if strides is None else tuple(strides), dtype.itemsize)
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
