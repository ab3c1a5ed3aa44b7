"""A TensorRT whose engines are ONNX files, run by ONNX Runtime: all that the code does around the real one.

:func:`fake_tensorrt` gives a module. What the real one refuses, this one refuses: another version's engine, a
batch outside of the profile, tensors without an address. Work is queued on the streams of a :class:`FakeDevice`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.fake_gpu import FakeDevice

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


class Diagnostics(enum.Enum):
    UNSUPPORTED_CC = 1


def _named(*names: str) -> Any:
    return SimpleNamespace(**{name: name for name in names})


class Fake:
    """State of a fake library. ``device``: whose memory its engines work in.

    ``version``; ``plugins``: (name, version) that are registered; ``fails``: what a build says and gives nothing;
    ``bends``: adds this to every output, as a miscompiled engine might; ``half_as``: the type that the inspector
    shows for half tensors; ``valid``: what TensorRT-RTX says of engines;
    ``full``: no engine fits into the memory. ``builds``, ``runs``: how many there were.
    """

    def __init__(self, device: FakeDevice | None, is_rtx: bool) -> None:
        self.device, self.is_rtx = device, is_rtx
        self.version = "1.7.1.116" if is_rtx else "11.4.0.5"
        self.plugins: list[tuple[str, str]] = []
        self.fails: str | None = None
        self.bends = 0.0
        self.half_as = "Half"
        self.valid = True
        self.full = False
        self.builds = self.runs = 0
        self.deserialized: list[bytes] = []


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        kind = value.type.tensor_type
        self.shape = tuple(-1 if d.dim_param else d.dim_value for d in kind.shape.dim)
        self.dtype = DataType(kind.elem_type)


def fake_tensorrt(state: Fake) -> Any:
    """A module to be adopted."""
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

        def set_memory_pool_limit(self, pool: str, limit: int) -> None:
            assert limit > 0

        def clear_flag(self, flag: str) -> None:
            self.cleared.append(flag)

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
            head["capabilities"] = config.capabilities
            return json.dumps(head).encode()

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._shapes[name] = tuple(shape)
            return len(shape) == len(self._engine.tensors[name].shape)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch = next(iter(self._shapes.values()))[0]
            return (batch, *self._engine.tensors[name].shape[1:])

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            engine = self._engine
            if set(self._addresses) != set(engine.tensors):
                return False
            addresses, shapes = dict(self._addresses), dict(self._shapes)
            outputs = {name: self.get_tensor_shape(name) for name in engine.outputs}
            assert state.device is not None
            state.device.streams[stream].queue(lambda: engine.compute(addresses, shapes, outputs))
            return True

    class Engine:
        def __init__(self, head: dict[str, Any]) -> None:
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

        def create_engine_inspector(self) -> Any:
            layers = [
                {"Outputs": [{"Name": "a", "Format/Datatype": state.half_as if self.is_half else "Float"}]},
                {"Outputs": [{"Name": "b", "Format/Datatype": "Float"}, {"Name": "i", "Format/Datatype": "Int64"}]},
            ]
            text = json.dumps({"Layers": layers})
            return SimpleNamespace(get_engine_information=lambda form: text)

        def create_execution_context(self, config: Any = None) -> Context | None:
            assert state.device is not None
            return Context(self) if state.device.memory_info()[0] >= self.device_memory_size_v2 else None

        def create_runtime_config(self) -> Any:
            cache = SimpleNamespace(serialize=lambda: b"compiled", deserialize=lambda content: content == b"compiled")
            return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda cache: None)

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
                    EngineValidity.VALID if state.valid else EngineValidity.INVALID,
                    [] if state.valid else [Diagnostics.UNSUPPORTED_CC],
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
            return Engine(head)

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
        module.ComputeCapability = _named("SM86", "SM89", "SM120", "NONE", "CURRENT")
    return module
