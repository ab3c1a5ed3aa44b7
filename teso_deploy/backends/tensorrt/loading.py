"""TensorRT and TensorRT-RTX as backends: their engines, with our operators on the same GPU."""

from __future__ import annotations

from teso_deploy.backends.contracts import Backend, BackendRequest
from teso_deploy.backends.cuda import opening
from teso_deploy.backends.cuda.operators import load_device_operators
from teso_deploy.backends.tensorrt import bindings
from teso_deploy.backends.tensorrt.factory import make_engine_factory
from teso_deploy.backends.tensorrt.profiles import load_profile


def load_tensorrt(request: BackendRequest) -> Backend:
    """Load TensorRT or TensorRT-RTX, as the request's name says.

    Raises:
        MissingExtraError: The library is not installed.
        DeviceError: No GPU can be used.
        EngineError: The library's version does not fit.
    """
    settings = load_profile(request.profile) if request.profile is not None else None
    library, device = bindings.load_library(request.name), opening.open_device()
    engines = make_engine_factory(
        library,
        device,
        request.precision,
        settings=settings,
        check_of=request.check_of,
        rebuild=request.rebuild_engines,
        may_build=request.may_build,
        on_progress=request.on_progress,
    )
    return Backend(engines, load_device_operators(device))
