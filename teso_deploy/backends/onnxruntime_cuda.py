"""ONNX Runtime on a GPU: inputs are copied to the device, and outputs stay there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from teso_deploy.backends.contracts import Backend, BackendRequest
from teso_deploy.backends.engine import EngineFactory, Tensor
from teso_deploy.backends.onnxruntime import check_declared
from teso_deploy.bundle import STANDARD, Bundle
from teso_deploy.errors import BundleError, DeviceError, DeviceMemoryError, EngineError, MissingExtraError, TesoError
from teso_deploy.requirements import write_install_command
from teso_deploy.text import to_one_line
from teso_deploy.types import Precision

PROVIDER = "CUDAExecutionProvider"
#: ONNX Runtime's names of types → NumPy's, for all types that graphs use.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16), "tensor(bool)": np.dtype(np.bool_),
    "tensor(uint8)": np.dtype(np.uint8), "tensor(int32)": np.dtype(np.int32), "tensor(int64)": np.dtype(np.int64),
}  # fmt: skip


def check_available() -> None:
    """Refuse an ONNX Runtime that was built without CUDA (:class:`MissingExtraError`)."""
    if PROVIDER not in onnxruntime.get_available_providers():
        raise MissingExtraError(
            "this ONNX Runtime has no CUDA: pip uninstall -y onnxruntime onnxruntime-gpu, then "
            f"{write_install_command('onnxruntime-gpu')}"
        )


class OnnxRuntimeCudaSlot:
    """A :class:`~teso_deploy.backends.engine.Slot` whose tensors are ``OrtValue`` on the device.

    Args:
        graph: The graph's name, for messages.
        session: The session.
        inputs: Name of each input → its type, as ONNX Runtime writes it.
        outputs: Names of the outputs.
        device: ``cuda``, or ``cpu`` for tensors in the host's memory.
        index: The GPU's number.
    """

    def __init__(
        self,
        graph: str,
        session: onnxruntime.InferenceSession,
        *,
        inputs: Mapping[str, str],
        outputs: tuple[str, ...],
        device: str,
        index: int,
    ) -> None:
        self._graph, self._session, self._inputs, self._outputs = graph, session, inputs, outputs
        self._device, self._index = device, index
        self._binding = session.io_binding()
        self._held: dict[str, onnxruntime.OrtValue] = {}
        self._values: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def _bind(self, name: str, value: Any) -> tuple[int, ...]:
        """Bind an input, and return its shape.

        Each run binds its inputs again, because the tensor of the last run may have been another one, or may be freed.
        """
        if isinstance(value, onnxruntime.OrtValue):
            self._check_type(name, value.data_type())
            self._binding.bind_ortvalue_input(name, value)
            return tuple(value.shape())
        pointer = getattr(value, "pointer", None)
        if pointer is not None:  # a tensor of our operators, which use another stream than the session
            self._check_type(name, value.dtype)
            if value.ready is not None:
                value.ready.synchronize()
            self._binding.bind_input(name, self._device, self._index, value.dtype, value.shape, pointer)
            return tuple(value.shape)
        array = np.ascontiguousarray(value)
        self._check_type(name, array.dtype)
        held = self._held.get(name)
        if held is not None and tuple(held.shape()) == array.shape:
            held.update_inplace(array)
        else:
            self._held[name] = held = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, self._index)
        self._binding.bind_ortvalue_input(name, held)
        return array.shape

    def _check_type(self, name: str, given: Any) -> None:
        """Refuse an input of another type.

        ONNX Runtime would read the address as the type that it expects.
        """
        expected = self._inputs[name]
        if given != expected and given != DTYPES.get(expected):
            raise EngineError(
                f"{self._graph}: {name} is {given}, the graph takes {DTYPES.get(expected, expected)}: convert it"
            )

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, Tensor]:
        """Run the graph and wait for the GPU.

        Raises:
            EngineError: An input has another type.
            DeviceMemoryError: The GPU's memory does not suffice.
            DeviceError: The GPU failed.
        """
        before, self._shapes = self._shapes, {}  # if this run fails, the next one starts from nothing
        try:
            shapes = {name: self._bind(name, feeds[name]) for name in self._inputs}
            if shapes != before:
                for name in self._outputs:
                    self._binding.bind_output(name, self._device, self._index)
            self._session.run_with_iobinding(self._binding)
            if shapes != before:
                self._values = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
                for name, value in self._values.items():
                    self._binding.bind_ortvalue_output(name, value)
        except TesoError:
            raise
        except Exception as error:  # its own exceptions share no base class
            raise _make_device_error(error) from error
        self._shapes = shapes
        return self._values


def _is_out_of_memory(message: str) -> bool:
    message = message.lower()  # messages of ONNX Runtime's arena, CUDA, cuBLAS and cuDNN
    if "alloc_failed" in message or "resource allocation failed" in message:
        return True
    return "memory" in message and ("allocat" in message or "out of" in message)


def _make_device_error(error: Exception) -> DeviceError:
    message = " ".join(str(error).split())
    if _is_out_of_memory(message):
        return DeviceMemoryError(
            f"the GPU has too little memory ({message[:200]}): stop other programs on the GPU, use --precision fp16, a "
            "smaller --size or smaller batches"
        )
    return DeviceError(f"ONNX Runtime failed on the GPU ({message[:300]}): run `teso-deploy doctor`")


class OnnxRuntimeCudaEngine:
    """The graph of a file in a session on a GPU. Products of fp32 are not rounded to TF32.

    Args:
        path: The file.
        precision: The precision of the file. Default: fp32.
        form: Name in the manifest of the form that the file belongs to. Default: the canonical graphs.
        device: ``cuda``; ``cpu`` is for tests without a GPU.
        index: The GPU's number.

    Raises:
        BundleError: The file is not a graph that can be loaded.
        DeviceError: The GPU can't be used.
        DeviceMemoryError: The GPU's memory does not suffice.
    """

    #: Running a slot waits until the outputs are complete.
    is_asynchronous = False

    def __init__(
        self,
        path: Path,
        *,
        precision: str = "fp32",
        form: str | None = None,
        device: str = "cuda",
        index: int = 0,
    ) -> None:
        self.precision, self.form = precision, form
        self.backend = device
        self._device, self._index = device, index
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors come as exceptions; their text may come from an untrusted file
        providers: list[Any] = ["CPUExecutionProvider"]
        if device == "cuda":
            with contextlib.suppress(AttributeError):  # loads the CUDA and cuDNN that pip installed
                onnxruntime.preload_dlls()
            providers.insert(0, (PROVIDER, {"device_id": index, "use_tf32": 0}))
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its own exceptions share no base class
            if device == "cuda" and _is_out_of_memory(str(error)):
                raise _make_device_error(error) from error
            raise BundleError(
                f"ONNX Runtime can't load {path} ({to_one_line(error)}); export the bundle again"
            ) from error
        if device == "cuda" and PROVIDER not in self.session.get_providers():
            raise DeviceError(
                "ONNX Runtime could not use the GPU and would use the CPU instead: run `teso-deploy doctor`, or use "
                "--backend cpu"
            )
        self.name = path.stem
        self._input_types = {value.name: value.type for value in self.session.get_inputs()}
        self.inputs = tuple(self._input_types)
        self.outputs = tuple(value.name for value in self.session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on arrays."""
        try:
            values = self.session.run(self.outputs, {name: feeds[name] for name in self.inputs})
        except Exception as error:
            raise _make_device_error(error) from error
        return dict(zip(self.outputs, values, strict=True))

    def slot(self) -> OnnxRuntimeCudaSlot:
        """Make a slot."""
        return OnnxRuntimeCudaSlot(
            self.name,
            self.session,
            inputs=self._input_types,
            outputs=self.outputs,
            device=self._device,
            index=self._index,
        )


