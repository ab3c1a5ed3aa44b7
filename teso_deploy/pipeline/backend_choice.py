"""What runs a bundle's graphs, by the name of the backend; heavy libraries are loaded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.engine import Engine, EngineFactory
from teso_deploy.backends.onnxruntime import TARGET as ONNXRUNTIME
from teso_deploy.backends.onnxruntime import onnxruntime_factory
from teso_deploy.backends.tensorrt.bindings import TARGETS, Target, check_installed
from teso_deploy.bundle import Bundle
from teso_deploy.errors import MissingExtraError, TesoError
from teso_deploy.pipeline.operators import HostOperators, OperatorsFactory
from teso_deploy.types import Precision

BackendName = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
GPU_BACKENDS: tuple[BackendName, ...] = ("cuda", "tensorrt", "tensorrt-rtx")
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Backend:
    """Engines, and what stands around them."""

    engines: EngineFactory
    operators: OperatorsFactory = HostOperators


def load_backend(
    name: BackendName,
    bundle: Bundle,
    precision: Precision = "fp32",
    *,
    threads: int | None = None,
    profile: str | None = None,
    rebuild_engines: bool = False,
    on_progress: Note = lambda note: None,
    on_note: Note | None = None,
) -> Backend:
    """A backend for a bundle.

    ``threads``: of ``cpu``. ``profile``, ``rebuild_engines``: of engines that TensorRT builds, see
    :func:`engine_factory`. ``on_progress``: told of what takes time. ``on_note`` (default: the same): told of what
    is not as it was asked for, or slower than it might be, and of what ``auto`` has chosen.
    Raises :class:`ValueError` (no such backend, options of engines for one that builds none), :class:`BundleError`
    (no form of that precision), :class:`MissingExtraError`, :class:`DeviceError`, :class:`EngineError`.
    """
    on_note = on_note or on_progress
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: one of {', '.join(BACKENDS)}")
    if name not in TARGETS and (profile is not None or rebuild_engines):
        raise ValueError(f"backend {name!r} builds no engines: leave profile and rebuild_engines away")
    if name == "auto":
        return _automatic(bundle, precision, threads, on_progress, on_note)
    if name == "cpu":
        return Backend(onnxruntime_factory(threads, bundle.form_for((ONNXRUNTIME,), precision)))
    if name == "cuda":
        return _cuda(bundle, precision, on_note)
    return _tensorrt(name, bundle, precision, on_progress, profile, rebuild_engines)


def _cuda(bundle: Bundle, precision: Precision, on_note: Note) -> Backend:
    from teso_deploy.backends.onnxruntime_cuda import onnxruntime_cuda_factory

    engines = onnxruntime_cuda_factory(bundle, precision)
    try:
        from teso_deploy.backends.cuda.opening import open_device

        return Backend(engines, _device_operators(open_device()))
    except TesoError as error:  # right all the same, and slower
        on_note(f"resizing and labelling on the CPU: {error}")
        return Backend(engines)


def _device_operators(device: Device) -> OperatorsFactory:
    from teso_deploy.backends.cuda.kernels import load_kernels
    from teso_deploy.backends.cuda.operators import DeviceOperators

    module = load_kernels(device)
    return lambda manifest: DeviceOperators(device, module, manifest)


def _tensorrt(
    name: Target,
    bundle: Bundle,
    precision: Precision,
    on_progress: Note,
    profile: str | None = None,
    rebuild: bool = False,
    may_build: bool = True,
) -> Backend:
    from teso_deploy.backends.cuda.opening import open_device
    from teso_deploy.backends.tensorrt.bindings import load_library
    from teso_deploy.backends.tensorrt.making import engine_factory
    from teso_deploy.backends.tensorrt.profiles import load_profile
    from teso_deploy.verification.engine_check import check_against_onnxruntime

    settings = load_profile(profile) if profile is not None else None
    library, device = load_library(name), open_device()
    engines = engine_factory(
        library,
        device,
        precision,
        settings,
        check_against_onnxruntime,
        rebuild=rebuild,
        may_build=may_build,
        on_progress=on_progress,
    )
    return Backend(engines, _device_operators(device))


def _automatic(bundle: Bundle, precision: Precision, threads: int | None, on_progress: Note, on_note: Note) -> Backend:
    """The first that can run this bundle without building anything: engines that are there, CUDA, the CPU."""
    brought = {entry.target for entry in bundle.manifest.engines if entry.precision == precision}
    names: tuple[Target | Literal["cuda"], ...] = (*TARGETS, "cuda")
    for name in names:
        try:
            if name == "cuda":
                chosen = _cuda(bundle, precision, on_note)
            elif name in brought or _is_installed(name):
                chosen = _tensorrt(name, bundle, precision, on_progress, may_build=False)
            else:
                continue
            fusion = chosen.engines(bundle, "fusion")  # the smallest: does it load at all?
        except TesoError as error:
            on_note(f"not {name}: {error}")
            continue
        on_note(f"backend {name}")
        return replace(chosen, engines=_handing_out(bundle, "fusion", fusion, chosen.engines))
    on_note("backend cpu")
    return load_backend("cpu", bundle, precision, threads=threads)


def _is_installed(target: Target) -> bool:
    try:
        check_installed(target)
    except MissingExtraError:
        return False
    return True


def _handing_out(of: Bundle, name: str, loaded: Engine, engines: EngineFactory) -> EngineFactory:
    """A factory that gives the engine of a graph which is loaded already in place of loading it again, once."""
    left = [loaded]

    def engine(bundle: Bundle, graph: str) -> Engine:
        if left and bundle is of and graph == name:
            return left.pop()
        return engines(bundle, graph)

    return engine
