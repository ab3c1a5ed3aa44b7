"""What runs a bundle's graphs, by the name of the backend; heavy libraries are loaded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.engine import EngineFactory
from teso_deploy.backends.onnxruntime import form_of, onnxruntime_factory
from teso_deploy.backends.tensorrt.library import Target
from teso_deploy.bundle import Bundle
from teso_deploy.errors import TesoError
from teso_deploy.runtime.operators import HostOperators, OperatorsFactory
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
) -> Backend:
    """A backend for a bundle.

    ``threads``: of ``cpu``. ``profile``, ``rebuild_engines``: of engines that are built, see
    :func:`engine_factory`. ``on_progress``: told of engines that are built, and of what ``auto`` has chosen.
    Raises :class:`ValueError` (no such backend), :class:`BundleError` (no form of that precision),
    :class:`MissingExtraError`, :class:`DeviceError`, :class:`EngineError`.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: one of {', '.join(BACKENDS)}")
    if name == "auto":
        return _automatic(bundle, precision, threads, on_progress)
    if name == "cpu":
        return Backend(onnxruntime_factory(threads, form_of(bundle, precision)))
    if name == "cuda":
        return _cuda(bundle, precision, on_progress)
    return _tensorrt(name, bundle, precision, profile, rebuild_engines, on_progress)


def _cuda(bundle: Bundle, precision: Precision, on_progress: Note) -> Backend:
    from teso_deploy.backends.onnxruntime_cuda import onnxruntime_cuda_factory

    engines = onnxruntime_cuda_factory(bundle, precision)
    try:
        from teso_deploy.backends.cuda.opening import open_device

        return Backend(engines, _device_operators(open_device()))
    except TesoError as error:  # right all the same, and slower
        on_progress(f"resizing and labelling on the CPU: {error}")
        return Backend(engines)


def _device_operators(device: Device) -> OperatorsFactory:
    from teso_deploy.backends.cuda.kernels import load_kernels
    from teso_deploy.backends.cuda.operators import DeviceOperators

    module = load_kernels(device)
    return lambda manifest: DeviceOperators(device, module, manifest)


def _tensorrt(
    name: Target, bundle: Bundle, precision: Precision, profile: str | None, rebuild: bool, on_progress: Note
) -> Backend:
    from teso_deploy.backends.cuda.opening import open_device
    from teso_deploy.backends.tensorrt.library import load_library
    from teso_deploy.backends.tensorrt.making import engine_factory
    from teso_deploy.backends.tensorrt.profiles import load_profile
    from teso_deploy.runtime.engine_check import check_against_onnxruntime

    settings = load_profile(profile) if profile is not None else None
    library, device = load_library(name), open_device()
    engines = engine_factory(
        library,
        device,
        precision,
        settings,
        check_against_onnxruntime,
        rebuild=rebuild,
        on_progress=on_progress,
    )
    return Backend(engines, _device_operators(device))


def _automatic(bundle: Bundle, precision: Precision, threads: int | None, on_progress: Note) -> Backend:
    """The first that can run this bundle without building anything: its own engines, CUDA, the CPU."""
    targets = dict.fromkeys(entry.target for entry in bundle.manifest.engines if entry.precision == precision)
    for name in (*GPU_BACKENDS[1:], *GPU_BACKENDS[:1]):
        if name != "cuda" and name not in targets:
            continue
        try:
            chosen = load_backend(name, bundle, precision)
            chosen.engines(bundle, "fusion")  # the smallest: does it load at all?
        except TesoError as error:
            on_progress(f"not {name}: {error}")
            continue
        on_progress(f"backend {name}")
        return chosen
    on_progress("backend cpu")
    return load_backend("cpu", bundle, precision, threads=threads)
