"""A GPU through PyCUDA, on the device's primary context; ``pycuda.autoinit`` would create another context.

PyCUDA keeps a stack of contexts for each thread. If it frees an object in a thread other than the context's, it leaks
the object, unless the context is current there. So every PyCUDA object is released while the context is pushed.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda import device as protocol
from teso_deploy.backends.cuda import libcuda
from teso_deploy.backends.cuda.host_views import make_host_view
from teso_deploy.backends.cuda.refusals import (
    check_driver,
    check_host_array,
    make_no_driver_error,
    make_no_gpu_error,
    make_no_such_gpu_error,
    make_other_library_error,
    make_out_of_memory_error,
    make_out_of_pinned_memory_error,
)
from teso_deploy.errors import DeviceError, DeviceMemoryError, MissingExtraError
from teso_deploy.requirements import write_install_command

_STREAM_NON_BLOCKING = 1
_EVENT_DEFAULT, _EVENT_DISABLE_TIMING = 0, 2
#: Kernel arguments are passed as bits: PyCUDA does not pack every NumPy type (bool, float16).
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def open_with_pycuda(index: int) -> PycudaDevice:
    """Open the GPU ``index``. Raises :class:`MissingExtraError`, :class:`DeviceError`."""
    try:
        import pycuda.driver as driver
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"PyCUDA can't be used ({error}): {write_install_command('pycuda')}") from error
    except ImportError as error:
        if "libcuda" in str(error):
            raise make_no_driver_error() from error
        raise DeviceError(
            f"PyCUDA was not compiled for the installed NVIDIA driver ({error}): update the driver, "
            "or compile it again (pip install --force-reinstall --no-cache-dir --no-binary :all: --no-deps pycuda)"
        ) from error
    version = driver.get_driver_version()
    check_driver((version // 1000, version % 1000 // 10), driver.get_version()[0], "this PyCUDA")
    try:
        driver.init()
        count = driver.Device.count()
        if not 0 <= index < count:
            raise make_no_such_gpu_error(index, count) if count else make_no_gpu_error("it counts none")
        gpu = driver.Device(index)
        return PycudaDevice(index, gpu, _Current(driver, gpu.retain_primary_context(), gpu.name()))
    except driver.Error as error:
        raise make_no_gpu_error(str(error)) from error


class _Current:
    """A context manager that makes the device's context current.

    Failures of the driver become our errors. Any thread may enter it.
    """

    def __init__(self, driver: Any, context: Any, gpu: str) -> None:
        self.driver, self._context, self.gpu = driver, context, gpu
        self.libcuda = libcuda.Libcuda()
        weakref.finalize(self, _detach, context, self.libcuda)

    def __enter__(self) -> None:
        try:
            self._context.push()
        except self.driver.Error as error:
            raise self._refusal(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        self.driver.Context.pop()
        if isinstance(error, self.driver.Error):
            raise self._refusal(error) from error
        return False

    def _refusal(self, error: Exception) -> DeviceError:
        kind = DeviceMemoryError if isinstance(error, self.driver.MemoryError) else DeviceError
        return kind(f"{self.gpu} refused: {error}")


def _detach(context: Any, driver: libcuda.Libcuda) -> None:
    """Release the primary context.

    PyCUDA makes the context current to release it, and leaves it current.
    """
    before = driver.current_context()
    context.detach()
    with suppress(DeviceError):
        driver("cuCtxSetCurrent", before)


class _Held:
    """Keeps a PyCUDA object and releases it while the context is current.

    The last reference may end in any thread.
    """

    def __init__(self, current: _Current, thing: Any) -> None:
        self._things = [thing]
        self.let_go = weakref.finalize(self, _release, current, self._things)

    @property
    def thing(self) -> Any:
        return self._things[0]


def _release(current: _Current, things: list[Any]) -> None:
    with current:
        things.clear()


class _Memory(_Held):
    """A :class:`Memory`. It also owns the block of an array in page-locked memory."""

    def __init__(self, current: _Current, thing: Any, pointer: int, *, nbytes: int) -> None:
        super().__init__(current, thing)
        self.pointer, self.nbytes = pointer, nbytes

    def close(self) -> None:
        """Free the block; a second call does nothing."""
        self.let_go()


class _Event(_Held):
    def __init__(self, current: _Current, event: Any) -> None:
        super().__init__(current, event)
        self._current = current

    def synchronize(self) -> None:
        with self._current:
            self.thing.synchronize()

    def milliseconds_since(self, earlier: protocol.Event) -> float:
        if not isinstance(earlier, _Event):
            raise make_other_library_error("event", "PyCUDA")
        with self._current:
            return float(self.thing.time_since(earlier.thing))


class _Stream(_Held):
    def __init__(self, current: _Current, stream: Any) -> None:
        super().__init__(current, stream)
        self._current = current
        self.handle = int(stream.handle)

    def synchronize(self) -> None:
        with self._current:
            self.thing.synchronize()

    def record(self, is_timed: bool = False) -> _Event:
        with self._current:
            event = self._current.driver.Event(_EVENT_DEFAULT if is_timed else _EVENT_DISABLE_TIMING)
            return _Event(self._current, event.record(self.thing))

    def wait_for(self, event: protocol.Event) -> None:
        if not isinstance(event, _Event):
            raise make_other_library_error("event", "PyCUDA")
        with self._current:
            self.thing.wait_for_event(event.thing)

    def capture(self) -> AbstractContextManager[protocol.Graph]:
        return libcuda.capture(self._current.libcuda, self._current, self.handle)


class _Module(_Held):
    def __init__(self, current: _Current, module: Any) -> None:
        super().__init__(current, module)
        self._current = current
        self._kernels: dict[str, Any] = {}

    def launch(
        self,
        kernel: str,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[protocol.KernelArgument],
        stream: protocol.Stream,
    ) -> None:
        packed = [
            np.uint64(argument) if isinstance(argument, int) else argument.view(_BITS[argument.itemsize])
            for argument in arguments
        ]
        with self._current:
            if kernel not in self._kernels:
                try:
                    self._kernels[kernel] = self.thing.get_function(kernel)
                except self._current.driver.Error as error:
                    raise DeviceError(f"there is no kernel {kernel} in this module: {error}") from error
            self._kernels[kernel](*packed, grid=grid, block=block, stream=_pycuda(stream))


def _pycuda(stream: protocol.Stream) -> Any:
    if not isinstance(stream, _Stream):
        raise make_other_library_error("stream", "PyCUDA")
    return stream.thing


class PycudaDevice:
    """A :class:`Device` that uses PyCUDA. :func:`open_with_pycuda` makes it."""

    library: protocol.CudaLibrary = "pycuda"

    def __init__(self, index: int, gpu: Any, current: _Current) -> None:
        self._current, self._driver = current, current.driver
        self.index, self.name = index, current.gpu
        self.compute_capability: tuple[int, int] = gpu.compute_capability()
        version = self._driver.get_driver_version()
        self.driver_version: tuple[int, int] = (version // 1000, version % 1000 // 10)

    def activate(self) -> None:
        """Make the primary context current in this thread; see :meth:`Device.activate`."""
        with self._current:
            context = self._current.libcuda.current_context()
        self._current.libcuda("cuCtxSetCurrent", context)

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total bytes."""
        with self._current:
            free, total = self._driver.mem_get_info()
        return free, total

    def allocate(self, nbytes: int) -> _Memory:
        """Allocate device memory; see :meth:`Device.allocate`."""
        with self._current:
            try:
                allocation = self._driver.mem_alloc(max(1, nbytes))
            except self._driver.MemoryError as error:
                free, total = self.memory_info()
                raise make_out_of_memory_error(
                    self.name, asked_bytes=nbytes, free_bytes=free, total_bytes=total
                ) from error
            return _Memory(self._current, allocation, int(allocation), nbytes=nbytes)

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate an array in page-locked host memory; see :meth:`Device.allocate_pinned`."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._current:
            try:
                block = self._driver.pagelocked_empty(max(1, nbytes), np.uint8)
            except self._driver.MemoryError as error:
                raise make_out_of_pinned_memory_error(nbytes) from error
            owner = _Memory(self._current, block, block.ctypes.data, nbytes=nbytes)
            del block  # now only the owner refers to it: PyCUDA frees the block together with the owner
        return make_host_view(owner.pointer, shape, dtype, owner=owner)

    def stream(self) -> _Stream:
        """Make a stream."""
        with self._current:
            return _Stream(self._current, self._driver.Stream(_STREAM_NON_BLOCKING))

    def order_streams(self, earlier: int, later: int) -> None:
        """Make one stream wait for another; see :meth:`Device.order_streams`."""
        with self._current:
            libcuda.order_streams(self._current.libcuda, earlier, later)

    def copy_in(self, memory: int, array: NDArray[Any], stream: protocol.Stream) -> None:
        """Queue a copy of a host array to a device address; see :meth:`Device.copy_in`.

        Args:
            memory: The device address.
            array: C-contiguous host array. It must not change until the stream has reached the copy.
            stream: The stream that copies.
        """
        check_host_array(array, is_target=False)
        queue = _pycuda(stream)
        if array.nbytes:
            with self._current:
                self._driver.memcpy_htod_async(memory, array.reshape(-1).view(np.uint8), queue)

    def copy_out(self, array: NDArray[Any], memory: int, stream: protocol.Stream) -> None:
        """Queue a copy from a device address to a host array; see :meth:`Device.copy_out`.

        Args:
            array: C-contiguous host array, which is filled.
            memory: The device address.
            stream: The stream that copies.
        """
        check_host_array(array, is_target=True)
        queue = _pycuda(stream)
        if array.nbytes:
            with self._current:
                self._driver.memcpy_dtoh_async(array.reshape(-1).view(np.uint8), memory, queue)

    def copy_on(self, target: int, source: int, *, nbytes: int, stream: protocol.Stream) -> None:
        """Queue a copy from one device address to another; see :meth:`Device.copy_on`.

        Args:
            target: The device address that is written.
            source: The device address that is read.
            nbytes: Number of bytes.
            stream: The stream that copies.
        """
        queue = _pycuda(stream)
        if nbytes:
            with self._current:
                self._driver.memcpy_dtod_async(target, source, nbytes, queue)

    def module(self, code: bytes) -> _Module:
        """Load a cubin, a fatbin or PTX; see :meth:`Device.module`."""
        with self._current:
            try:
                return _Module(self._current, self._driver.module_from_buffer(code))
            except self._driver.Error as error:
                raise DeviceError(f"these kernels can't be loaded on {self.name}: {error}") from error
