"""Build an engine from an ONNX graph, strongly typed, so that the engine has the precision of the graph."""

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
#: TensorRT's names of floating-point types → ours.
FLOAT_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "FP8": "fp8", "INT8": "int8"}
#: The share of a graph's products that must have the requested type. Products of the log-mel and of the offsets of
#: attention stay in fp32.
LEAST_PRODUCTS = 0.5
#: Name and version of TensorRT's plugin for nodes of deformable attention.
MSDA_PLUGIN = ("MultiscaleDeformableAttnPlugin_TRT", "2")
#: Names of the nodes that have a function in the graph, as bytes of an ONNX file.
_MSDA_NAMES = (MSDA_PLUGIN[0].encode(), b"MSDA")
_COMPATIBILITY = {
    "none": "NONE",
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}


@dataclass(frozen=True, slots=True)
class Built:
    """A serialized engine, and facts about the network that it was built from.

    Attributes:
        content: The engine.
        shares: Share of each type among the network's floating-point tensors.
        msda: How deformable attention is computed; None if the graph has none.
        build_seconds: Duration of the build in seconds.
        timing_cache: TensorRT's timings for the next build; None if none are kept.
        warnings: The library's warnings, unchanged.
    """

    content: bytes
    shares: dict[str, float]
    msda: Msda | None
    build_seconds: float
    timing_cache: bytes | None
    warnings: tuple[str, ...]


def type_name(dtype: Any) -> str:
    """Our name of a TensorRT type, such as ``fp16``; its own name in lower case if we have none."""
    name = str(dtype).rpartition(".")[2]
    return FLOAT_TYPES.get(name, name.lower())


def compute_shares(types: Sequence[str]) -> dict[str, float]:
    """The share of each floating-point type in a list of types."""
    counts = Counter(name for name in types if name in FLOAT_TYPES.values())
    total = sum(counts.values())
    return {name: round(count / total, 4) for name, count in sorted(counts.items())} if total else {}


def _make_monitor(library: TensorRTLibrary, graph: str, on_progress: Progress) -> Any:
    trt = library.trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        """Reports the outer phases; the builder has hundreds of inner ones."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            """Called by the builder when a phase starts.

            Args:
                phase: Name of the phase.
                parent: Name of the phase that contains it; None for an outer phase.
                steps: Number of its steps.
            """
            self.steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            """Called by the builder when a phase ends."""
            self.steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            """Called by the builder after each step; False ends the build."""
            try:
                if phase in self.steps:
                    on_progress(f"{graph}: {phase.lower()} {step + 1}/{self.steps[phase]}")
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

    return Monitor()


def _parse(library: TensorRTLibrary, network: Any, path: Path) -> None:
    parser = library.trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(path)):
        error = parser.get_error(0) if parser.num_errors else None
        described = " ".join(error.desc().split()) if error is not None else library.messages.first_error
        raise EngineError(
            f"{library.target} {library.version} can't read {path.name} ({described}): export the bundle again"
        )


def _list_types(library: TensorRTLibrary, network: Any) -> tuple[list[str], list[str]]:
    """List the types of all tensors that a network computes, and separately those of its products' outputs."""
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


def _find_msda(network: Any, path: Path) -> Msda | None:
    if not any(name in path.read_bytes() for name in _MSDA_NAMES):
        return None
    is_plugin = any(_is_plugin(network.get_layer(i)) for i in range(network.num_layers))
    return "plugin" if is_plugin else "function"


def check_precision(shares: Mapping[str, float], asked: Precision, *, least: float, what: str) -> None:
    """Refuse a network or an engine that is not in the requested precision.

    Int8 is not checked: it comes from the Q/DQ pairs of the graph, which were counted when it was exported.

    Args:
        shares: Type → its share.
        asked: The requested precision.
        least: The least share (0 … 1) that must have this precision.
        what: The subject of the message, such as "the engine of decoder".

    Raises:
        EngineError: The share is smaller.
    """
    if asked != "int8" and shares.get(asked, 0.0) < least:
        described = ", ".join(f"{share:.0%} {name}" for name, share in shares.items()) or "of an unknown type"
        raise EngineError(f"{what} should be {asked}, but is {described}: nothing was written; export the bundle again")


