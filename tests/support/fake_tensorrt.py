"""A TensorRT whose engines are ONNX files that ONNX Runtime runs. It has everything that our code uses of the real one.

:func:`fake_tensorrt` returns a module. It refuses what the real one refuses: an engine of another version, a batch
outside of the profile, tensors without an address. Work is queued on the streams of a :class:`FakeDevice`.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.support.fake_gpu import FakeDevice

_NUMPY = {1: np.float32, 7: np.int64, 9: np.bool_, 10: np.float16}


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class LayerType(enum.Enum):
    CONSTANT = 0
    MATRIX_MULTIPLY = 1
    CONVOLUTION = 2
    DECONVOLUTION = 3
    ELEMENTWISE = 4
    PLUGIN_V3 = 5


PRODUCTS = {
    "MatMul": LayerType.MATRIX_MULTIPLY,
    "Gemm": LayerType.MATRIX_MULTIPLY,
    "Conv": LayerType.CONVOLUTION,
}


class DataType(enum.Enum):
    FLOAT = 1
    HALF = 10
    INT64 = 7
    BOOL = 9


class TensorIOMode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class EngineValidity(enum.Enum):
    VALID = 0
    INVALID = 2


class Diagnostics(enum.IntFlag):
    """Bits, as in TensorRT-RTX 1.7."""

    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


def _named(*names: str) -> Any:
    return SimpleNamespace(**{name: name for name in names})


class Fake:
    """The state of a fake library.

    Attributes:
        device: The device in whose memory its engines work.
        version: The version that it claims.
        plugins: (name, version) of each registered plugin.
        fails: The message of a build that fails.
        bends: A number that is added to every output, as a miscompiled engine might do.
        half_as: The type that the inspector shows for half tensors.
        inspected: The complete output of the inspector, in place of a real one.
        invalid: Bits of TensorRT-RTX's reasons against an engine.
        full: True if no engine fits into the memory.
        refuses_context: The message with which it refuses to make a context.
        refuses_run: The message with which it refuses a run.
        is_capturable: What TensorRT-RTX says about contexts.
        builds: How many builds there were.
        runs: How many runs there were.
        contexts: How many contexts were made.
    """

    def __init__(self, device: FakeDevice | None, is_rtx: bool) -> None:
        self.device, self.is_rtx = device, is_rtx
        self.version = "1.7.1.116" if is_rtx else "11.4.0.5"
        self.plugins: list[tuple[str, str]] = []
        self.fails: str | None = None
        self.bends = 0.0
        self.half_as = "Half"
        self.inspected: str | None = None
        self.invalid = 0
        self.full = False
        self.refuses_context: str | None = None
        self.refuses_run: str | None = None
        self.is_capturable = True
        self.builds = self.runs = self.contexts = 0
        self.deserialized: list[bytes] = []


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        kind = value.type.tensor_type
        self.shape = tuple(-1 if d.dim_param else d.dim_value for d in kind.shape.dim)
        self.dtype = DataType(kind.elem_type)


def fake_tensorrt(state: Fake) -> Any:
    """Return a module that can be used as the library."""
    logs: list[Any] = []

    class ILogger:
        def log(self, severity: Severity, text: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        pass

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self.num_errors, self._said = network, 0, ""

        def parse_from_file(self, path: str) -> bool:
            try:
                model = onnx.load(path)
            except Exception as error:
                self.num_errors, self._said = 1, f"not a model: {error}"
                return False
            self._network.load(path, model)
            return True

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: self._said)

    class Network:
        def load(self, path: str, model: onnx.ModelProto) -> None:
            self.path = path
            self.inputs = [Tensor(value) for value in model.graph.input]
            self.layers = []
            inferred = onnx.shape_inference.infer_shapes(model)
            types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *model.graph.output)}
            for node in model.graph.node:
                kind = {
                    "MatMul": LayerType.MATRIX_MULTIPLY,
                    "Gemm": LayerType.MATRIX_MULTIPLY,
                    "Conv": LayerType.CONVOLUTION,
                }
                layer_type = kind.get(node.op_type, LayerType.ELEMENTWISE)
                if node.domain and (node.op_type, "2") in state.plugins:
                    layer_type = LayerType.PLUGIN_V3
                outputs = [SimpleNamespace(dtype=DataType(types[n])) for n in node.output if types.get(n, 0) in _NUMPY]
                self.layers.append(
                    SimpleNamespace(type=layer_type, num_outputs=len(outputs), get_output=outputs.__getitem__)
                )

        num_layers = property(lambda self: len(self.layers))
        num_inputs = property(lambda self: len(self.inputs))

        def get_layer(self, index: int) -> Any:
            return self.layers[index]

        def get_input(self, index: int) -> Tensor:
            return self.inputs[index]

    class Config:
        num_compute_capabilities = 0

        def __init__(self) -> None:
            self.profile: dict[str, Any] = {}
            self.capabilities: list[str] = []
            self.timings = b""
            self.cleared: list[str] = []
            self.flags: list[str] = []

        def set_memory_pool_limit(self, pool: str, limit: int) -> None:
            assert limit > 0

        def clear_flag(self, flag: str) -> None:
            self.cleared.append(flag)

        def set_flag(self, flag: str) -> None:
            self.flags.append(flag)

        def create_timing_cache(self, content: bytes) -> Any:
            return SimpleNamespace(content=content, serialize=lambda: b"timings")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self.timings = cache.content
            return cache.content in (b"", b"timings")

        def get_timing_cache(self) -> Any:
            return self.create_timing_cache(b"")

        def set_compute_capability(self, capability: str, index: int) -> bool:
            self.capabilities.append(capability)
            return True

        def add_optimization_profile(self, profile: Any) -> None:
            self.profile = profile.shapes

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int) -> Network:
            assert flags == 1, "strongly typed"
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.update({name: three}))

        def build_serialized_network(self, network: Network, config: Any) -> bytes | None:
            state.builds += 1
            config.progress_monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                if not config.progress_monitor.step_complete("Building engine", step):
                    return None
            config.progress_monitor.phase_finish("Building engine")
            if state.fails is not None:
                self._logger.log(Severity.ERROR, state.fails)
                return None
            assert "TF32" in config.cleared
            head = {"version": state.version, "path": network.path, "profile": config.profile}
            head["capabilities"], head["flags"] = config.capabilities, config.flags
            return json.dumps(head).encode()

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self.shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._memory = (0, 0)
            if state.is_rtx:
                self.is_stream_capturable = lambda stream: state.is_capturable and "REQUIRE" in str(engine.flags)

        def set_device_memory(self, memory: int, size: int) -> None:
            self._memory = memory, size

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = tuple(shape)
            return len(shape) == len(self._engine.tensors[name].shape)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch = next(iter(self.shapes.values()))[0]
            return (batch, *self._engine.tensors[name].shape[1:])

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            engine = self._engine
            if set(self._addresses) != set(engine.tensors):
                return False
            if state.refuses_run is not None:
                engine.logger.log(Severity.ERROR, state.refuses_run)
                return False
            assert self._memory[1] >= engine.device_memory_size_v2, "no activations"
            addresses, shapes = dict(self._addresses), dict(self.shapes)
            outputs = {name: self.get_tensor_shape(name) for name in engine.outputs}
            assert state.device is not None

            def compute() -> None:
                assert self.shapes == shapes, "a graph is run whose context has changed"
                engine.compute(addresses, shapes, outputs)

            state.device.streams[stream].queue(compute)
            return True

    class RuntimeConfig:
        allocation = "STATIC"

        def __init__(self) -> None:
            if state.is_rtx:
                self.dynamic_shapes_kernel_specialization_strategy = "LAZY"
                cache = SimpleNamespace(serialize=lambda: b"compiled", deserialize=lambda read: read == b"compiled")
                self.create_runtime_cache = lambda: cache
                self.set_runtime_cache = lambda cache: None

        @property
        def specialization(self) -> str:
            return self.dynamic_shapes_kernel_specialization_strategy

        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            self.allocation = strategy

    class Engine:
        def __init__(self, head: dict[str, Any], logger: Any) -> None:
            self.logger, self.flags = logger, head["flags"]
            model = onnx.load(head["path"], load_external_data=False)
            self.profile = head["profile"]
            self.inputs = [value.name for value in model.graph.input]
            self.outputs = [value.name for value in model.graph.output]
            self.tensors = {value.name: Tensor(value) for value in (*model.graph.input, *model.graph.output)}
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(head["path"], options, providers=["CPUExecutionProvider"])
            self.is_half = "fp16" in Path(head["path"]).name
            self.device_memory_size_v2 = 1_000_000

        num_io_tensors = property(lambda self: len(self.tensors))

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return self.tensors[name].dtype

        def get_tensor_profile_shape(self, name: str, index: int) -> Any:
            return self.profile[name]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.tensors[name].shape

        def create_engine_inspector(self) -> Any:
            layers = [
                {"Outputs": [{"Name": "a", "Format/Datatype": state.half_as if self.is_half else "Float"}]},
                {"Outputs": [{"Name": "b", "Format/Datatype": "Float"}, {"Name": "i", "Format/Datatype": "Int64"}]},
            ]
            text = state.inspected or json.dumps({"Layers": layers})
            inspector = SimpleNamespace(execution_context=None)

            def information(form: str) -> str:
                context = inspector.execution_context
                is_shaped = context is not None and set(context.shapes) == set(self.inputs)
                return (
                    text if is_shaped else re.sub(r'("Format/Datatype": )"\w+"', r'\1"N/A due to dynamic shapes"', text)
                )

            inspector.get_engine_information = information
            return inspector

        def create_execution_context(self, config: Any) -> Context | None:
            assert config.allocation == "USER_MANAGED" and (not state.is_rtx or config.specialization == "EAGER")
            if state.refuses_context is not None:
                self.logger.log(Severity.ERROR, state.refuses_context)
                return None
            state.contexts += 1
            return Context(self)

        def create_runtime_config(self) -> Any:
            return RuntimeConfig()

        def compute(self, addresses: Any, shapes: Any, outputs: Any) -> None:
            assert state.device is not None
            state.runs += 1
            feeds = {}
            for name in self.inputs:
                feeds[name] = np.empty(shapes[name], _NUMPY[self.tensors[name].dtype.value])
                state.device.read(addresses[name], feeds[name])
            found = self._session.run(self.outputs, feeds)
            for name, value in zip(self.outputs, found, strict=True):
                assert value.shape == outputs[name]
                bent = (value + state.bends).astype(value.dtype) if state.bends else value
                state.device.write(addresses[name], np.ascontiguousarray(bent))

    class Runtime:
        engine_host_code_allowed = True

        def __init__(self, logger: Any) -> None:
            self._logger = logger
            if state.is_rtx:
                self.get_engine_validity: Callable[[bytes], Any] = lambda content: (
                    EngineValidity.INVALID if state.invalid else EngineValidity.VALID,
                    state.invalid,
                )

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            assert self.engine_host_code_allowed is False, "host code stays denied"
            state.deserialized.append(content)
            head = json.loads(content)
            if state.full:
                self._logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (no further information)")
                return None
            if head["version"] != state.version:
                self._logger.log(Severity.ERROR, "version mismatch")
                return None
            return Engine(head, self._logger)

    creators = [
        SimpleNamespace(name=name, plugin_version=version, plugin_namespace="") for name, version in state.plugins
    ]
    module = SimpleNamespace(
        __version__=state.version,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        OnnxParser=OnnxParser,
        Builder=Builder,
        Runtime=Runtime,
        LayerType=LayerType,
        TensorIOMode=TensorIOMode,
        EngineValidity=EngineValidity,
        ExecutionContextAllocationStrategy=_named("STATIC", "USER_MANAGED"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=0),
        MemoryPoolType=_named("WORKSPACE"),
        ProfilingVerbosity=_named("DETAILED"),
        BuilderFlag=_named("TF32"),
        HardwareCompatibilityLevel=_named("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
        LayerInformationFormat=_named("JSON"),
        nptype=lambda dtype: _NUMPY[dtype.value],
        get_plugin_registry=lambda: SimpleNamespace(all_creators=creators),
        init_libnvinfer_plugins=lambda logger, namespace: logs.append(logger),
    )
    if state.is_rtx:
        module.EngineInvalidityDiagnostics = Diagnostics
        module.DynamicShapesKernelSpecializationStrategy = _named("LAZY", "EAGER", "NONE")
        module.BuilderFlag = _named("TF32", "REQUIRE_USER_ALLOCATION")
        module.ComputeCapability = _named("SM86", "SM89", "SM120", "NONE", "CURRENT")
    return module
