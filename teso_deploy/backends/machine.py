"""Find the NVIDIA GPUs of this machine and their driver, even if no package for GPUs is installed.

``nvidia-ml-py`` (extra ``cuda``) gives the most facts. Without it the driver's own library is called through ctypes,
which gives everything except the memory in use. Unknown facts are None; nothing here raises.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Files in which the driver's kernel module publishes its version. The second one also exists in containers.
VERSION_FILES = (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version"))
PCI_DEVICES = Path("/sys/bus/pci/devices")
#: Libraries of the driver → what does not work without them.
DRIVER_LIBRARIES = {"libcuda.so.1": "CUDA", "libnvcuvid.so.1": "decoding video on the GPU"}
#: Values of CUdevice_attribute in cuda.h.
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its compute capability (major, minor), its memory, and the memory in use by all processes, in bytes."""

    index: int
    name: str
    compute_capability: tuple[int, int] | None = None
    memory_bytes: int | None = None
    used_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver.

    Attributes:
        version: Version of the kernel module: 580.65.06.
        cuda: The newest CUDA that it supports: (13, 0).
        missing: The libraries of :data:`DRIVER_LIBRARIES` that can't be loaded.
    """

    version: str | None
    cuda: tuple[int, int] | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """The driver and the GPUs. ``problem``: why the driver or a GPU is missing that should exist, in one sentence."""

    driver: Driver | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


def can_load(library: str) -> bool:
    """Whether the system's loader finds a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def probe_machine() -> Machine:
    """Find the driver and the GPUs."""
    missing = tuple(library for library in DRIVER_LIBRARIES if not can_load(library))
    version = _read_module_version()
    problem = None
    for ask in (_ask_nvml, _ask_libcuda):
        try:
            driver, gpus = ask()
        except ImportError:  # nvidia-ml-py is not installed
            continue
        except Exception as error:  # NVMLError shares no base class with what ctypes raises
            problem = problem or str(error)
            continue
        version, cuda = driver.version or version, driver.cuda
        if not gpus:
            problem = "the driver shows no GPU to this process: in a container, start it with the GPU"
        elif "libcuda.so.1" in missing:
            problem = (
                "libcuda.so.1 can't be loaded: in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
            )
        else:
            problem = None
        return Machine(Driver(version, cuda, missing), gpus, problem)
    if version is not None:
        return Machine(Driver(version, None, missing), (), f"the driver {version} does not answer ({problem}): restart")
    if _has_nvidia_card():
        return Machine(problem="there is an NVIDIA GPU and no driver for it: install NVIDIA's driver, 580 or newer")
    return Machine()


def _ask_nvml() -> tuple[Driver, tuple[Gpu, ...]]:
    import pynvml

    pynvml.nvmlInit()
    try:
        found = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        driver = Driver(_decode_text(pynvml.nvmlSystemGetDriverVersion()), _split_cuda_version(found))
        return driver, tuple(_read_nvml_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def _read_nvml_gpu(pynvml: Any, index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def tell(ask: Callable[[Any], Any]) -> Any:
        try:
            return ask(handle)
        except pynvml.NVMLError:  # this GPU, or this container, does not support it
            return None

    memory, capability = tell(pynvml.nvmlDeviceGetMemoryInfo), tell(pynvml.nvmlDeviceGetCudaComputeCapability)
    return Gpu(
        index,
        _decode_text(tell(pynvml.nvmlDeviceGetName) or "NVIDIA GPU"),
        (int(capability[0]), int(capability[1])) if capability else None,
        int(memory.total) if memory else None,
        int(memory.used) if memory else None,
    )


def _ask_libcuda() -> tuple[Driver, tuple[Gpu, ...]]:
    """Ask the driver's own library. Raises OSError if it does not exist, RuntimeError if a call fails."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def number(function: str, *arguments: object) -> int:
        value = ctypes.c_int()
        if code := getattr(cuda, function)(ctypes.byref(value), *arguments):
            raise RuntimeError(f"{function} fails with CUDA error {code}")
        return value.value

    version = _split_cuda_version(number("cuDriverGetVersion"))  # the only call that works before cuInit
    if code := cuda.cuInit(0):
        if code == 100:  # CUDA_ERROR_NO_DEVICE
            return Driver(None, version), ()
        raise RuntimeError(f"cuInit fails with CUDA error {code}")
    gpus = []
    for index in range(number("cuDeviceGetCount")):
        device = number("cuDeviceGet", index)
        name, size = ctypes.create_string_buffer(128), ctypes.c_size_t()
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        major, minor = (
            number("cuDeviceGetAttribute", attribute, device)
            for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR)
        )
        gpus.append(Gpu(index, name.value.decode(errors="replace"), (major, minor), size.value or None))
    return Driver(None, version), tuple(gpus)


def _decode_text(value: str | bytes) -> str:
    # Older releases of nvidia-ml-py give bytes.
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _split_cuda_version(number: int) -> tuple[int, int]:
    """Turn 13000 into (13, 0)."""
    return number // 1000, number % 1000 // 10


def _read_module_version() -> str | None:
    for path in VERSION_FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        if found := re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text):
            return found[0]
    return None


def _has_nvidia_card() -> bool:
    try:
        devices = list(PCI_DEVICES.iterdir())
    except OSError:
        return False
    for device in devices:
        try:
            vendor, kind = ((device / name).read_text(encoding="utf-8").strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS):
            return True
    return False
