"""Open the GPU with one of the supported libraries, if one is installed."""

from __future__ import annotations

from importlib.util import find_spec

from teso_deploy.backends.cuda.device import CudaLibrary, Device
from teso_deploy.errors import MissingExtraError
from teso_deploy.requirements import write_install_command

_MODULES: dict[CudaLibrary, str] = {"cuda-core": "cuda.core", "pycuda": "pycuda"}
_EXTRAS: dict[CudaLibrary, str] = {"cuda-core": "cuda", "pycuda": "pycuda"}
_DEFAULT: CudaLibrary = "cuda-core"


def _is_installed(library: CudaLibrary) -> bool:
    try:
        return find_spec(_MODULES[library]) is not None
    except ImportError:  # the package around it is not installed either
        return False


def open_device(library: CudaLibrary | None = None, index: int = 0) -> Device:
    """Open a GPU.

    Args:
        library: The library to use. Default: cuda-core if it is installed, otherwise PyCUDA.
        index: The GPU's number, as CUDA counts them. Default: 0.

    Returns:
        The GPU.

    Raises:
        MissingExtraError: The library is not installed.
        DeviceError: There is no driver, no GPU, no GPU of that number, or the driver is older than the CUDA that the
            library was built for.
    """
    installed = [name for name in _MODULES if _is_installed(name)]
    chosen = library if library is not None else [*installed, _DEFAULT][0]
    if chosen not in installed:
        raise MissingExtraError(f"a GPU needs {chosen}: {write_install_command(_EXTRAS[chosen])}")
    if chosen == "cuda-core":
        from teso_deploy.backends.cuda.with_cuda_core import open_with_cuda_core

        return open_with_cuda_core(index)
    from teso_deploy.backends.cuda.with_pycuda import open_with_pycuda

    return open_with_pycuda(index)
