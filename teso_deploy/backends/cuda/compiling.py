"""Compile our CUDA sources with NVRTC for one GPU when they are first needed, and keep the result on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from teso_deploy.errors import DeviceError, InputNotFoundError, MissingExtraError
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.requirements import write_install_command
from teso_deploy.resources import cache_folder, find_shipped_path

OPTIONS = ("--std=c++17",)


def list_kernel_sources() -> list[Path]:
    """List the shipped sources in order of name. Raises :class:`InputNotFoundError` if there are none."""
    folder = find_shipped_path("engines/kernels")
    found = sorted(folder.glob("*.cu"))
    if not found:
        raise InputNotFoundError(f"there are no CUDA sources in {folder}: install teso-deploy again")
    return found


def hash_sources(sources: list[Path]) -> str:
    """Hash the sources: the SHA-256 of the files' concatenated SHA-256 in hexadecimal.

    CMakeLists.txt computes the same.
    """
    each = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sources)
    return hashlib.sha256(each.encode()).hexdigest()


def _load_nvrtc() -> tuple[Any, tuple[int, int]]:
    """Return NVRTC's bindings and its version.

    Raises :class:`MissingExtraError` if either is not installed.
    """
    try:
        from cuda.bindings import nvrtc

        # Only the first call loads the library; it raises RuntimeError if the library is not installed.
        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"NVRTC, which compiles the CUDA kernels, is not installed: {write_install_command('cuda')}, "
            "or build engines/kernels/kernels.fatbin with CMake"
        ) from error
    return nvrtc, (major, minor)


def choose_architecture(compute_capability: tuple[int, int], supported: list[int]) -> str:
    """Choose the architecture that NVRTC compiles for: the GPU's, or the newest older virtual architecture.

    Raises :class:`DeviceError` if NVRTC supports only newer GPUs.
    """
    number = 10 * compute_capability[0] + compute_capability[1]
    if number in supported:
        return f"sm_{number}"
    older = [one for one in supported if one < number]
    if not older:
        raise DeviceError(
            f"this NVRTC compiles for compute capability {min(supported) / 10} and newer, and the GPU has "
            f"{number / 10}: install an older nvidia-cuda-nvrtc, or use a newer GPU"
        )
    return f"compute_{max(older)}"


def _compile(nvrtc: Any, source: bytes, architecture: str) -> bytes:
    """Compile to a cubin for ``sm_…``, to PTX for ``compute_…``."""

    def check_answer(answer: tuple[Any, ...]) -> Any:
        if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise DeviceError(f"NVRTC failed ({answer[0].name}): {write_install_command('cuda', '--force-reinstall')}")
        return answer[1] if len(answer) > 1 else None

    program = check_answer(nvrtc.nvrtcCreateProgram(source, b"kernels.cu", 0, [], []))
    try:
        options = [f"--gpu-architecture={architecture}".encode(), *(option.encode() for option in OPTIONS)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(check_answer(nvrtc.nvrtcGetProgramLogSize(program)))
            check_answer(nvrtc.nvrtcGetProgramLog(program, log))
            text = log.rstrip(b"\0").decode(errors="replace").strip()
            raise DeviceError(f"NVRTC can't compile the CUDA kernels for {architecture} ({result.name}): {text}")
        is_cubin = architecture.startswith("sm_")
        size = check_answer((nvrtc.nvrtcGetCUBINSize if is_cubin else nvrtc.nvrtcGetPTXSize)(program))
        code = bytearray(size)
        check_answer((nvrtc.nvrtcGetCUBIN if is_cubin else nvrtc.nvrtcGetPTX)(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def compile_kernels(compute_capability: tuple[int, int], cache: Path | None = None) -> bytes:
    """Return our kernels for a GPU of this compute capability, from the cache or newly compiled.

    Compiling takes well under a second. The cache is keyed by sources, options, NVRTC and architecture. If the cache
    can't be written, or its content was changed, the kernels are compiled again.

    Args:
        compute_capability: (major, minor) of the GPU.
        cache: Folder of compiled kernels. Default: ``cache_folder("kernels")``.

    Returns:
        A cubin, or PTX if NVRTC is older than the GPU.

    Raises:
        MissingExtraError: NVRTC is needed and not installed.
        DeviceError: The sources can't be compiled for this GPU.
    """
    nvrtc, version = _load_nvrtc()
    _, supported = nvrtc.nvrtcGetSupportedArchs()
    architecture = choose_architecture(compute_capability, list(supported))
    source = b"\n".join(path.read_bytes() for path in list_kernel_sources())
    key = hashlib.sha256("\0".join((hashlib.sha256(source).hexdigest(), *OPTIONS)).encode()).hexdigest()
    kept = (cache or cache_folder("kernels")) / f"{key}-nvrtc{version[0]}.{version[1]}-{architecture}.bin"
    code = read_vouched(kept)
    if code is None:
        code = _compile(nvrtc, source, architecture)
        write_vouched(kept, code)
    return code
