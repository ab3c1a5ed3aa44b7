"""Choose the backend that runs a bundle's graphs: by its name in the registry, or automatically."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from teso_deploy.backends.contracts import Backend, BackendFactory, BackendRequest, Note
from teso_deploy.backends.engine import Engine, EngineFactory
from teso_deploy.backends.registry import (
    AUTO,
    BACKENDS,
    BackendEntry,
    BackendName,
    check_installed,
    find_absent,
    list_automatic,
    list_backends,
)
from teso_deploy.bundle import Bundle
from teso_deploy.errors import BundleError, TesoError
from teso_deploy.named_objects import load_object
from teso_deploy.types import Precision
from teso_deploy.verification.engine_check import check_against_onnxruntime


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
    """Load a backend for a bundle.

    Args:
        name: A name of the registry, or ``auto``: the first that can run this bundle without building an engine.
        bundle: The bundle.
        precision: Precision of the graphs. Default: fp32.
        threads: Threads of each graph on the CPU. Default: all cores.
        profile: Build profile, by name or TOML file. Default: engines of any profile are used, and new ones are built
            by the default profile.
        rebuild_engines: Whether engines are built again although some exist. Default: no.
        on_progress: Called with the name of each step that takes time. Default: ignored.
        on_note: Called with the choice of ``auto``, and with anything that is slower or different than requested.
            Default: ``on_progress``.

    Returns:
        The backend. Engines are loaded when a graph is first needed.

    Raises:
        ValueError: There is no such backend, or a build option was given for one that builds no engines.
        BundleError: The bundle has no form of that precision.
        MissingExtraError: A package that the backend needs is not installed; the message names the extra.
        DeviceError: The GPU can't be used.
        EngineError: The library's version does not fit.
    """
    if name not in list_backends():
        raise ValueError(f"unknown backend {name!r}: one of {', '.join(list_backends())}")
    if (profile is not None or rebuild_engines) and not (name in BACKENDS and BACKENDS[name].builds_engines):
        raise ValueError(f"backend {name!r} builds no engines: omit profile and rebuild_engines")
    request = BackendRequest(
        name=name,
        bundle=bundle,
        precision=precision,
        threads=threads,
        profile=profile,
        rebuild_engines=rebuild_engines,
        check_of=check_against_onnxruntime,
        on_progress=on_progress,
        on_note=on_note or on_progress,
    )
    return _choose(request) if name == AUTO else _load(request)


def _load(request: BackendRequest) -> Backend:
    """Load the backend that a request names."""
    entry = BACKENDS[request.name]
    check_installed(entry.name)
    if request.precision not in entry.precisions:
        raise BundleError(f"backend {entry.name} runs {', '.join(entry.precisions)}, not {request.precision}")
    return cast(BackendFactory, load_object(entry.factory))(request)


def _choose(request: BackendRequest) -> Backend:
    """Load the first backend that runs the bundle without building an engine.

    The last candidate is loaded without a trial.
    """
    *candidates, last = list_automatic()
    smallest = _find_smallest_graph(request.bundle)
    for entry in candidates:
        if not _is_worth_trying(entry, request):
            continue
        try:
            chosen = _load(replace(request, name=entry.name, may_build=False))
            engine = chosen.engines(request.bundle, smallest)
        except TesoError as error:
            request.on_note(f"not {entry.name}: {error}")
            continue
        request.on_note(f"backend {entry.name}")
        return replace(
            chosen, engines=_hand_out_once(request.bundle, graph=smallest, engine=engine, engines=chosen.engines)
        )
    request.on_note(f"backend {last.name}")
    return _load(replace(request, name=last.name))


def _is_worth_trying(entry: BackendEntry, request: BackendRequest) -> bool:
    """Whether a backend is installed, or the bundle contains engines for it.

    Only then does the message say that the backend can't run.
    """
    brought = {engine.target for engine in request.bundle.manifest.engines if engine.precision == request.precision}
    return entry.name in brought or not find_absent(entry)


def _find_smallest_graph(bundle: Bundle) -> str:
    """Return the smallest graph of the first size. Loading it shows whether a backend works at all."""
    manifest = bundle.manifest

    def count_bytes(graph: str) -> int:
        entry = manifest.graphs[graph]
        return sum(manifest.files[name].bytes for name in (entry.file, entry.weights) if name)

    return min(manifest.graphs, key=count_bytes)


def _hand_out_once(bundle: Bundle, *, graph: str, engine: Engine, engines: EngineFactory) -> EngineFactory:
    """Make a factory that returns an already loaded engine once.

    All other engines come from ``engines``.
    """
    left = [engine]

    def load_engine(wanted_bundle: Bundle, wanted: str) -> Engine:
        if left and wanted_bundle is bundle and wanted == graph:
            return left.pop()
        return engines(wanted_bundle, wanted)

    return load_engine
