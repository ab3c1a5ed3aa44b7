"""One ONNX graph to one engine: strongly typed, so that its precision is that of the graph."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary
from teso_deploy.backends.tensorrt.profiles import BuildProfile
from teso_deploy.errors import DeviceMemoryError, EngineError, InputNotFoundError
from teso_deploy.types import Precision

Progress = Callable[[str], None]
#: How deformable attention is computed: by TensorRT's plugin, or by the body of the function in the graph.
Msda = Literal["plugin", "function"]
#: Of TensorRT's element types, those of floating-point tensors, as we name them.
FLOAT_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "FP8": "fp8", "INT8": "int8"}
#: Of a graph's products, how many have to be in what was asked for: a log-mel's and an offset's stay in fp32.
LEAST_PRODUCTS = 0.5
#: Name and version of the plugin that nodes of deformable attention stand for.
MSDA_PLUGIN = ("MultiscaleDeformableAttnPlugin_TRT", "2")
#: Names of nodes with a function, as they stand in an ONNX file.
_MSDA_NAMES = (MSDA_PLUGIN[0].encode(), b"MSDA")
_COMPATIBILITY = {
    "none": "NONE",
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}


@dataclass(frozen=True, slots=True)
class Built:
    """A serialized engine, and what its network said of itself.

    ``shares``: of the network's floating-point tensors, by type. ``warnings``: of the library, in its words.
    """

    content: bytes
    shares: dict[str, float]
    msda: Msda | None
    build_seconds: float
    timing_cache: bytes | None
    warnings: tuple[str, ...]


def type_name(dtype: Any) -> str:
    """TensorRT's element type in our words: ``fp16``; in lower case where we have none."""
    name = str(dtype).rpartition(".")[2]
    return FLOAT_TYPES.get(name, name.lower())


def shares_of(types: Sequence[str]) -> dict[str, float]:
    """Of floating-point types, how large a share each has."""
    counts = Counter(name for name in types if name in FLOAT_TYPES.values())
    total = sum(counts.values())
    return {name: round(count / total, 4) for name, count in sorted(counts.items())} if total else {}


