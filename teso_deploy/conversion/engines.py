"""Engines inside a bundle: built at export, also for GPUs that are not in this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.onnxruntime import make_onnxruntime_factory
from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary, load_library
from teso_deploy.backends.tensorrt.cache import EngineCache
from teso_deploy.backends.tensorrt.factory import make_engine_factory, timings_path
from teso_deploy.backends.tensorrt.making import check_architectures, find_source, make_engine, name_gpus
from teso_deploy.backends.tensorrt.profiles import BuildProfile
from teso_deploy.backends.tensorrt.sidecar import name_architecture
from teso_deploy.backends.tensorrt.targets import PORTABLE, Target, runs_portable
from teso_deploy.bundle import Bundle, EngineEntry
from teso_deploy.errors import CheckFailedError, TesoError
from teso_deploy.types import Precision
from teso_deploy.verification.engine_check import check_against_onnxruntime
from teso_deploy.verification.verify import CANONICAL, verify_bundle

FOLDER = "engines"


@dataclass(frozen=True)
class EngineRequest:
    """The engines to build for a library.

    Attributes:
        library: The library.
        architectures: GPU generations of TensorRT-RTX. Empty: one portable engine.
        precisions: Each graph gets an engine in each precision.
        settings: The build settings.
        device: The GPU of this machine, which TensorRT requires.
    """

    library: TensorRTLibrary
    architectures: tuple[str, ...]
    precisions: tuple[Precision, ...]
    settings: BuildProfile
    device: Device | None


def _open_gpu(is_needed: bool) -> Device | None:
    from teso_deploy.backends.cuda.opening import open_device

    try:
        return open_device()
    except TesoError:
        if is_needed:
            raise
        return None


def request_engines(
    targets: Sequence[Target], *, architectures: Sequence[str], precisions: Sequence[Precision], settings: BuildProfile
) -> list[EngineRequest]:
    """Check that the engines can be built here, before anything is exported.

    Args:
        targets: The engine libraries.
        architectures: GPU generations of TensorRT-RTX.
        precisions: The precisions of the engines.
        settings: The build settings.

    Returns:
        One request per library.

    Raises:
        MissingExtraError: A library is not installed.
        EngineError: A library does not know a generation.
        DeviceError: TensorRT needs a GPU and none exists.
    """
    requests = []
    for target in dict.fromkeys(targets):
        library = load_library(target)
        check_architectures(library, architectures)
        device = _open_gpu(not library.is_portable)
        requests.append(
            EngineRequest(library, tuple(architectures), tuple(dict.fromkeys(precisions)), settings, device)
        )
    return requests


def _choose_device(request: EngineRequest, architecture: str | None) -> Device | None:
    """Return this machine's GPU if the engine is for it."""
    if request.device is None or not request.library.is_portable:
        return request.device
    capability = request.device.compute_capability
    fits = name_architecture(capability) == architecture if architecture else runs_portable(capability)
    return request.device if fits else None


def build_engines(
    bundle: Bundle,
    requests: Sequence[EngineRequest],
    on_progress: Callable[[str], None] = lambda stage: None,
) -> tuple[EngineEntry, ...]:
    """Build the engines of every graph into the folder of a staged bundle.

    Args:
        bundle: The staged bundle.
        requests: The engines to build.
        on_progress: Called with the current stage. Default: nothing.

    Returns:
        The entries for the manifest.

    Raises:
        EngineError: A profile names a stage that the bundle does not have.
    """
    for request in requests:
        request.settings.check_stages(bundle.program)
    return tuple(
        _build(bundle, request, architecture=architecture, precision=precision, graph=graph, on_progress=on_progress)
        for request in requests
        for architecture in request.architectures or (None,)
        for precision in request.precisions
        for graph in bundle.manifest.graphs
    )


def _build(
    bundle: Bundle,
    request: EngineRequest,
    *,
    architecture: str | None,
    precision: Precision,
    graph: str,
    on_progress: Callable[[str], None],
) -> EngineEntry:
    library, device = request.library, _choose_device(request, architecture)
    here = None if device is None or library.is_portable else name_gpus(library, request.settings, device)
    where = architecture or here or PORTABLE
    timings = None if device is None else timings_path(EngineCache(), library, settings=request.settings, device=device)
    file = f"{FOLDER}/{library.target}/{where}/{graph}.{precision}.engine"
    on_progress(f"{graph}: {library.target} {where} {precision}")
    make_engine(
        library,
        find_source(bundle, graph, precision),
        request.settings,
        path=bundle.folder / file,
        architecture=architecture,
        device=device,
        check=check_against_onnxruntime(bundle, graph),
        timing_cache=timings,
        on_progress=lambda stage: on_progress(f"{stage} ({where})"),
    )
    return EngineEntry(file=file, graph=graph, target=library.target, precision=precision, architecture=where)


def verify_engines(
    bundle: Bundle, requests: Sequence[EngineRequest], on_progress: Callable[[str], None] = lambda stage: None
) -> None:
    """Check masks, batches and audio control of the whole pipeline, on the GPU if the engines run on it.

    Args:
        bundle: The staged bundle.
        requests: The engines that were built.
        on_progress: Called with the current stage. Default: nothing.

    Raises:
        CheckFailedError: The engines differ from the model, or segment silence. Such engines are not shipped.
    """
    for request in requests:
        usable = [name for name in request.architectures or (None,) if _choose_device(request, name) is not None]
        if request.device is None or not usable:
            continue
        on_progress(f"{request.library.target}: masks and audio control")
        with tempfile.TemporaryDirectory() as folder:
            store = EngineCache(Path(folder))  # an empty cache, so that the bundle's own engines are checked
            backends = {
                f"{request.library.target}-{precision}": (
                    precision,
                    make_engine_factory(
                        request.library,
                        request.device,
                        precision,
                        cache=store,
                        may_build=False,
                        on_progress=on_progress,
                    ),
                )
                for precision in request.precisions
            }
            report = verify_bundle(
                bundle, lambda form: make_onnxruntime_factory(None, form), forms=[CANONICAL], backends=backends
            )
        failures = [failure for failure in report.failures if any(name in failure for name in backends)]
        if failures:
            raise CheckFailedError(f"the engines are not the model, nothing was written ({failures[0]})")
