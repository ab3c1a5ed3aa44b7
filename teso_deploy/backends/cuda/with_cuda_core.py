"""A GPU through cuda-core, and through cuda-bindings for functions that cuda-core lacks.

Every call restores the context that was current in the calling thread.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
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

_FATBIN = b"\x50\xed\x55\xba"
_CUBIN = b"\x7fELF"


def open_with_cuda_core(index: int) -> CudaCoreDevice:
    """Open the GPU ``index``. Raises :class:`MissingExtraError`, :class:`DeviceError`."""
    try:
        import cuda.core
        from cuda import bindings
        from cuda.bindings import driver

        core_device = cuda.core.Device
    except (ImportError, AttributeError) as error:
        raise MissingExtraError(
            f"cuda-core can't be used ({error}): {write_install_command('cuda', '--upgrade')}"
        ) from error
    try:
        code, version = driver.cuDriverGetVersion()
    except RuntimeError as error:  # the first call looks for libcuda
        raise make_no_driver_error() from error
    if code:
        raise make_no_gpu_error(_name_of(driver, code))
    check_driver((version // 1000, version % 1000 // 10), int(bindings.__version__.split(".")[0]), "cuda-bindings")
    (code,) = driver.cuInit(0)
    if code:
        raise make_no_gpu_error(_name_of(driver, code))
    code, count = driver.cuDeviceGetCount()
    if code or not count:
        raise make_no_gpu_error(_name_of(driver, code) if code else "it counts none")
    if not 0 <= index < count:
        raise make_no_such_gpu_error(index, count)

    def start() -> tuple[Any, Any]:
        gpu = core_device(index)
        gpu.set_current()  # the primary context
        return gpu, driver.cuCtxGetCurrent()[1]

    # Use a thread that ends: cuda-core keeps contexts by thread, and frees those of the main thread after the
    # interpreter has ended, which may crash (NVIDIA/cuda-python#2743). The calling thread keeps its context.
    with ThreadPoolExecutor(1) as thread:
        try:
            gpu, context = thread.submit(start).result()
        except Exception as error:
            raise make_no_gpu_error(str(error)) from error
    return CudaCoreDevice(gpu, _Current(driver, gpu, context))


def _name_of(driver: Any, code: Any) -> str:
    failed, name = driver.cuGetErrorName(code)
    return str(int(code)) if failed else name.decode()


class _Current:
    """A context manager that makes the device's context current.

    Failures of the driver become our errors. Any thread may enter it.
    """

    def __init__(self, driver: Any, gpu: Any, context: Any) -> None:
        self.driver, self.context, self.gpu = driver, context, gpu.name
        self._gpu = gpu  # keeps the context alive

    def __enter__(self) -> None:
        self.check(self.driver.cuCtxPushCurrent(self.context))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        self.driver.cuCtxPopCurrent()
        is_theirs = kind is not None and (kind is RuntimeError or kind.__module__.startswith("cuda."))
        if is_theirs:
            raise self._refusal(str(error)) from error
        return False

    def check(self, answer: tuple[Any, ...]) -> None:
        """Raise if the driver refused a call; ``answer``: the result of a function of cuda-bindings."""
        if answer[0]:
            raise self._refusal(_name_of(self.driver, answer[0]))

    def _refusal(self, text: str) -> DeviceError:
        kind = DeviceMemoryError if "OUT_OF_MEMORY" in text else DeviceError
        return kind(f"{self.gpu} refused: {text}")


class _Memory:
    """A :class:`Memory`. It also owns the block of an array in page-locked memory."""

    def __init__(self, current: _Current, pointer: int, nbytes: int, *, release: Any) -> None:
        self.pointer, self.nbytes = pointer, nbytes
        self._release = weakref.finalize(self, _give_back, current, pointer, release)

    def close(self) -> None:
        """Free the block; a second call does nothing."""
        self._release()


def _give_back(current: _Current, pointer: int, release: Any) -> None:
    with current:
        current.check(release(pointer))


class _Event:
    def __init__(self, current: _Current, event: Any) -> None:
        self._current, self.event = current, event

    def synchronize(self) -> None:
        with self._current:
            self.event.sync()

    def milliseconds_since(self, earlier: protocol.Event) -> float:
        if not isinstance(earlier, _Event):
            raise make_other_library_error("event", "cuda-core")
        with self._current:
            return float(self.event - earlier.event)


class _Stream:
    def __init__(self, current: _Current, library: libcuda.Libcuda, stream: Any) -> None:
        self._current, self._library, self.stream = current, library, stream
        self.handle = int(stream.handle)

    def synchronize(self) -> None:
        with self._current:
            self.stream.sync()

    def record(self, is_timed: bool = False) -> _Event:
        with self._current:
            return _Event(self._current, self.stream.record(options={"timing_enabled": is_timed}))

    def wait_for(self, event: protocol.Event) -> None:
        if not isinstance(event, _Event):
            raise make_other_library_error("event", "cuda-core")
        with self._current:
            self.stream.wait(event.event)

    def capture(self) -> AbstractContextManager[protocol.Graph]:
        return libcuda.capture(self._library, self._current, self.handle)


class _Module:
    def __init__(self, current: _Current, code: Any) -> None:
        self._current, self._code = current, code
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
        from cuda.core import LaunchConfig, launch

        with self._current:
            if kernel not in self._kernels:
                try:
                    self._kernels[kernel] = self._code.get_kernel(kernel)
                except Exception as error:
                    raise DeviceError(f"there is no kernel {kernel} in this module: {error}") from error
            launch(_core(stream), LaunchConfig(grid=grid, block=block), self._kernels[kernel], *arguments)


def _core(stream: protocol.Stream) -> Any:
    if not isinstance(stream, _Stream):
        raise make_other_library_error("stream", "cuda-core")
    return stream.stream


class CudaCoreDevice:
    """A :class:`Device` that uses cuda-core. :func:`open_with_cuda_core` makes it."""

    library: protocol.CudaLibrary = "cuda-core"

    def __init__(self, gpu: Any, current: _Current) -> None:
        self._gpu, self._current, self._driver = gpu, current, current.driver
        self._libcuda = libcuda.Libcuda()
        self.index: int = gpu.device_id
        self.name: str = gpu.name
        self.compute_capability: tuple[int, int] = (gpu.compute_capability.major, gpu.compute_capability.minor)
        _, version = self._driver.cuDriverGetVersion()
        self.driver_version: tuple[int, int] = (version // 1000, version % 1000 // 10)

    def activate(self) -> None:
        """Make the primary context current in this thread; see :meth:`Device.activate`."""
        self._current.check(self._driver.cuCtxSetCurrent(self._current.context))

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total bytes."""
        with self._current:
            answer = self._driver.cuMemGetInfo()
            self._current.check(answer)
        return answer[1], answer[2]

    # Do not use the pools of cuda-core: they keep freed memory, which TensorRT and torch then can't allocate.
    def allocate(self, nbytes: int) -> _Memory:
        """Allocate device memory; see :meth:`Device.allocate`."""
        with self._current:
            code, pointer = self._driver.cuMemAlloc(max(1, nbytes))
            if code == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                free, total = self.memory_info()
                raise make_out_of_memory_error(self.name, asked_bytes=nbytes, free_bytes=free, total_bytes=total)
            self._current.check((code,))
        return _Memory(self._current, int(pointer), nbytes, release=self._driver.cuMemFree)

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate an array in page-locked host memory; see :meth:`Device.allocate_pinned`."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._current:
            code, pointer = self._driver.cuMemAllocHost(max(1, nbytes))
            if code == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise make_out_of_pinned_memory_error(nbytes)
            self._current.check((code,))
        owner = _Memory(self._current, int(pointer), nbytes, release=self._driver.cuMemFreeHost)
        return make_host_view(owner.pointer, shape, dtype, owner=owner)

    def stream(self) -> _Stream:
        """Make a stream."""
        with self._current:
            return _Stream(self._current, self._libcuda, self._gpu.create_stream(options={"nonblocking": True}))

    def order_streams(self, earlier: int, later: int) -> None:
        """Make one stream wait for another; see :meth:`Device.order_streams`."""
        with self._current:
            libcuda.order_streams(self._libcuda, earlier, later)

    def copy_in(self, memory: int, array: NDArray[Any], stream: protocol.Stream) -> None:
        """Queue a copy of a host array to a device address; see :meth:`Device.copy_in`.

        Args:
            memory: The device address.
            array: C-contiguous host array. It must not change until the stream has reached the copy.
            stream: The stream that copies.
        """
        check_host_array(array, is_target=False)
        self._copy("cuMemcpyHtoDAsync", memory, array.ctypes.data, nbytes=array.nbytes, stream=stream)

    def copy_out(self, array: NDArray[Any], memory: int, stream: protocol.Stream) -> None:
        """Queue a copy from a device address to a host array; see :meth:`Device.copy_out`.

        Args:
            array: C-contiguous host array, which is filled.
            memory: The device address.
            stream: The stream that copies.
        """
        check_host_array(array, is_target=True)
        self._copy("cuMemcpyDtoHAsync", array.ctypes.data, memory, nbytes=array.nbytes, stream=stream)

    def copy_on(self, target: int, source: int, *, nbytes: int, stream: protocol.Stream) -> None:
        """Queue a copy from one device address to another; see :meth:`Device.copy_on`.

        Args:
            target: The device address that is written.
            source: The device address that is read.
            nbytes: Number of bytes.
            stream: The stream that copies.
        """
        self._copy("cuMemcpyDtoDAsync", target, source, nbytes=nbytes, stream=stream)

    def _copy(self, function: str, target: int, source: int, *, nbytes: int, stream: protocol.Stream) -> None:
        handle = _core(stream).handle
        if nbytes:
            with self._current:
                self._current.check(getattr(self._driver, function)(target, source, nbytes, handle))

    def module(self, code: bytes) -> _Module:
        """Load a cubin, a fatbin or PTX; see :meth:`Device.module`."""
        from cuda.core import ObjectCode

        load = {_FATBIN: ObjectCode.from_fatbin, _CUBIN: ObjectCode.from_cubin}.get(code[:4], ObjectCode.from_ptx)
        with self._current:
            loaded = load(code)
            try:
                loaded.get_module()  # otherwise the driver may check it only at the first launch
            except Exception as error:
                raise DeviceError(f"these kernels can't be loaded on {self.name}: {error}") from error
        return _Module(self._current, loaded)
