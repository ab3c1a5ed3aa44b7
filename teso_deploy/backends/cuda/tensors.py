"""Tensors that stay on the GPU and inputs that are copied to it, shared by the slots of GPU engines."""

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

#: The key under which a tensor keeps its writer. The other keys are readers.
_WRITER = object()


class DeviceTensor:
    """An array in device memory that is written repeatedly, with the events of its writer and its readers.

    Its content is complete after ``ready``, an event in the writer's stream. A reader on another stream waits for that
    event. The reader then calls :meth:`read_until` with the event after which the array may be written again. The
    memory is freed when nothing refers to the tensor and all work that was queued on it has run.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self.device = device
        self._memory: Memory = device.allocate(max(1, self.nbytes))
        self._uses: dict[Hashable, Event] = {}
        self._host: NDArray[Any] | None = None
        self._stream: Stream | None = None
        weakref.finalize(self, _free, self._memory, self._uses)

    @property
    def ready(self) -> Event | None:
        """The event after which its content is complete; None if it was never written."""
        return self._uses.get(_WRITER)

    @ready.setter
    def ready(self, event: Event) -> None:
        self._uses[_WRITER] = event

    @property
    def pointer(self) -> int:
        """The address of the tensor on the device, which never changes."""
        return self._memory.pointer

    def wait_ready(self, stream: Stream) -> None:
        """Make work that is queued on ``stream`` after the call wait until the content is complete."""
        if self.ready is not None:
            stream.wait_for(self.ready)

    def read_until(self, reader: Hashable, event: Event) -> None:
        """Note that ``reader`` has finished with the tensor after ``event``."""
        self._uses[reader] = event

    def wait_unread(self, stream: Stream) -> None:
        """Make work that is queued on ``stream`` after the call wait until all readers have finished."""
        for reader, event in self._uses.items():
            if reader is not _WRITER:
                stream.wait_for(event)

    def numpy(self) -> NDArray[Any]:
        """Copy the content to page-locked host memory and return a view; each call overwrites the last view."""
        if self._host is None or self._stream is None:
            self._host = self.device.allocate_pinned(self.shape, self.dtype)
            self._stream = self.device.stream()
        self.wait_ready(self._stream)
        self.device.copy_out(self._host, self.pointer, self._stream)
        self._stream.synchronize()
        return self._host

    def array(self) -> DeviceArray:
        """Share the memory with other libraries by DLPack or the CUDA array interface; waits until it is ready.

        The next writer does not wait for those libraries. They have to finish before the slot that returned the tensor
        runs again, or take a copy.
        """
        if self.ready is not None:
            self.ready.synchronize()
        return DeviceArray(self.pointer, self.shape, self.dtype, owner=self, device=self.device)


def _free(memory: Memory, uses: dict[Hashable, Event]) -> None:
    with suppress(DeviceError):  # a stream that failed has no work left
        for event in uses.values():
            event.synchronize()
    memory.close()


def _release(staging: list[NDArray[Any]], uses: dict[Hashable, Event]) -> None:
    with suppress(DeviceError):
        if _WRITER in uses:
            uses[_WRITER].synchronize()
    staging.clear()


class HostInput:
    """A tensor on the device that is filled from host arrays through page-locked memory, on its own stream."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike, *, stream: Stream) -> None:
        self.tensor = DeviceTensor(device, shape, dtype)
        self._staging = device.allocate_pinned(shape, dtype)
        self._stream = stream
        weakref.finalize(self, _release, [self._staging], self.tensor._uses)  # a copy from it may still run

    def fill(self, array: NDArray[Any]) -> DeviceTensor:
        """Queue the copy of an array of this shape; the array may be changed as soon as this returns."""
        if self.tensor.ready is not None:
            self.tensor.ready.synchronize()  # the previous copy from the staging memory is done
        np.copyto(self._staging, array, casting="same_kind")
        self.tensor.wait_unread(self._stream)
        self.tensor.device.copy_in(self.tensor.pointer, self._staging, self._stream)
        self.tensor.ready = self._stream.record()
        return self.tensor
