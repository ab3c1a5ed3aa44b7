"""Engines of a bundle's graphs: those that came with it, those of the cache, and those that have to be built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teso_deploy import __version__
from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.engine import EngineFactory
from teso_deploy.backends.tensorrt.builder import Progress, build_engine, check_precision
from teso_deploy.backends.tensorrt.cache import EngineCache, content_key
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.jit_cache import JitCache
from teso_deploy.backends.tensorrt.library import PORTABLE, Library
from teso_deploy.backends.tensorrt.profiles import BuildProfile, load_profile
from teso_deploy.backends.tensorrt.sidecar import (
    Sidecar,
    architecture_of,
    check_fits,
    read_engine,
    sidecar_path,
    this_platform,
    write_engine,
)
from teso_deploy.bundle import Bundle
from teso_deploy.errors import BundleError, EngineError
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.types import Precision

#: Holds a built engine against ONNX Runtime; what it measured, for the sidecar. Raises where it fails.
Check = Callable[[TensorRTEngine], dict[str, Any]]
#: Of the half tensors of a network, how many its engine has to have kept: fusing takes some away.
LEAST_KEPT = 0.5


@dataclass(frozen=True, slots=True)
class Source:
    """What an engine is built from: a graph's ONNX file in one precision. ``form`` None: the canonical graph."""

    graph: str
    path: Path
    sha256: str
    precision: Precision
    form: str | None


def source_of(bundle: Bundle, graph: str, precision: Precision) -> Source:
    """The file of a bundle to build from. Raises :class:`BundleError` where it has none of that precision."""
    form: str | None = f"onnx-{precision}"
    if form not in bundle.manifest.forms:
        if precision != "fp32":
            raise BundleError(
                f"bundle {bundle.manifest.name} has no {precision} graphs to build engines from: "
                f"teso-deploy export {bundle.folder} --out FOLDER --precision {precision}"
            )
        form = None  # the canonical graph can be read as it is
    path = bundle.graph_path(graph, form)
    entry = bundle.manifest.graphs[graph] if form is None else bundle.manifest.forms[form][graph]
    names = [entry.file, *([entry.weights] if entry.weights else [])]
    digest = hashlib.sha256("".join(bundle.manifest.files[name].sha256 for name in names).encode()).hexdigest()
    return Source(graph, path, digest, precision, form)