def _set_architectures(library: TensorRTLibrary, config: Any, architectures: Sequence[str]) -> None:
    trt, there = library.trt, library.architectures()
    if unknown := [name for name in architectures if name not in there]:
        raise EngineError(f"{library.target} can't build for {unknown[0]}: choose from {', '.join(there)}")
    config.num_compute_capabilities = len(architectures)
    for i, name in enumerate(architectures):
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), i)


def _configure(
    library: TensorRTLibrary,
    builder: Any,
    network: Any,
    *,
    graph: str,
    settings: BuildProfile,
    timing_cache: bytes | None,
) -> Any:
    trt = library.trt
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise its types can't be read back
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    # Otherwise TensorRT-RTX may allocate during a run, which a CUDA graph can't record.
    user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if settings.cuda_graphs and user_allocation is not None:
        config.set_flag(user_allocation)
    if not library.is_portable:
        level = _COMPATIBILITY[settings.hardware_compatibility]
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        if settings.timing_cache:
            cache = config.create_timing_cache(timing_cache or b"")
            if not config.set_timing_cache(cache, False):  # the cache is of another version or GPU
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
    *,
    settings: BuildProfile,
    precision: Precision,
    architectures: Sequence[str] = (),
    timing_cache: bytes | None = None,
    on_progress: Progress = lambda stage: None,
) -> Built:
    """Build the engine of an ONNX file. Its tensors have the types of the file.

    Args:
        library: The library that builds it.
        path: The ONNX file.
        graph: The graph's name in the manifest.
        settings: The build profile.
        precision: The precision that the file has.
        architectures: GPU generations such as ``sm89``, for TensorRT-RTX only. Default: one engine for all of them.
        timing_cache: TensorRT's timings of earlier builds. Default: none.
        on_progress: Called with the phase of the build. Default: ignored.

    Returns:
        The engine, and facts about its network.

    Raises:
        InputNotFoundError: There is no such file.
        EngineError: The graph can't be read or built, or is not in this precision.
        DeviceMemoryError: The GPU's memory does not suffice.
    """
    if not path.is_file():
        raise InputNotFoundError(f"no graph {path}: export the bundle again")
    trt = library.trt
    library.messages.errors.clear()
    library.messages.warnings.clear()
    began = time.monotonic()
    builder = trt.Builder(library.logger)
    # In TensorRT 11 every network is strongly typed, and there is no flag.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(typed) if typed is not None else 0)
    _parse(library, network, path)
    types, of_products = _list_types(library, network)
    check_precision(
        compute_shares(of_products), precision, least=LEAST_PRODUCTS, what=f"{path.name}, as {library.target} reads it,"
    )
    msda = _find_msda(network, path)
    config = _configure(library, builder, network, graph=graph, settings=settings, timing_cache=timing_cache)
    if architectures:
        _set_architectures(library, config, architectures)
    monitor = _make_monitor(library, graph, on_progress)
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if serialized is None:
        _raise_failure(library, graph, settings)
    kept = config.get_timing_cache() if settings.timing_cache and not library.is_portable else None
    return Built(
        content=bytes(serialized),
        shares=compute_shares(types),
        msda=msda,
        build_seconds=time.monotonic() - began,
        timing_cache=bytes(kept.serialize()) if kept is not None else None,
        warnings=tuple(dict.fromkeys(library.messages.warnings)),
    )


def _raise_failure(library: TensorRTLibrary, graph: str, settings: BuildProfile) -> None:
    described, batch = library.messages.first_error, settings.batch_of(graph)
    if library.messages.is_out_of_memory:
        raise DeviceMemoryError(
            f"the GPU has too little memory to build {graph} with {settings.workspace_mib} MiB of workspace and "
            f"batches of up to {batch.max} ({described}): take a profile with less of either, or fp16"
        )
    raise EngineError(f"{library.target} {library.version} can't build {graph} ({described}): please report this")
