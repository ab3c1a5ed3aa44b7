"""Checks for implementations of ``backends/cuda/device.py`` that only a stub of the driver can make.

``python -m tests.support.stub_checks LIBRARY``, with the stub first on LD_LIBRARY_PATH, runs these checks and those of
``device_checks``. It prints a line of JSON for each, ``{"check": …, "error": null or a text}``. Memory that a check
does not release is an error.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable

import numpy as np
import pytest

from teso_deploy.backends.cuda.arrays import DeviceArray, take_array
from teso_deploy.backends.cuda.device import CudaLibrary, Device
from teso_deploy.backends.cuda.opening import open_device
from teso_deploy.errors import DeviceError, DeviceMemoryError
from tests.support.device_checks import CHECKS, PTX, Interface


def _with_variable(name: str, value: str, check: Callable[[], None]) -> None:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        check()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def an_old_driver_is_refused(device: Device) -> None:
    def check() -> None:
        with pytest.raises(
            DeviceError, match=r"supports CUDA 11\.8, and .* built for CUDA 1\d: update the driver to 5\d\d"
        ):
            open_device(device.library)

    _with_variable("TESO_STUB_DRIVER_VERSION", "11080", check)


def a_machine_without_gpus_is_refused(device: Device) -> None:
    def check() -> None:
        with pytest.raises(DeviceError, match=r"offers no GPU \(.*100.*\): run nvidia-smi"):
            open_device(device.library)

    _with_variable("TESO_STUB_DEVICES", "0", check)


def another_gpu_is_opened(device: Device) -> None:
    other = open_device(device.library, 1)
    assert other.index == 1 and other.name == "Stub 1"
    with pytest.raises(DeviceError, match="there is no GPU 2: CUDA sees GPUs 0 to 1"):
        open_device(device.library, 2)
    memory = other.allocate(4)
    array = DeviceArray(memory.pointer, (1,), np.dtype("f4"), memory, other)
    with pytest.raises(DeviceError, match="on GPU 1, and GPU 0 is used"):
        take_array(array, device)


def memory_outlives_its_device_object(device: Device) -> None:
    memory = open_device(device.library, 1).allocate(4)
    gc.collect()
    memory.close()


def kernels_of_other_gpus_are_refused(device: Device) -> None:
    for code in (b"\x7fELF" + bytes(60), b"\x50\xed\x55\xba" + bytes(60)):
        with pytest.raises(DeviceError, match="these kernels can't be loaded on Stub 0"):
            device.module(code)


def full_memory_is_told_with_what_is_free(device: Device) -> None:
    def check() -> None:
        held = device.allocate(60 * 2**20)
        with pytest.raises(
            DeviceMemoryError, match=r"Stub 0 has no 50 MiB of memory left \(40 MiB of 100 MiB are free\)"
        ):
            device.allocate(50 * 2**20)
        assert held.nbytes == 60 * 2**20

    _with_variable("TESO_STUB_MEMORY_BYTES", str(100 * 2**20), check)


def arguments_of_any_type_are_packed(device: Device) -> None:
    module = device.module(b".version 7.0\n.visible .entry mixed(")
    arguments = (2**62, np.float16(1), np.bool_(True), np.int8(-1), np.uint16(1), np.int64(-1), np.float64(1))
    module.launch("mixed", grid=(1, 1, 1), block=(1, 1, 1), arguments=arguments, stream=device.stream())


def arrays_wait_for_their_streams(device: Device) -> None:
    stub = ctypes.CDLL("libcuda.so.1")
    stream, reader = device.stream(), device.stream()
    memory = device.allocate(4)
    written = DeviceArray(memory.pointer, (1,), np.dtype("f4"), memory, device, stream)
    ready = DeviceArray(memory.pointer, (1,), np.dtype("f4"), memory, device)
    cases: tuple[tuple[Callable[[], object], int, int], ...] = (
        (lambda: written.__dlpack__(stream=reader.handle), 1, 0),
        (lambda: written.__dlpack__(), 1, 0),  # the default stream reads
        (lambda: written.__dlpack__(stream=stream.handle), 0, 0),
        (lambda: written.__dlpack__(stream=-1), 0, 0),
        (lambda: written.__dlpack__(stream=-1, copy=True), 0, 1),
        (lambda: ready.__dlpack__(stream=reader.handle), 0, 0),
        (lambda: take_array(written, device, reader), 1, 0),
        (lambda: take_array(written, device), 1, 1),
        (lambda: take_array(Interface(written), device, reader), 1, 0),
        (lambda: take_array(Interface(written), device, stream), 0, 0),
        (lambda: take_array(Interface(written), device), 1, 1),
        (lambda: take_array(Interface(ready), device), 0, 0),
    )
    for number, (share, waits, syncs) in enumerate(cases):
        before = stub.teso_stub_live(b"waits"), stub.teso_stub_live(b"syncs")
        share()
        after = stub.teso_stub_live(b"waits"), stub.teso_stub_live(b"syncs")
        assert (after[0] - before[0], after[1] - before[1]) == (waits, syncs), f"case {number}"


STUB_CHECKS = (
    arguments_of_any_type_are_packed,
    arrays_wait_for_their_streams,
    an_old_driver_is_refused,
    a_machine_without_gpus_is_refused,
    another_gpu_is_opened,
    memory_outlives_its_device_object,
    kernels_of_other_gpus_are_refused,
    full_memory_is_told_with_what_is_free,
)


def main(library: CudaLibrary) -> None:
    """Run every check on the stub."""
    stub = ctypes.CDLL("libcuda.so.1")

    counted = ["memory", "pinned", "streams", "events", "graphs", "bad_frees", "contexts"]
    if library == "pycuda":
        counted.append("modules")  # cuda-core never unloads modules

    def left_behind() -> dict[str, int]:
        gc.collect()
        return {name: stub.teso_stub_live(name.encode()) for name in counted}

    os.environ["TESO_STUB_DEVICES"] = "2"
    device = open_device(library)
    for check in (*CHECKS, *STUB_CHECKS):
        error = None
        try:
            check(device)
        except BaseException:
            error = traceback.format_exc()
        left = left_behind()
        if error is None and any(left.values()):
            error = f"left behind: {left}"
        print(json.dumps({"check": check.__name__, "error": error}), flush=True)
    # Objects that still exist when the interpreter ends must be released without a message.
    stream = device.stream()
    with stream.capture() as graph:
        pass
    globals()["kept"] = (
        device.allocate(8),
        device.allocate_pinned((8,), np.uint8),
        stream,
        stream.record(),
        graph,
        device.module(PTX),
    )


if __name__ == "__main__":
    main(sys.argv[1])  # type: ignore[arg-type]
