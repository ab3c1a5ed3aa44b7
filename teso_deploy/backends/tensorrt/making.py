"""Build the engine of a graph, check it, and write it with its sidecar."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teso_deploy._version import __version__
from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary
from teso_deploy.backends.tensorrt.builder import Progress, build_engine, check_precision
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.profiles import BuildProfile
from teso_deploy.backends.tensorrt.sidecar import (
    Sidecar,
    name_architecture,
    name_platform,
    write_engine,
)
from teso_deploy.backends.tensorrt.targets import AMPERE_PLUS, PORTABLE
from teso_deploy.bundle import STANDARD, Bundle
from teso_deploy.errors import EngineError
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.types import Precision

#: Compares a built engine with ONNX Runtime and returns figures for the sidecar; raises if it fails.
Check = Callable[[TensorRTEngine], dict[str, Any]]
#: The share of the network's tensors in the requested type that the engine must keep; fusion removes some.
LEAST_KEPT = 0.5


@dataclass(frozen=True, slots=True)
class GraphSource:
    """The ONNX file that an engine is built from, in one precision; ``form`` is None for the canonical graph."""

    graph: str
    path: Path
    sha256: str
    precision: Precision
    form: str | None


def find_source(bundle: Bundle, graph: str, precision: Precision) -> GraphSource:
    """Find the file of a bundle that an engine is built from.

    Args:
        bundle: The bundle.
        graph: The graph's name in the manifest.
        precision: The precision of the engine.

    Returns:
        The graph in the bundle's standard form of that precision.

    Raises:
        BundleError: The bundle has no form of that precision.
    """
    form = bundle.form_for((STANDARD,), precision)
    path = bundle.graph_path(graph, form)
    entry = bundle.manifest.graphs[graph] if form is None else bundle.manifest.forms[form][graph]
    names = [entry.file, *([entry.weights] if entry.weights else [])]
    digest = hashlib.sha256("".join(bundle.manifest.files[name].sha256 for name in names).encode()).hexdigest()
    return GraphSource(graph, path, digest, precision, form)


def make_engine(
    library: TensorRTLibrary,
    source: GraphSource,
    settings: BuildProfile,
    *,
    path: Path,
    architecture: str | None = None,
    device: Device | None = None,
    check: Check | None = None,
    timing_cache: Path | None = None,
    on_progress: Progress = lambda stage: None,
) -> Sidecar:
    """Build an engine, check it, and write it with its sidecar. A failure leaves no file.

    Args:
        library: The library that builds it.
        source: The graph.
        settings: The build profile.
        path: The engine's file.
        architecture: For TensorRT-RTX, a generation such as ``sm89``. Default: a portable engine.
        device: The GPU that the engine is for, or one that can at least open it. Default: none; then the engine's types
            are those of the strongly typed network, and it is not checked.
        check: Compares the engine with ONNX Runtime. Default: the engine is not checked.
        timing_cache: File of TensorRT's timings, which is read and updated. Default: none.
        on_progress: Called with the phase of the build. Default: ignored.

    Returns:
        The sidecar.

    Raises:
        EngineError: The graph can't be built in this precision.
        DeviceMemoryError: The GPU's memory does not suffice.
        CheckFailedError: The check failed.
        OutputError: The file can't be written.
    """
    if device is not None:
        device.activate()
    built = build_engine(
        library,
        source.path,
        source.graph,
        settings=settings,
        precision=source.precision,
        architectures=[architecture] if architecture else [],
        timing_cache=read_vouched(timing_cache) if timing_cache is not None else None,
        on_progress=on_progress,
    )
    if timing_cache is not None and built.timing_cache is not None:
        write_vouched(timing_cache, built.timing_cache)
    here = None if library.is_portable or device is None else device
    sidecar = Sidecar(
        sha256=hashlib.sha256(built.content).hexdigest(),
        bytes=len(built.content),
        graph=source.graph,
        graph_sha256=source.sha256,
        target=library.target,
        library_version=library.version,
        platform=name_platform(),
        architecture=architecture or (PORTABLE if here is None else name_gpus(library, settings, here)),
        gpu=here.name if here is not None else None,
        settings=settings,
        precision=source.precision,
        shares=built.shares,
        shares_from="network",
        msda=built.msda,
        build_seconds=round(built.build_seconds, 2),
        built_by=f"teso-deploy {__version__}",
    )
    if device is not None:
        on_progress(f"{source.graph}: check")
        loaded = TensorRTEngine(library, device, built.content, sidecar=sidecar, form=source.form)
        sidecar = sidecar.model_copy(update=examine_engine(loaded, check))
    write_engine(path, built.content, sidecar)
    return sidecar


def name_gpus(library: TensorRTLibrary, settings: BuildProfile, device: Device) -> str:
    """Name the GPUs that can run an engine which is built on a GPU: those of its generation, or more.

    Args:
        library: The library that builds the engine.
        settings: The build profile.
        device: The GPU that the engine is built on.

    Returns:
        A generation such as ``sm89``, or ``ampere-plus``.
    """
    if not library.is_portable and settings.hardware_compatibility == AMPERE_PLUS:
        return AMPERE_PLUS
    return name_architecture(device.compute_capability)


def examine_engine(loaded: TensorRTEngine, check: Check | None) -> dict[str, Any]:
    """Return facts that only a loaded engine shows: its types, and how it compares with ONNX Runtime."""
    sidecar, found = loaded.sidecar, dict[str, Any]()
    if shares := loaded.shares():
        least = LEAST_KEPT * sidecar.shares.get(sidecar.precision, 0.0)
        check_precision(shares, sidecar.precision, least=least, what=f"the engine of {sidecar.graph}")
        found |= {"shares": shares, "shares_from": "engine"}
    if check is not None:
        found["parity"] = {"gpu": loaded.device.name, "against": "onnxruntime", **check(loaded)}
    return found


def check_architectures(library: TensorRTLibrary, architectures: Sequence[str]) -> None:
    """Refuse generations that the library can't build for, before anything is built (:class:`EngineError`)."""
    there = library.architectures()
    for name in architectures:
        if not there:
            raise EngineError(f"{library.target} builds only for the GPU in this machine: omit --arch")
        if name not in there:
            raise EngineError(f"{library.target} can't build for {name}: choose from {', '.join(there)}")
