"""Checks for any implementation of ``backends/cuda/device.py``: on a GPU, and on the stub of its driver."""

from __future__ import annotations

import gc
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.cuda.arrays import DeviceArray, take_array
from teso_deploy.backends.cuda.device import Device, Memory
from teso_deploy.backends.cuda.libcuda import Libcuda
from teso_deploy.backends.cuda.opening import open_device
from teso_deploy.errors import DeviceError, DeviceMemoryError

PTX = (Path(__file__).parents[1] / "unit" / "cuda_stub" / "scale.ptx").read_bytes()
N = 1000


def _floats(device: Device) -> NDArray[Any]:
    """Return page-locked [0, 1, … N - 1]."""
    array = device.allocate_pinned((N,), np.float32)
    array[:] = np.arange(N)
    return array


def _filled(device: Device, array: NDArray[Any]) -> Memory:
    """Return device memory with the content of an array."""
    memory, stream = device.allocate(array.nbytes), device.stream()
    device.copy_in(memory.pointer, array, stream)
    stream.synchronize()
    return memory


def _read(device: Device, memory: Memory) -> NDArray[np.float32]:
    array, stream = np.zeros(N, np.float32), device.stream()
    device.copy_out(array, memory.pointer, stream)
    stream.synchronize()
    return array


def a_gpu_is_described(device: Device) -> None:
    assert device.index == 0 and device.name
    assert device.compute_capability >= (7, 5) and device.driver_version >= (12, 0)
    free, total = device.memory_info()
    assert 0 < free <= total


def an_index_too_high_is_refused(device: Device) -> None:
    with pytest.raises(DeviceError, match="there is no GPU 99: CUDA sees GPU"):
        open_device(device.library, 99)


def copies_go_there_and_back(device: Device) -> None:
    stream = device.stream()
    source, target = _floats(device), device.allocate_pinned((N,), np.float32)
    first, second = device.allocate(source.nbytes), device.allocate(source.nbytes)
    device.copy_in(first.pointer, source, stream)
    device.copy_on(second.pointer, first.pointer, nbytes=source.nbytes, stream=stream)
    device.copy_out(target, second.pointer, stream)
    stream.synchronize()
    assert np.array_equal(source, target)
    assert first.pointer % 256 == 0 and first.nbytes == source.nbytes and stream.handle > 2


def copies_take_any_array_in_c_order(device: Device) -> None:
    stream = device.stream()
    read_only = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    read_only.flags.writeable = False
    scalar, empty, flags = np.array(3.5), np.zeros((0, 3)), np.array([True, False])
    for array in (read_only, scalar, empty, flags):
        memory, target = device.allocate(array.nbytes), np.zeros_like(array)
        device.copy_in(memory.pointer, array, stream)
        device.copy_out(target, memory.pointer, stream)
        stream.synchronize()
        assert np.array_equal(array, target)
        with pytest.raises(ValueError, match="C order"):
            device.copy_in(memory.pointer, np.zeros((4, 4))[:, ::2], stream)
    with pytest.raises(ValueError, match="may be written"):
        device.copy_out(read_only, memory.pointer, stream)


def memory_is_given_back(device: Device) -> None:
    nbytes = 64 * 2**20
    before, _ = device.memory_info()
    memory = device.allocate(nbytes)
    assert device.memory_info()[0] <= before - nbytes
    memory.close()
    memory.close()
    assert device.memory_info()[0] > before - nbytes
    held = device.allocate(nbytes)
    assert held.pointer
    del held
    assert device.memory_info()[0] > before - nbytes


def too_much_memory_is_refused(device: Device) -> None:
    _, total = device.memory_info()
    with pytest.raises(
        DeviceMemoryError, match=r"has no [\d,]+ MiB of memory left \([\d,]+ MiB of [\d,]+ MiB"
    ) as caught:
        device.allocate(total + 2**20)
    assert isinstance(caught.value, MemoryError) and "smaller batch" in str(caught.value)
    assert np.array_equal(_read(device, _filled(device, _floats(device))), np.arange(N))


def pinned_arrays_live_as_long_as_their_views(device: Device) -> None:
    tail = _floats(device)[-10:]
    gc.collect()
    others = [_floats(device) for _ in range(4)]
    for other in others:
        other[:] = -1
    assert np.array_equal(tail, np.arange(N - 10, N))
    assert device.allocate_pinned((), np.float64).shape == () and device.allocate_pinned((0, 3), np.uint8).size == 0
    grid = device.allocate_pinned((2, 3), np.float16)
    assert grid.flags.c_contiguous and grid.flags.writeable and grid.dtype == np.float16


def events_order_and_time_streams(device: Device) -> None:
    first, second = device.stream(), device.stream()
    source, target = _floats(device), device.allocate_pinned((N,), np.float32)
    memory = device.allocate(source.nbytes)
    begin = first.record(is_timed=True)
    device.copy_in(memory.pointer, source, first)
    end = first.record(is_timed=True)
    second.wait_for(end)
    device.copy_out(target, memory.pointer, second)
    second.record().synchronize()
    assert np.array_equal(source, target) and end.milliseconds_since(begin) >= 0
    with pytest.raises(DeviceError):
        end.milliseconds_since(first.record())