def make_engine(
    library: Library,
    source: Source,
    settings: BuildProfile,
    path: Path,
    architecture: str | None = None,
    device: Device | None = None,
    check: Check | None = None,
    timing_cache: Path | None = None,
    on_progress: Progress = lambda stage: None,
) -> Sidecar:
    """Build an engine, look at it and write it to ``path`` with its sidecar; a failing one leaves nothing.

    ``architecture``: of TensorRT-RTX, ``sm89`` or None for a portable one. ``device``: the GPU that it is for,
    or that can at least open it; where there is none, its types are those of the strongly typed network, and it
    is not checked. Raises what :func:`build_engine` does, what ``check`` does, and :class:`OutputError`.
    """
    if device is not None:
        device.activate()
    built = build_engine(
        library,
        source.path,
        source.graph,
        settings,
        source.precision,
        [architecture] if architecture else [],
        read_vouched(timing_cache) if timing_cache is not None else None,
        on_progress,
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
        platform=this_platform(),
        architecture=architecture or (PORTABLE if here is None else architecture_of(here.compute_capability)),
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
        sidecar = _examined(library, device, built.content, sidecar, source.form, check)
    write_engine(path, built.content, sidecar)
    return sidecar


def _examined(
    library: Library, device: Device, content: bytes, sidecar: Sidecar, form: str | None, check: Check | None
) -> Sidecar:
    """The sidecar with what only a loaded engine can tell: its own types, and how it holds against ONNX Runtime."""
    loaded = TensorRTEngine(library, device, content, sidecar, form)
    found: dict[str, Any] = {}
    if shares := loaded.shares():
        least = LEAST_KEPT * sidecar.shares.get(sidecar.precision, 0.0)
        check_precision(shares, sidecar.precision, least, f"the engine of {sidecar.graph}")
        found |= {"shares": shares, "shares_from": "engine"}
    if check is not None:
        found["parity"] = {"gpu": device.name, "against": "onnxruntime", **check(loaded)}
    return sidecar.model_copy(update=found)


def shipped_engine(
    bundle: Bundle, library: Library, graph: str, precision: Precision, architecture: str
) -> Path | None:
    """The engine that came with a bundle: of this GPU's generation before a portable one."""
    for wanted in (architecture, PORTABLE):
        for entry in bundle.manifest.engines:
            if (entry.target, entry.graph, entry.precision, entry.architecture) == (
                library.target,
                graph,
                precision,
                wanted,
            ):
                return bundle.path(entry.file)
    return None


def cached_path(
    store: EngineCache,
    library: Library,
    source: Source,
    settings: BuildProfile,
    device: Device,
) -> Path:
    """Where the cache has, or will have, the engine of a graph for a GPU."""
    parts = {
        "graph": source.sha256,
        "library": [library.target, library.version],
        "platform": this_platform(),
        "architecture": architecture_of(device.compute_capability),
        "gpu": device.name,
        "profile": settings.model_dump(mode="json"),
        "precision": source.precision,
    }
    return store.path(source.graph, content_key(parts))


def engine_factory(
    library: Library,
    device: Device,
    precision: Precision = "fp32",
    settings: BuildProfile | None = None,
    check_of: Callable[[Bundle, str], Check] | None = None,
    cache: EngineCache | None = None,
    rebuild: bool = False,
    on_progress: Progress = lambda stage: None,
) -> EngineFactory:
    """Engines of a bundle on a GPU: from the bundle, from the cache, or built now and kept there.

    ``settings`` None: an engine that came with the bundle, else the default profile; given: only one of that
    profile. ``rebuild``: whatever is there, build anew. Raises :class:`EngineError` where one is there and does
    not fit, with what differs.
    """
    store = cache or EngineCache()
    wanted = settings or load_profile()
    architecture = architecture_of(device.compute_capability)

    def opened(bundle: Bundle, path: Path, source: Source) -> TensorRTEngine:
        content, sidecar = read_engine(path)
        check_fits(sidecar, library, device.compute_capability, device.name, source.sha256)
        jit = JitCache(store.folder / f"{sidecar.sha256[:32]}-{architecture}.jit") if library.is_portable else None
        loaded = TensorRTEngine(library, device, content, sidecar, source.form, jit)
        if check_of is not None and (sidecar.parity is None or sidecar.parity.get("gpu") != device.name):
            _checked_once(store, loaded, lambda: check_of(bundle, source.graph), on_progress)
        return loaded

    def make(bundle: Bundle, graph: str) -> TensorRTEngine:
        source = source_of(bundle, graph, precision)
        if settings is None and not rebuild:
            shipped = shipped_engine(bundle, library, graph, precision, architecture)
            if shipped is not None:
                return opened(bundle, shipped, source)
        path = cached_path(store, library, source, wanted, device)
        with store.locked(path, lambda: on_progress(f"{graph}: another process builds it")):
            if rebuild or not sidecar_path(path).is_file():  # an engine alone is half a write
                target = architecture if architecture in library.architectures() else None
                check = check_of(bundle, graph) if check_of is not None else None
                timings = store.timing_cache_path(library.version, device.name) if wanted.timing_cache else None
                make_engine(library, source, wanted, path, target, device, check, timings, on_progress)
            return opened(bundle, path, source)

    return make


def _checked_once(
    store: EngineCache, loaded: TensorRTEngine, check_of: Callable[[], Check], on_progress: Progress
) -> None:
    """Check an engine that was built elsewhere, the first time that this GPU runs it.

    Raises what the check does; the answer is kept for good ones alone.
    """
    sidecar, device = loaded.sidecar, loaded.device
    kept = store.folder / f"{content_key({'engine': sidecar.sha256, 'gpu': device.name})}.checked"
    if read_vouched(kept) is None:
        on_progress(f"{sidecar.graph}: first run on {device.name}, check")
        if shares := loaded.shares():
            least = LEAST_KEPT * sidecar.shares.get(sidecar.precision, 0.0)
            check_precision(shares, sidecar.precision, least, f"the engine of {sidecar.graph}")
        write_vouched(kept, json.dumps(check_of()(loaded)).encode())


def check_architectures(library: Library, architectures: Sequence[str]) -> None:
    """Refuse, before anything is built, what the library can't build for (:class:`EngineError`)."""
    there = library.architectures()
    for name in architectures:
        if not there:
            raise EngineError(f"{library.target} builds for the GPU that is here alone: leave --arch away")
        if name not in there:
            raise EngineError(f"{library.target} can't build for {name}: choose from {', '.join(there)}")
