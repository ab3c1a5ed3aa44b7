"""Outputs that stay on the GPU, and inputs that come to it: what the slots of GPU engines have in common."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda.arrays import DeviceArray
from teso_deploy.backends.cuda.device import Device, Event, Memory, Stream


class DeviceTensor:
    """An array in device memory that is written again and again, with who writes and who reads it.

    ``ready``: the place in its writer's stream behind which it holds what it should. Whoever reads it on another
    stream waits for that, and says with :meth:`read_until` until when it may not be written again.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self.device = device
        self.ready: Event | None = None
        self._memory: Memory = device.allocate(max(1, self.nbytes))
        self._readers: dict[Hashable, Event] = {}
        self._host: NDArray[Any] | None = None
        self._stream: Stream | None = None

    @property
    def pointer(self) -> int:
        """Its address on the device; the same as long as it lives."""
        return self._memory.pointer

    def wait_ready(self, stream: Stream) -> None:
        """What is queued on ``stream`` from now on may read it."""
        if self.ready is not None:
            stream.wait_for(self.ready)

    def read_until(self, reader: Hashable, event: Event) -> None:
        """``reader`` is done with it behind ``event``."""
        self._readers[reader] = event

    def wait_unread(self, stream: Stream) -> None:
        """What is queued on ``stream`` from now on may write it."""
        for event in self._readers.values():
            stream.wait_for(event)

    def numpy(self) -> NDArray[Any]:
        """See :meth:`Tensor.numpy`: a view of page-locked host memory, filled anew by each call."""
        if self._host is None or self._stream is None:
            self._host = self.device.pinned(self.shape, self.dtype)
            self._stream = self.device.stream()
        self.wait_ready(self._stream)
        self.device.copy_out(self._host, self.pointer, self._stream)
        self._stream.synchronize()
        return self._host

    def array(self) -> DeviceArray:
        """The same memory for other libraries, by DLPack or the CUDA array interface; waits until it is ready."""
        if self.ready is not None:
            self.ready.synchronize()
        return DeviceArray(self.pointer, self.shape, self.dtype, owner=self, device=self.device)


class HostInput:
    """Room on the device for an array of the host: through page-locked memory, on a stream of its own."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike, stream: Stream) -> None:
        self.tensor = DeviceTensor(device, shape, dtype)
        self._staging = device.pinned(shape, dtype)
        self._stream = stream

    def fill(self, array: NDArray[Any]) -> DeviceTensor:
        """Queue the copy of an array of this shape; it may be changed as soon as this returns."""
        if self.tensor.ready is not None:
            self.tensor.ready.synchronize()  # the copy before this one has left the staging memory
        np.copyto(self._staging, array, casting="same_kind")
        self.tensor.wait_unread(self._stream)
        self.tensor.device.copy_in(self.tensor.pointer, self._staging, self._stream)
        self.tensor.ready = self._stream.record()
        return self.tensor
