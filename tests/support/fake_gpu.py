"""A GPU that works as late as possible: queued work runs only when a caller waits for it.

Code that forgets to wait for an event always reads old values here. A real GPU would show them only sometimes. Memory
and kernels are those of a :class:`HostDevice`; without one there are no kernels.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda.device import KernelArgument
from teso_deploy.errors import DeviceError, DeviceMemoryError


class PlainMemory:
    """Device memory in host memory. It is overwritten at its release, and must not be read or written afterwards."""

    def __init__(self, device: FakeDevice, nbytes: int) -> None:
        self._bytes = np.full(nbytes, 0xA5, np.uint8)
        self._device, self.nbytes = device, nbytes
        self.pointer: int = self._bytes.ctypes.data
        device.used_bytes += nbytes

    def close(self) -> None:
        if self.pointer not in self._device.freed:
            self._device.used_bytes -= self.nbytes
            self._device.freed[self.pointer] = self._bytes  # kept, so that no other block gets its address
            self._bytes[:] = 0xDD

    def __del__(self) -> None:
        self.close()


@dataclass(eq=False)
class FakeEvent:
    stream: FakeStream
    position: int

    def synchronize(self) -> None:
        self.stream.run_until(self.position)

    def milliseconds_since(self, earlier: FakeEvent) -> float:
        return 1.0


@dataclass(eq=False)
class FakeGraph:
    work: list[Callable[[], None]] = field(default_factory=list)
    is_open: bool = True

    def launch(self, stream: FakeStream) -> None:
        if self.is_open:
            raise DeviceError("the graph is still being recorded")
        for one in self.work:
            stream.queue(one)
        stream.device.graph_launches += 1


@dataclass(eq=False)
class FakeStream:
    device: FakeDevice
    handle: int
    queued: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0
    recording: FakeGraph | None = None

    def queue(self, work: Callable[[], None]) -> None:
        (self.recording.work if self.recording is not None else self.queued).append(work)

    def run_until(self, position: int) -> None:
        if self.recording is not None:
            raise DeviceError("a stream that is being recorded can't be waited for")
        while self.done < position:
            self.done += 1
            self.queued[self.done - 1]()

    def synchronize(self) -> None:
        self.run_until(len(self.queued))

    def record(self, is_timed: bool = False) -> FakeEvent:
        assert self.recording is None
        return FakeEvent(self, len(self.queued))

    def wait_for(self, event: FakeEvent) -> None:
        assert self.recording is None
        self.queue(event.synchronize)

    @contextmanager
    def capture(self) -> Iterator[FakeGraph]:
        if self.done < len(self.queued):
            raise DeviceError("there is work in the stream")
        self.recording = graph = FakeGraph()
        try:
            yield graph
        finally:
            self.recording = None
            graph.is_open = False


class FakeDevice:
    """A fake of ``backends/cuda/device.py``. ``host``: a HostDevice that runs the kernels."""

    library = "cuda-core"
    index = 0
    driver_version = (13, 0)

    def __init__(
        self,
        host: Any = None,
        name: str = "Fake 4090",
        compute_capability: tuple[int, int] = (8, 9),
        total_bytes: int = 8 << 30,
    ) -> None:
        self.host, self.name, self.compute_capability = host, name, compute_capability
        self.total_bytes, self.used_bytes = total_bytes, 0
        self.pinned_blocks: dict[int, NDArray[np.uint8]] = {}
        self.freed: dict[int, NDArray[Any]] = {}
        self.streams: dict[int, FakeStream] = {}
        self.graph_launches = 0

    def activate(self) -> None:
        pass

    def memory_info(self) -> tuple[int, int]:
        return self.total_bytes - self.used_bytes, self.total_bytes

    def allocate(self, nbytes: int) -> Any:
        if self.used_bytes + nbytes > self.total_bytes:
            raise DeviceMemoryError(f"no {nbytes} bytes")
        return self.host.allocate(nbytes) if self.host is not None else PlainMemory(self, nbytes)

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array whose content is overwritten after its release, as if another owner had the memory."""
        block = np.zeros(max(1, math.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
        array = np.frombuffer(block.data, dtype, math.prod(shape)).reshape(shape)
        self.pinned_blocks[array.ctypes.data] = block
        weakref.finalize(array.base if isinstance(array.base, np.ndarray) else array, block.fill, 0xDD)
        return array

    def stream(self) -> FakeStream:
        stream = FakeStream(self, len(self.streams) + 1)
        self.streams[stream.handle] = stream
        return stream

    def read(self, pointer: int, array: NDArray[Any]) -> None:
        """Read at once."""
        if self.host is not None:
            self.host.copy_out(array, pointer, None)
        else:
            assert pointer not in self.freed, "memory that was given back is read"
            ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def write(self, pointer: int, array: NDArray[Any]) -> None:
        """Write at once."""
        if self.host is not None:
            self.host.copy_in(pointer, array, None)
        else:
            assert pointer not in self.freed, "memory that was given back is written"
            ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def copy_in(self, memory: int, array: NDArray[Any], stream: FakeStream) -> None:
        assert array.flags.c_contiguous
        block = self.pinned_blocks.get(array.ctypes.data)  # a reference to it would keep the array alive
        source = array if block is None else block[: array.nbytes].view(array.dtype).reshape(array.shape)
        stream.queue(lambda: self.write(memory, source))

    def copy_out(self, array: NDArray[Any], memory: int, stream: FakeStream) -> None:
        assert array.flags.c_contiguous
        stream.queue(lambda: self.read(memory, array))

    def copy_on(self, target: int, source: int, nbytes: int, stream: FakeStream) -> None:
        def copy() -> None:
            between = np.empty(nbytes, np.uint8)
            self.read(source, between)
            self.write(target, between)

        stream.queue(copy)

    def order_streams(self, earlier_handle: int, later_handle: int) -> None:
        self.streams[later_handle].wait_for(self.streams[earlier_handle].record())

    def module(self, code: bytes) -> FakeDevice:
        return self

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[KernelArgument],
        stream: FakeStream,
    ) -> None:
        stream.queue(lambda: self.host.launch(kernel, grid, block, arguments, None))
