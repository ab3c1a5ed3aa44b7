"""Errors for GPUs that can't be used, with the same wording for both libraries, and a check of host arrays."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from teso_deploy.errors import DeviceError, DeviceMemoryError

#: CUDA → the first driver that supports it.
_FIRST_DRIVERS = {12: 525, 13: 580}


def make_no_driver_error() -> DeviceError:
    """Make the error for a libcuda that can't be loaded."""
    return DeviceError(
        "there is no NVIDIA driver (libcuda.so.1 was not found): install it, or start the container with --gpus all"
    )


def make_no_gpu_error(detail: str) -> DeviceError:
    """Make the error for a driver that exists but does not start; ``detail`` is its message."""
    return DeviceError(
        f"the NVIDIA driver offers no GPU ({detail}): run nvidia-smi, and check whether CUDA_VISIBLE_DEVICES "
        "hides the GPU"
    )


def make_no_such_gpu_error(index: int, count: int) -> DeviceError:
    """Make the error for a GPU number ``index`` if there are only ``count`` GPUs."""
    there = "only GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
    return DeviceError(
        f"there is no GPU {index}: CUDA sees {there}; choose one of these, or check CUDA_VISIBLE_DEVICES"
    )


def check_driver(driver: tuple[int, int], wanted: int, library: str) -> None:
    """Refuse a driver that is too old for a library; within a major version any driver will do.

    Args:
        driver: The newest CUDA (major, minor) that the driver supports.
        wanted: The major version of CUDA that the library was built for.
        library: The library's name.

    Raises:
        DeviceError: The driver's major version is lower.
    """
    if driver[0] < wanted:
        newer = _FIRST_DRIVERS.get(wanted)
        raise DeviceError(
            f"the NVIDIA driver supports CUDA {driver[0]}.{driver[1]}, and {library} was built for CUDA {wanted}: "
            f"update the driver{f' to {newer} or newer' if newer else ''}, or install {library} for CUDA {driver[0]}"
        )


def make_out_of_memory_error(gpu: str, *, asked_bytes: int, free_bytes: int, total_bytes: int) -> DeviceMemoryError:
    """Make the error for a GPU that has no free block of the requested size.

    Args:
        gpu: The GPU's name.
        asked_bytes: Requested size in bytes.
        free_bytes: Free memory in bytes.
        total_bytes: Total memory in bytes.

    Returns:
        The error.
    """
    asked, free, total = (f"{number / 2**20:,.0f} MiB" for number in (asked_bytes, free_bytes, total_bytes))
    return DeviceMemoryError(
        f"{gpu} has no {asked} of memory left ({free} of {total} are free): choose a smaller batch, a smaller --size "
        "or --precision fp16, or stop other programs on the GPU (see nvidia-smi)"
    )


def make_out_of_pinned_memory_error(asked_bytes: int) -> DeviceMemoryError:
    """Make the error for a host that can't lock this much memory."""
    return DeviceMemoryError(
        f"{asked_bytes / 2**20:,.0f} MiB of memory can't be locked for copies to the GPU: "
        "choose a smaller batch or a smaller --size, or give the machine or container more memory"
    )


def make_other_library_error(what: str, ours: str) -> DeviceError:
    """Make the error for a stream or an event that belongs to the other library."""
    return DeviceError(f"this {what} was not made by {ours}: open the GPU once, and use one device for all of them")


def check_host_array(array: NDArray[Any], is_target: bool) -> None:
    """Raise ValueError if a host array can't be the source, or the target, of a copy."""
    if not array.flags.c_contiguous or (is_target and not array.flags.writeable):
        raise ValueError(
            f"a copy {'to' if is_target else 'from'} the host needs an array in C order"
            f"{' that may be written' if is_target else ''}, and this one is not"
        )