def make_onnxruntime_cuda_factory(bundle: Bundle, precision: Precision = "fp32", index: int = 0) -> EngineFactory:
    """Make a factory of engines on a GPU, which run the standard form of a precision (fp32: the canonical graphs).

    Args:
        bundle: The bundle.
        precision: The precision. Default: fp32.
        index: The GPU's number. Default: 0.

    Returns:
        The factory.

    Raises:
        BundleError: The bundle has no standard form of this precision.
        MissingExtraError: ONNX Runtime was built without CUDA.
    """
    check_available()
    # The standard form of fp32 has a node for TensorRT's plugin.
    form = bundle.form_for(() if precision == "fp32" else (STANDARD,), precision)

    def make(bundle: Bundle, graph: str) -> OnnxRuntimeCudaEngine:
        engine = OnnxRuntimeCudaEngine(
            bundle.graph_path(graph, form), precision=precision, form=form, device="cuda", index=index
        )
        check_declared(bundle, graph, engine.session)
        return engine

    return make


def load_cuda(request: BackendRequest) -> Backend:
    """Load ONNX Runtime on a GPU, with our operators on the same GPU if they can be loaded.

    Raises:
        MissingExtraError: ONNX Runtime was built without CUDA.
        BundleError: The bundle has no form of the precision.
    """
    engines = make_onnxruntime_cuda_factory(request.bundle, request.precision)
    try:
        from teso_deploy.backends.cuda import opening
        from teso_deploy.backends.cuda.operators import load_device_operators

        return Backend(engines, load_device_operators(opening.open_device()))
    except TesoError as error:  # the host's operators give the same labels, more slowly
        request.on_note(f"resizing and labelling on the CPU: {error}")
        return Backend(engines)