def _monitor(library: TensorRTLibrary, graph: str, on_progress: Progress) -> Any:
    trt = library.trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        """Names the outer phases; the builder has hundreds of inner ones."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            """Called by the builder."""
            self.steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            """Called by the builder."""
            self.steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            """Called by the builder; False ends the build."""
            try:
                if phase in self.steps:
                    on_progress(f"{graph}: {phase.lower()} {step + 1}/{self.steps[phase]}")
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

    return Monitor()


def _parsed(library: TensorRTLibrary, network: Any, path: Path) -> None:
    parser = library.trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(path)):
        error = parser.get_error(0) if parser.num_errors else None
        told = " ".join(error.desc().split()) if error is not None else library.messages.first_error
        raise EngineError(
            f"{library.target} {library.version} can't read {path.name} ({told}): export the bundle again"
        )


def _types(library: TensorRTLibrary, network: Any) -> tuple[list[str], list[str]]:
    """Types of all tensors that a network computes, and of those that its products give."""
    trt = library.trt
    products = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    everything: list[str] = []
    of_products: list[str] = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type != trt.LayerType.CONSTANT:
            types = [type_name(layer.get_output(j).dtype) for j in range(layer.num_outputs)]
            everything += types
            of_products += types if layer.type in products else []
    return everything, of_products


def _is_plugin(layer: Any) -> bool:
    return str(layer.type).rpartition(".")[2].startswith("PLUGIN")


def _msda_of(network: Any, path: Path) -> Msda | None:
    if not any(name in path.read_bytes() for name in _MSDA_NAMES):
        return None
    is_plugin = any(_is_plugin(network.get_layer(i)) for i in range(network.num_layers))
    return "plugin" if is_plugin else "function"


def check_precision(shares: Mapping[str, float], asked: Precision, least: float, what: str) -> None:
    """Refuse what was read back (:class:`EngineError`) where less than ``least`` is in what was asked for.

    Int8 is a matter of the Q/DQ pairs in the graph, which were counted when it was exported.
    """
    if asked != "int8" and shares.get(asked, 0.0) < least:
        told = ", ".join(f"{share:.0%} {name}" for name, share in shares.items()) or "of no type that is known"
        raise EngineError(f"{what} was to be {asked}, but is {told}: nothing was kept; export the bundle again")


def _set_architectures(library: TensorRTLibrary, config: Any, architectures: Sequence[str]) -> None:
    trt, there = library.trt, library.architectures()
    if unknown := [name for name in architectures if name not in there]:
        raise EngineError(f"{library.target} can't build for {unknown[0]}: choose from {', '.join(there)}")
    config.num_compute_capabilities = len(architectures)
    for i, name in enumerate(architectures):
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), i)


def _configured(
    library: TensorRTLibrary, builder: Any, network: Any, graph: str, settings: BuildProfile, timing_cache: bytes | None
) -> Any:
    trt = library.trt
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else nobody can read back its types
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    # TensorRT-RTX may else allocate while it runs, which no CUDA graph can record.
    user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if settings.cuda_graphs and user_allocation is not None:
        config.set_flag(user_allocation)
    if not library.is_portable:
        level = _COMPATIBILITY[settings.hardware_compatibility]
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        if settings.timing_cache:
            cache = config.create_timing_cache(timing_cache or b"")
            if not config.set_timing_cache(cache, False):  # of another version or GPU
                config.set_timing_cache(config.create_timing_cache(b""), False)
    batch = settings.batch_of(graph)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (batch.min, *rest), (batch.opt, *rest), (batch.max, *rest))
    config.add_optimization_profile(profile)
    return config


def build_engine(
    library: TensorRTLibrary,
    path: Path,
    graph: str,
    settings: BuildProfile,
    precision: Precision,
    architectures: Sequence[str] = (),
    timing_cache: bytes | None = None,
    on_progress: Progress = lambda stage: None,
) -> Built:
    """Build the engine of an ONNX file, whose types are the engine's.

    ``graph``: its name in the manifest. ``architectures``: of TensorRT-RTX, ``sm89`` and the like; none is one
    engine for all of them. Raises :class:`InputNotFoundError`, :class:`EngineError` (the graph can't be read or
    built, or not in this precision) and :class:`DeviceMemoryError`.
    """
    if not path.is_file():
        raise InputNotFoundError(f"no graph {path}: export the bundle again")
    trt = library.trt
    library.messages.errors.clear()
    library.messages.warnings.clear()
    began = time.monotonic()
    builder = trt.Builder(library.logger)
    # In TensorRT 11 there is no other kind, and no flag.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(typed) if typed is not None else 0)
    _parsed(library, network, path)
    types, of_products = _types(library, network)
    check_precision(shares_of(of_products), precision, LEAST_PRODUCTS, f"{path.name}, as {library.target} reads it,")
    msda = _msda_of(network, path)
    config = _configured(library, builder, network, graph, settings, timing_cache)
    if architectures:
        _set_architectures(library, config, architectures)
    monitor = _monitor(library, graph, on_progress)
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if serialized is None:
        _raise_failure(library, graph, settings)
    kept = config.get_timing_cache() if settings.timing_cache and not library.is_portable else None
    return Built(
        content=bytes(serialized),
        shares=shares_of(types),
        msda=msda,
        build_seconds=time.monotonic() - began,
        timing_cache=bytes(kept.serialize()) if kept is not None else None,
        warnings=tuple(dict.fromkeys(library.messages.warnings)),
    )


def _raise_failure(library: TensorRTLibrary, graph: str, settings: BuildProfile) -> None:
    told, batch = library.messages.first_error, settings.batch_of(graph)
    if library.messages.is_out_of_memory:
        raise DeviceMemoryError(
            f"the GPU's memory does not suffice to build {graph} with {settings.workspace_mib} MiB of workspace and "
            f"batches of up to {batch.max} ({told}): take a profile with less of either, or fp16"
        )
    raise EngineError(f"{library.target} {library.version} can't build {graph} ({told}): please report this")
