"""Turn the bits with which TensorRT-RTX refuses an engine into sentences."""

from __future__ import annotations

from typing import Any

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary
from teso_deploy.backends.tensorrt.sidecar import REBUILD, Sidecar
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError, TesoError
from teso_deploy.requirements import write_install_command

#: Members of ``EngineInvalidityDiagnostics``. If several bits are set, the first in this order explains the others.
REASONS = (
    "MALFORMED_ENGINE",
    "VERSION_MISMATCH",
    "CUDA_ERROR",
    "OLD_CUDA_DRIVER",
    "OLD_CUDA_RUNTIME",
    "UNSUPPORTED_CC",
    "INSUFFICIENT_GPU_MEMORY",
)


def explain_refusal(library: TensorRTLibrary, device: Device, sidecar: Sidecar, *, bits: int) -> TesoError:
    """Make the error to raise for an engine that is not valid here.

    Args:
        library: The library that refuses it.
        device: The GPU.
        sidecar: The engine's sidecar.
        bits: Diagnostics of ``Runtime.get_engine_validity``.

    Returns:
        The error.
    """
    members: dict[str, Any] = library.trt.EngineInvalidityDiagnostics.__members__
    reasons = [name for name in REASONS if name in members and bits & int(members[name])]
    what = f"the engine of {sidecar.graph}"
    major, minor = device.compute_capability
    match reasons[0] if reasons else None:
        case "MALFORMED_ENGINE":
            return EngineError(f"{what} has a format that {library.target} {library.version} can't read: {REBUILD}")
        case "VERSION_MISMATCH":
            return EngineError(
                f"{what} was built by {library.target} {sidecar.library_version}, but "
                f"{library.version} is installed: {REBUILD}"
            )
        case "CUDA_ERROR":
            return DeviceError(
                f"{what} can't run, since {library.target} gets no answer from CUDA: run `teso-deploy doctor`"
            )
        case "OLD_CUDA_DRIVER":
            knows = ".".join(map(str, device.driver_version))
            return DeviceError(f"{what} needs a newer NVIDIA driver than the one installed (CUDA {knows}): update it")
        case "OLD_CUDA_RUNTIME":
            return DeviceError(
                f"{what} needs a newer CUDA runtime than the one that is installed: "
                f"{write_install_command(library.target, '--upgrade')}"
            )
        case "UNSUPPORTED_CC":
            return EngineError(
                f"{what} is not for {device.name} (compute capability {major}.{minor}; it was built for "
                f"{sidecar.architecture}): {REBUILD}"
            )
        case "INSUFFICIENT_GPU_MEMORY":
            return explain_memory(device, sidecar, "does not fit")
    # The library has no bit for an engine of another operating system or processor. Such an engine gets here, or its
    # bits say that it is malformed.
    return EngineError(
        f"{what} does not run here, and {library.target} {library.version} reports only "
        f"{bits:#x} ({library.messages.first_error}): {REBUILD}"
    )


def explain_memory(device: Device, sidecar: Sidecar, what: str) -> DeviceMemoryError:
    """Make the error to raise if the GPU's memory does not suffice.

    Args:
        device: The GPU.
        sidecar: The engine's sidecar.
        what: The predicate of the message, such as "does not fit".

    Returns:
        The error.
    """
    free, total = device.memory_info()
    return DeviceMemoryError(
        f"{sidecar.graph} {what}: it has {sidecar.bytes / 1e6:,.0f} MB and {free / 1e6:,.0f} of {total / 1e6:,.0f} MB "
        f"of {device.name} are free; stop other programs on the GPU, use --precision fp16, or a profile with smaller "
        "batches"
    )