def streams_are_ordered_by_their_handles(device: Device) -> None:
    first, second = device.stream(), device.stream()
    source, target = _floats(device), device.allocate_pinned((N,), np.float32)
    memory = device.allocate(source.nbytes)
    device.copy_in(memory.pointer, source, first)
    device.order_streams(first.handle, second.handle)
    device.copy_out(target, memory.pointer, second)
    second.synchronize()
    assert np.array_equal(source, target)
    for default in (1, 2):
        device.order_streams(default, first.handle)
        device.order_streams(first.handle, default)


def kernels_run(device: Device) -> None:
    stream, module = device.stream(), device.module(PTX)
    source, target = _filled(device, _floats(device)), device.allocate(4 * N)
    for factor in (2, 3):
        arguments = (target.pointer, source.pointer, np.float32(factor), np.uint32(N))
        module.launch("scale", grid=(N // 128 + 1, 1, 1), block=(128, 1, 1), arguments=arguments, stream=stream)
        stream.synchronize()
        assert np.array_equal(_read(device, target), np.arange(N) * factor)


def kernels_that_are_not_there_are_refused(device: Device) -> None:
    stream = device.stream()
    with pytest.raises(DeviceError, match="there is no kernel shrink"):
        device.module(PTX).launch("shrink", grid=(1, 1, 1), block=(1, 1, 1), arguments=(), stream=stream)
    with pytest.raises(DeviceError, match="can't be loaded"):
        device.module(b"these are no kernels")


def launches_that_cannot_be_are_refused(device: Device) -> None:
    memory, stream = device.allocate(4 * N), device.stream()
    arguments = (memory.pointer, memory.pointer, np.float32(1), np.uint32(N))
    with pytest.raises(DeviceError):
        device.module(PTX).launch("scale", grid=(1, 1, 1), block=(2048, 1, 1), arguments=arguments, stream=stream)


def graphs_run_what_was_recorded(device: Device) -> None:
    stream, module = device.stream(), device.module(PTX)
    source, target = _floats(device), device.allocate_pinned((N,), np.float32)
    target[:] = -1
    first, second = device.allocate(source.nbytes), device.allocate(source.nbytes)
    with stream.capture() as graph:
        device.copy_in(first.pointer, source, stream)
        arguments = (second.pointer, first.pointer, np.float32(2), np.uint32(N))
        module.launch("scale", grid=(N // 128 + 1, 1, 1), block=(128, 1, 1), arguments=arguments, stream=stream)
        device.copy_out(target, second.pointer, stream)
        with pytest.raises(DeviceError, match="after the block"):
            graph.launch(stream)
    stream.synchronize()
    assert np.all(target == -1)
    for _ in range(3):
        source += 1
        graph.launch(stream)
        stream.synchronize()
        assert np.array_equal(target, source * 2)
    other = device.stream()
    graph.launch(other)
    other.synchronize()


def a_capture_that_fails_leaves_the_stream_usable(device: Device) -> None:
    stream, source = device.stream(), _floats(device)
    memory = device.allocate(source.nbytes)
    with pytest.raises(DeviceError), stream.capture() as graph:
        device.copy_in(memory.pointer, source, stream)
        stream.synchronize()
    with pytest.raises(DeviceError, match="can't be recorded"), stream.capture() as graph, suppress(DeviceError):
        stream.synchronize()  # here the caller hides the failure
    with pytest.raises(DeviceError, match="recording of this CUDA graph is not finished"):
        graph.launch(stream)
    with pytest.raises(ZeroDivisionError), stream.capture():
        raise ZeroDivisionError
    device.copy_in(memory.pointer, source, stream)
    stream.synchronize()
    with stream.capture() as graph:
        device.copy_in(memory.pointer, source, stream)
    graph.launch(stream)
    stream.synchronize()


def memory_may_be_freed_in_a_capture(device: Device) -> None:
    stream, source = device.stream(), _floats(device)
    memory, garbage = device.allocate(source.nbytes), device.allocate(100)
    with stream.capture() as graph:
        device.copy_in(memory.pointer, source, stream)
        garbage.close()
        device.allocate_pinned((3,), np.float32)
    graph.launch(stream)
    stream.synchronize()
    assert np.array_equal(_read(device, memory), source)


def threads_share_a_device(device: Device) -> None:
    failures: list[str] = []
    made: list[Any] = []

    def work(number: int) -> None:
        try:
            stream, source = device.stream(), _floats(device)
            source += number
            for _ in range(20):
                memory = _filled(device, source)
                assert np.array_equal(_read(device, memory), source)
            with stream.capture() as graph:
                device.copy_in(memory.pointer, source, stream)
            made.extend((stream, stream.record(), source, memory, graph, device.module(PTX)))
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    made.clear()  # and in this thread all of it is released


def the_current_context_is_left_alone(device: Device) -> None:
    library, found = Libcuda(), []

    def work() -> None:
        found.append(library.current_context())
        memory = _filled(device, _floats(device))
        found.append(library.current_context())
        with pytest.raises(DeviceError):
            device.module(b"no kernels")
        memory.close()
        found.append(library.current_context())
        device.activate()
        found.append(library.current_context())
        _filled(device, _floats(device))
        found.append(library.current_context())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[:3] == [None] * 3 and found[3] is not None and found[4] == found[3]


def what_others_made_is_refused(device: Device) -> None:
    class Stranger:
        handle = 0

    memory, stream, stranger = device.allocate(4), device.stream(), Stranger()
    with pytest.raises(DeviceError, match="this stream was not made by"):
        device.copy_in(memory.pointer, np.zeros(1, np.float32), stranger)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="this event was not made by"):
        stream.wait_for(stranger)  # type: ignore[arg-type]


def arrays_come_to_the_host(device: Device) -> None:
    array = DeviceArray(
        (memory := _filled(device, _floats(device))).pointer, (10, N // 10), np.dtype("f4"), memory, device
    )
    assert np.array_equal(array.numpy(), np.arange(N).reshape(10, -1))
    copy = np.from_dlpack(array, device="cpu")
    assert np.array_equal(copy, np.arange(N).reshape(10, -1))
    with pytest.raises(BufferError):
        array.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(BufferError):
        array.__dlpack__(dl_device=(2, 7))
    with pytest.raises(BufferError):
        array.__dlpack__(stream=0)


class Interface:
    """An object that has only the CUDA array interface."""

    def __init__(self, array: DeviceArray, **other: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **other}


def arrays_are_shared(device: Device) -> None:
    stream, reader = device.stream(), device.stream()
    source = _floats(device)
    memory = device.allocate(source.nbytes)
    device.copy_in(memory.pointer, source, stream)
    array = DeviceArray(memory.pointer, (N,), np.dtype("f4"), memory, device, stream)
    assert array.__dlpack_device__() == (2, 0) and array.__cuda_array_interface__["stream"] == stream.handle
    for shared in (array, Interface(array), Interface(array, strides=(4,)), Interface(array, stream=1)):
        for behind in (reader, None):
            taken = take_array(shared, device, behind)
            assert taken.pointer == memory.pointer and taken.shape == (N,) and taken.dtype == np.float32
            assert not taken.is_on_host and np.array_equal(taken.numpy(), source)
    taken = take_array(array, device)
    pointer = memory.pointer
    del memory, array, shared
    gc.collect()
    assert taken.pointer == pointer and np.array_equal(taken.numpy(), source)


def a_copy_of_an_array_is_its_own(device: Device) -> None:
    class Copied:
        def __init__(self, array: DeviceArray) -> None:
            self.array = array

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

        def __dlpack__(self, **how: Any) -> Any:
            return self.array.__dlpack__(copy=True, **how)

    memory = _filled(device, _floats(device))
    array = DeviceArray(memory.pointer, (N,), np.dtype("f4"), memory, device)
    copy = take_array(Copied(array), device)
    assert copy.pointer != array.pointer and np.array_equal(copy.numpy(), np.arange(N))


def arrays_that_do_not_fit_are_refused(device: Device) -> None:
    memory = device.allocate(400)
    array = DeviceArray(memory.pointer, (10, 10), np.dtype("f4"), memory, device)
    for shared, text in (
        (Interface(array, strides=(4, 40)), "not in C order"),
        (Interface(array, mask=array), "mask"),
        (Interface(array, stream=0), "stream 0"),
    ):
        with pytest.raises(DeviceError, match=text):
            take_array(shared, device)
    with pytest.raises(DeviceError, match="no GPU was opened"):
        take_array(array)

    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 5

        def __dlpack__(self, **how: Any) -> Any:
            raise AssertionError

    with pytest.raises(DeviceError, match="on GPU 5, and GPU 0 is used"):
        take_array(Elsewhere(), device)
    with pytest.raises(DeviceError, match="float32 was given where float16 is needed"):
        array.contiguous(np.float16)


CHECKS: tuple[Callable[[Device], None], ...] = (
    a_gpu_is_described,
    an_index_too_high_is_refused,
    copies_go_there_and_back,
    copies_take_any_array_in_c_order,
    memory_is_given_back,
    too_much_memory_is_refused,
    pinned_arrays_live_as_long_as_their_views,
    events_order_and_time_streams,
    streams_are_ordered_by_their_handles,
    kernels_run,
    kernels_that_are_not_there_are_refused,
    launches_that_cannot_be_are_refused,
    graphs_run_what_was_recorded,
    a_capture_that_fails_leaves_the_stream_usable,
    memory_may_be_freed_in_a_capture,
    threads_share_a_device,
    the_current_context_is_left_alone,
    what_others_made_is_refused,
    arrays_come_to_the_host,
    arrays_are_shared,
    a_copy_of_an_array_is_its_own,
    arrays_that_do_not_fit_are_refused,
)
