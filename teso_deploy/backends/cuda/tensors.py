"""Outputs that stay on the GPU, and inputs that come to it: what the slots of GPU engines have in common."""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda.arrays import DeviceArray
from teso_deploy.backends.cuda.device import Device, Event, Memory, Stream
from teso_deploy.errors import DeviceError

#: Among the readers of a tensor, whoever writes it.
_WRITER = object()


class DeviceTensor:
    """An array in device memory that is written again and again, with who writes and who reads it.

    ``ready``: the place in its writer's stream behind which it holds what it should. Whoever reads it on another
    stream waits for that, and says with :meth:`read_until` until when it may not be written again. Its memory goes
    back when nobody holds it, and everything that was queued on it has run.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self.device = device
        self._memory: Memory = device.allocate(max(1, self.nbytes))
        self._uses: dict[Hashable, Event] = {}
        self._host: NDArray[Any] | None = None
        self._stream: Stream | None = None
        weakref.finalize(self, _give_back, self._memory, self._uses)

    @property
    def ready(self) -> Event | None:
        """Behind which it holds what it should; None: nobody has written it."""
        return self._uses.get(_WRITER)

    @ready.setter
    def ready(self, event: Event) -> None:
        self._uses[_WRITER] = event

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
        self._uses[reader] = event

    def wait_unread(self, stream: Stream) -> None:
        """What is queued on ``stream`` from now on may write it."""
        for reader, event in self._uses.items():
            if reader is not _WRITER:
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
        """The same memory for other libraries, by DLPack or the CUDA array interface; waits until it is ready.

        Its next writer does not know of them: they have to be done with it before the slot that gave it runs again,
        or take a copy.
        """
        if self.ready is not None:
            self.ready.synchronize()
        return DeviceArray(self.pointer, self.shape, self.dtype, owner=self, device=self.device)


def _give_back(memory: Memory, uses: dict[Hashable, Event]) -> None:
    with suppress(DeviceError):  # a stream that failed has nothing under way
        for event in uses.values():
            event.synchronize()
    memory.close()


def _let_go(staging: list[NDArray[Any]], uses: dict[Hashable, Event]) -> None:
    with suppress(DeviceError):
        if _WRITER in uses:
            uses[_WRITER].synchronize()
    staging.clear()


class HostInput:
    """Room on the device for an array of the host: through page-locked memory, on a stream of its own."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike, stream: Stream) -> None:
        self.tensor = DeviceTensor(device, shape, dtype)
        self._staging = device.pinned(shape, dtype)
        self._stream = stream
        weakref.finalize(self, _let_go, [self._staging], self.tensor._uses)  # a copy from it may be under way

    def fill(self, array: NDArray[Any]) -> DeviceTensor:
        """Queue the copy of an array of this shape; it may be changed as soon as this returns."""
        if self.tensor.ready is not None:
            self.tensor.ready.synchronize()  # the copy before this one has left the staging memory
        np.copyto(self._staging, array, casting="same_kind")
        self.tensor.wait_unread(self._stream)
        self.tensor.device.copy_in(self.tensor.pointer, self._staging, self._stream)
        self.tensor.ready = self._stream.record()
        return self.tensor
