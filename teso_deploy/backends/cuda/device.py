"""Memory, streams and kernels of one NVIDIA GPU, independent of the library that talks to the driver.

Two libraries are supported: ``cuda-core`` (extra ``cuda``, the default) and PyCUDA (extra ``pycuda``). Both use the
device's *primary* context, as torch, TensorRT and ONNX Runtime do, so that memory and streams can be shared with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

CudaLibrary = Literal["cuda-core", "pycuda"]
#: An argument of a kernel: a Python int for a device pointer, otherwise a NumPy scalar of the parameter's type.
KernelArgument = int | np.generic


class Memory(Protocol):
    """A block of device memory, freed with :meth:`close` or when nothing refers to it any more."""

    @property
    def pointer(self) -> int:
        """The address of the block on the device."""

    @property
    def nbytes(self) -> int:
        """The size of the block in bytes."""

    def close(self) -> None:
        """Free the block; a second call does nothing. No queued work may still use the block."""


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Wait on the host until the stream has reached this point."""

    def milliseconds_since(self, earlier: Event) -> float:
        """Return the time between two points that were reached. Both must have been recorded with ``is_timed``."""


class Stream(Protocol):
    """A queue of work that runs in order, in parallel with other streams. It is never the default stream."""

    @property
    def handle(self) -> int:
        """``cudaStream_t`` / ``CUstream`` as an integer, for other libraries."""

    def synchronize(self) -> None:
        """Wait on the host until everything that was queued has run."""

    def record(self, is_timed: bool = False) -> Event:
        """Record an event that happens when all work that is queued now has run."""

    def wait_for(self, event: Event) -> None:
        """Make work that is queued after the call run after ``event``; the host does not wait."""

    def capture(self) -> AbstractContextManager[Graph]:
        """Record work that is queued inside the block without running it.

        After the block, the graph can be launched.
        """


class Graph(Protocol):
    """A recorded sequence of kernels and copies, launched as one."""

    def launch(self, stream: Stream) -> None:
        """Queue it. Raises :class:`DeviceError` inside the block that records it."""


class Module(Protocol):
    """Compiled kernels."""

    def launch(
        self,
        kernel: str,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[KernelArgument],
        stream: Stream,
    ) -> None:
        """Queue a kernel.

        Args:
            kernel: Its name, of an ``extern "C"`` function.
            grid: Number of blocks along each axis.
            block: Number of threads of a block along each axis.
            arguments: Its arguments in order.
            stream: The stream that runs it.

        Raises:
            DeviceError: There is no kernel of that name.
        """


class Device(Protocol):
    """One GPU. Every failure of the driver is a :class:`DeviceError` (out of memory: :class:`DeviceMemoryError`)."""

    @property
    def library(self) -> CudaLibrary:
        """The library that talks to the driver."""

    @property
    def index(self) -> int:
        """The GPU's number, as CUDA counts them."""

    @property
    def name(self) -> str:
        """Its name: ``NVIDIA H200``."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor): (9, 0)."""

    @property
    def driver_version(self) -> tuple[int, int]:
        """The newest CUDA that the driver supports: (13, 0)."""

    def activate(self) -> None:
        """Make its primary context current in the calling thread, for libraries that use the current context.

        Our own calls do not need this, and restore the context that was current before.
        """

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total bytes."""

    def allocate(self, nbytes: int) -> Memory:
        """Allocate device memory, aligned to at least 256 bytes.

        0 bytes have a valid address as well. This and :meth:`Memory.close` may wait for the GPU.

        Raises:
            DeviceMemoryError: The memory does not suffice; the message says how much is free.
        """

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate an array (C order) in page-locked host memory, so that copies run in parallel with the host."""

    def stream(self) -> Stream:
        """Make a stream."""

    def order_streams(self, earlier: int, later: int) -> None:
        """Make work that is queued on ``later`` after the call run after the work that was queued on ``earlier``.

        The host does not wait. Streams are given by their handles, so that they may belong to other libraries; 1 and 2
        are CUDA's default streams.
        """

    def copy_in(self, memory: int, array: NDArray[Any], stream: Stream) -> None:
        """Queue a copy of a host array to a device address.

        If the array's memory is not pinned, the driver copies it to pinned memory first.

        Args:
            memory: The device address.
            array: C-contiguous host array. It must not change until the stream has reached the copy.
            stream: The stream that copies.
        """

    def copy_out(self, array: NDArray[Any], memory: int, stream: Stream) -> None:
        """Queue a copy from a device address to a host array.

        Args:
            array: C-contiguous host array, which is filled.
            memory: The device address.
            stream: The stream that copies.
        """

    def copy_on(self, target: int, source: int, *, nbytes: int, stream: Stream) -> None:
        """Queue a copy from one device address to another.

        Args:
            target: The device address that is written.
            source: The device address that is read.
            nbytes: Number of bytes.
            stream: The stream that copies.
        """

    def module(self, code: bytes) -> Module:
        """Load a cubin, a fatbin or PTX. Raises :class:`DeviceError` if it has no code for this GPU."""
