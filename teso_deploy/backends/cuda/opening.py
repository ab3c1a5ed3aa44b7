"""The GPU, through whichever library is there."""

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
    except ImportError:  # not even the package that it lies in
        return False


def open_device(library: CudaLibrary | None = None, index: int = 0) -> Device:
    """GPU ``index``, as CUDA counts them. ``library``: cuda-core if it is installed, otherwise PyCUDA.

    Raises :class:`MissingExtraError` where no such library is installed, and :class:`DeviceError` where there is no
    driver, no GPU, none of that index, or the driver is older than the CUDA that the library was built for.
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
