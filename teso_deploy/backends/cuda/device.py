"""Memory, streams and kernels of one NVIDIA GPU, whichever library talks to the driver.

Two libraries do: ``cuda-core`` (extra ``cuda``, the default) and PyCUDA (extra ``pycuda``). Both work on the
device's *primary* context, which is the one that torch, TensorRT and ONNX Runtime use, so that memory and
streams may be handed from one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

CudaLibrary = Literal["cuda-core", "pycuda"]
#: Of a kernel: a device pointer is given as a Python int, anything else as a NumPy scalar of the parameter's type.
KernelArgument = int | np.generic


class Memory(Protocol):
    """A block of device memory, freed with :meth:`close` or when nothing refers to it any more."""

    @property
    def pointer(self) -> int:
        """Its address on the device."""

    @property
    def nbytes(self) -> int:
        """Its size."""

    def close(self) -> None:
        """Give it back; a second time does nothing. Nobody may be using it."""


class Event(Protocol):
    """A place in a stream."""

    def synchronize(self) -> None:
        """Wait on the host until the stream has come here."""

    def milliseconds_since(self, earlier: Event) -> float:
        """Time between two places that have been reached; both with ``is_timed``."""


class Stream(Protocol):
    """What is queued here runs in order, beside other streams. A stream of its own, not the default one."""

    @property
    def handle(self) -> int:
        """``cudaStream_t`` / ``CUstream`` as an integer, for other libraries."""

    def synchronize(self) -> None:
        """Wait on the host until everything that was queued has run."""

    def record(self, is_timed: bool = False) -> Event:
        """An event behind what was queued so far."""

    def wait_for(self, event: Event) -> None:
        """What is queued from now on runs behind ``event``; the host does not wait."""

    def capture(self) -> AbstractContextManager[Graph]:
        """What is queued inside the block is recorded and not run; when it ends, the graph can be launched."""


class Graph(Protocol):
    """A recorded sequence of kernels and copies, launched as one."""

    def launch(self, stream: Stream) -> None:
        """Queue it. Raises :class:`DeviceError` inside the block that records it."""


class Module(Protocol):
    """Kernels that were compiled."""

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[KernelArgument],
        stream: Stream,
    ) -> None:
        """Queue an ``extern "C"`` kernel. Raises :class:`DeviceError` where there is none of that name."""


class Device(Protocol):
    """One GPU. Every failure of the driver is a :class:`DeviceError` (out of memory: :class:`DeviceMemoryError`)."""

    @property
    def library(self) -> CudaLibrary:
        """What talks to the driver."""

    @property
    def index(self) -> int:
        """Of the GPU, as CUDA counts them."""

    @property
    def name(self) -> str:
        """Its name: ``NVIDIA H200``."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor): (9, 0)."""

    @property
    def driver_version(self) -> tuple[int, int]:
        """The newest CUDA that the driver knows: (13, 0)."""

    def activate(self) -> None:
        """Make its primary context the calling thread's: for libraries that take whatever is current.

        Our own calls need none of it, and leave current what was current before.
        """

    def memory_info(self) -> tuple[int, int]:
        """Bytes that are free, and that there are in all."""

    def allocate(self, nbytes: int) -> Memory:
        """Device memory, aligned to 256 bytes at least; 0 bytes are an address, too.

        Raises :class:`DeviceMemoryError`, with what is free. Both this and :meth:`Memory.close` may wait for the GPU.
        """

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A new array in page-locked host memory, which copies need to run beside the host. C order."""

    def stream(self) -> Stream:
        """A new stream."""

    def order_streams(self, earlier: int, later: int) -> None:
        """What is queued on ``later`` from now on runs behind what was queued on ``earlier``; the host does not wait.

        By their handles, so that they may be of other libraries; 1 and 2 are CUDA's default streams.
        """

    def copy_in(self, memory: int, array: NDArray[Any], stream: Stream) -> None:
        """Queue a copy of a C-contiguous host array to a device address.

        The array must stay as it is until the stream has come there. From memory that is not pinned the driver
        makes a copy first.
        """

    def copy_out(self, array: NDArray[Any], memory: int, stream: Stream) -> None:
        """Queue a copy from a device address into a C-contiguous host array, which it fills."""

    def copy_on(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Queue a copy from one device address to another."""

    def module(self, code: bytes) -> Module:
        """Load a cubin, a fatbin or PTX. Raises :class:`DeviceError` where it holds nothing for this GPU."""
