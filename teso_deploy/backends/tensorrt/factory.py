"""Get the engines of a bundle's graphs: from the cache, from the bundle, or by building them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.engine import EngineFactory
from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary
from teso_deploy.backends.tensorrt.builder import Progress
from teso_deploy.backends.tensorrt.cache import EngineCache, compute_content_key
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.jit_cache import JitCache
from teso_deploy.backends.tensorrt.making import Check, GraphSource, examine_engine, find_source, make_engine, name_gpus
from teso_deploy.backends.tensorrt.profiles import BuildProfile, load_profile
from teso_deploy.backends.tensorrt.sidecar import (
    check_fits,
    name_architecture,
    name_platform,
    read_engine,
    read_sidecar,
)
from teso_deploy.backends.tensorrt.targets import AMPERE_PLUS, PORTABLE, list_capabilities, runs_portable
from teso_deploy.bundle import Bundle
from teso_deploy.errors import CheckFailedError, EngineError, InputNotFoundError, TesoError
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.types import Precision

#: Part of every key of the cache. Increase it when :mod:`builder` builds another engine from the same graph.
BUILD_REVISION = 1
Found = TypeVar("Found")
#: The file of an engine, and the hash that the manifest has for it (None for an engine of the cache).
_Kept = tuple[Path, str | None]


def find_shipped_engines(
    bundle: Bundle, library: TensorRTLibrary, graph: str, *, precision: Precision, capability: tuple[int, int]
) -> list[str]:
    """List a bundle's engines that may run on a GPU: first those of its generation, then those for several.

    Args:
        bundle: The bundle.
        library: The library that runs the engines.
        graph: The graph's name in the manifest.
        precision: The precision.
        capability: Compute capability (major, minor) of the GPU.

    Returns:
        Their files, relative to the bundle.
    """
    wanted = [name_architecture(capability)]
    wanted += [AMPERE_PLUS] if not library.is_portable and capability >= (8, 0) else []
    wanted += [PORTABLE] if library.is_portable and runs_portable(capability) else []
    return [
        entry.file
        for architecture in wanted
        for entry in bundle.manifest.engines
        if (entry.target, entry.graph, entry.precision) == (library.target, graph, precision)
        and entry.architecture == architecture
    ]


def make_cache_path(
    store: EngineCache,
    library: TensorRTLibrary,
    source: GraphSource,
    *,
    settings: BuildProfile,
    device: Device,
) -> Path:
    """Name the engine of a graph in the cache, whether it exists or not.

    Args:
        store: The cache.
        library: The library that builds the engine.
        source: The graph.
        settings: The build profile.
        device: The GPU.

    Returns:
        The path. It depends on all inputs of the build.
    """
    is_of_one_gpu = not library.is_portable and settings.hardware_compatibility == "none"
    parts = {
        "build": BUILD_REVISION,
        "graph": source.sha256,
        "library": [library.target, library.version],
        "platform": name_platform(),
        "architecture": name_gpus(library, settings, device),
        "gpu": device.name if is_of_one_gpu else None,
        "profile": settings.model_dump(mode="json"),
        "precision": source.precision,
    }
    return store.path(source.graph, compute_content_key(parts))


def timings_path(
    store: EngineCache, library: TensorRTLibrary, *, settings: BuildProfile, device: Device
) -> Path | None:
    """Name the file of TensorRT's timings on a GPU.

    Args:
        store: The cache.
        library: The library.
        settings: The build profile.
        device: The GPU.

    Returns:
        The path; None for TensorRT-RTX, and if the profile keeps no timings.
    """
    if library.is_portable or not settings.timing_cache:
        return None
    return store.timing_cache_path(library.version, device.name)


def make_engine_factory(
    library: TensorRTLibrary,
    device: Device,
    precision: Precision = "fp32",
    *,
    settings: BuildProfile | None = None,
    check_of: Callable[[Bundle, str], Check] | None = None,
    cache: EngineCache | None = None,
    rebuild: bool = False,
    may_build: bool = True,
    on_progress: Progress = lambda stage: None,
) -> EngineFactory:
    """Make a factory of engines on a GPU. It takes them from the cache or the bundle, or builds and caches them.

    Args:
        library: The library.
        device: The GPU.
        precision: The precision. Default: fp32.
        settings: Use only engines of this build profile. Default: any engine that the bundle contains, and the default
            profile for builds.
        check_of: Makes the check that an engine has to pass. Default: engines are not checked.
        cache: Where built engines are kept. Default: the user's cache.
        rebuild: Whether each engine is built again once, although one exists. Default: no.
        may_build: If False, nothing is built, and no engine is returned unless engines of all graphs exist. Default:
            True.
        on_progress: Called with the name of each step that takes time. Default: ignored.

    Returns:
        The factory. It raises the errors of :func:`make_engine`, and :class:`EngineError` if an engine exists and does
        not fit; the message says what differs.
    """
    store = cache or EngineCache()
    wanted = settings or load_profile()
    capability, rebuilt = device.compute_capability, set[Path]()

    def existing(
        bundle: Bundle, source: GraphSource, use: Callable[[Bundle, GraphSource, _Kept], Found]
    ) -> Found | None:
        """Return the first existing engine that ``use`` accepts; if it accepts none, raise its first error.

        Args:
            bundle: The bundle, whose engines are tried after the one in the cache.
            source: The graph.
            use: Loads an engine from its file, or raises :class:`TesoError`.
        """
        files = (
            find_shipped_engines(bundle, library, source.graph, precision=precision, capability=capability)
            if settings is None
            else []
        )
        cached = make_cache_path(store, library, source, settings=wanted, device=device)
        # Try the cache first: its engine is for exactly this GPU, and may have been built because the bundle's did not
        # fit.
        there: list[_Kept] = [(cached, None)] if store.has(cached) else []
        there += [(bundle.path(file), bundle.manifest.files[file].sha256) for file in files]
        misfit: TesoError | None = None
        for kept in there:
            try:
                return use(bundle, source, kept)
            except (EngineError, InputNotFoundError, CheckFailedError) as error:
                misfit = misfit or error
        if misfit is not None:
            raise misfit
        return None

    def fitting(bundle: Bundle, source: GraphSource, kept: _Kept) -> bool:
        check_fits(read_sidecar(kept[0]), library, capability=capability, gpu=device.name, graph_sha256=source.sha256)
        return True

    def open_kept(bundle: Bundle, source: GraphSource, kept: _Kept) -> TensorRTEngine:
        path, sha256 = kept
        content, sidecar = read_engine(path, sha256)
        check_fits(sidecar, library, capability=capability, gpu=device.name, graph_sha256=source.sha256)
        jit_file = store.folder / f"{sidecar.sha256[:32]}-{name_architecture(capability)}.jit"
        jit = JitCache(jit_file) if library.is_portable else None
        loaded = TensorRTEngine(library, device, content, sidecar=sidecar, form=source.form, jit_cache=jit)
        if check_of is not None and (sidecar.parity is None or sidecar.parity.get("gpu") != device.name):
            _check_once(store, loaded, lambda: check_of(bundle, source.graph), on_progress=on_progress)
        if sha256 is None:
            store.mark_used(path)
        return loaded

    def check_complete(bundle: Bundle) -> None:
        for graph in bundle.manifest.graphs:
            if existing(bundle, find_source(bundle, graph, precision), fitting) is None:
                raise EngineError(
                    f"there is no {library.target} engine of {graph} in {precision} for {device.name}: "
                    f"--backend {library.target} builds it"
                )

    def build_kept(bundle: Bundle, source: GraphSource) -> TensorRTEngine:
        path = make_cache_path(store, library, source, settings=wanted, device=device)
        target = _choose_architecture(library, device)
        with store.lock(path, lambda: on_progress(f"{source.graph}: waiting for another process that builds it")):
            if rebuild or not store.has(path):
                check = check_of(bundle, source.graph) if check_of is not None else None
                timings = timings_path(store, library, settings=wanted, device=device)
                make_engine(
                    library,
                    source,
                    wanted,
                    path=path,
                    architecture=target,
                    device=device,
                    check=check,
                    timing_cache=timings,
                    on_progress=on_progress,
                )
                store.prune()
        rebuilt.add(path)
        return open_kept(bundle, source, (path, None))

    def make(bundle: Bundle, graph: str) -> TensorRTEngine:
        wanted.check_stages(bundle.program)
        source = find_source(bundle, graph, precision)
        if not may_build:
            check_complete(bundle)
        elif rebuild and make_cache_path(store, library, source, settings=wanted, device=device) not in rebuilt:
            return build_kept(bundle, source)
        return existing(bundle, source, open_kept) or build_kept(bundle, source)

    return make


def _choose_architecture(library: TensorRTLibrary, device: Device) -> str | None:
    """Choose the GPU generation to build engines for.

    Return None for a portable engine, and for a library that can build only for this GPU.
    """
    here, there = name_architecture(device.compute_capability), library.architectures()
    if library.is_portable and here not in there and not runs_portable(device.compute_capability):
        major, minor = device.compute_capability
        raise EngineError(
            f"{library.target} {library.version} has no engines for {device.name} (compute capability "
            f"{major}.{minor}): it builds for {', '.join(there)}, and portable engines run on "
            f"{list_capabilities(portable=True)}; take "
            "--backend tensorrt or cuda"
        )
    return here if here in there else None


def _check_once(
    store: EngineCache, loaded: TensorRTEngine, check_of: Callable[[], Check], *, on_progress: Progress
) -> None:
    """Check an engine that was built elsewhere the first time that this GPU runs it.

    Raises the errors of the check. Only a success is remembered.
    """
    sidecar, device = loaded.sidecar, loaded.device
    kept = store.folder / f"{compute_content_key({'engine': sidecar.sha256, 'gpu': device.name})}.checked"
    if read_vouched(kept) is None:
        on_progress(f"{sidecar.graph}: first run on {device.name}, checking it")
        write_vouched(kept, json.dumps(examine_engine(loaded, check_of())).encode())
