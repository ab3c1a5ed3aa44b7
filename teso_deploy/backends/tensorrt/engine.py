"""An engine of TensorRT or TensorRT-RTX, run: tensors stay on the GPU, and each shape is one CUDA graph."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.cuda.arrays import DeviceArray, device_array
from teso_deploy.backends.cuda.device import Device, Event, Graph
from teso_deploy.backends.cuda.tensors import DeviceTensor, HostInput
from teso_deploy.backends.engine import Tensor
from teso_deploy.backends.tensorrt.builder import MSDA_PLUGIN, shares_of
from teso_deploy.backends.tensorrt.jit_cache import JitCache
from teso_deploy.backends.tensorrt.library import Library
from teso_deploy.backends.tensorrt.sidecar import REBUILD, Sidecar
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError

#: How many batches of one call are on the GPU at once.
RUN_STREAMS = 2
#: Inputs of so many places are remembered.
MOST_GRAPHS = 16
#: Addresses of the inputs of a run: a CUDA graph holds good as long as they are the same.
_Addresses = tuple[int, ...]


class TensorRTEngine:
    """See :class:`Engine`. ``content``: of a file that :func:`read_engine` has vouched for.

    Raises :class:`EngineError` where the library refuses it, :class:`DeviceMemoryError`.
    """

    def __init__(
        self,
        library: Library,
        device: Device,
        content: bytes,
        sidecar: Sidecar,
        form: str | None = None,
        jit_cache: JitCache | None = None,
    ) -> None:
        trt = library.trt
        self.library, self.device, self.sidecar, self.form = library, device, sidecar, form
        self.name, self.precision = sidecar.graph, sidecar.precision
        self._jit_cache = jit_cache
        if sidecar.msda == "plugin" and not library.has_plugin(*MSDA_PLUGIN):
            raise EngineError(
                f"the engine of {self.name} needs TensorRT's plugin library (libnvinfer_plugin), which has no "
                f"{MSDA_PLUGIN[0]} here: pip install --force-reinstall 'teso-deploy[tensorrt]'"
            )
        library.messages.errors.clear()
        device.activate()
        runtime = trt.Runtime(library.logger)
        runtime.engine_host_code_allowed = False
        self._check_validity(runtime, content)
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            self._raise("can't be loaded")
        self._runtime, self.engine = runtime, engine  # the runtime has to outlive its engines
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(name for name in names if is_input[name])
        self.outputs = tuple(name for name in names if not is_input[name])
        self.dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._own_slots: list[TensorRTSlot] = []

    @property
    def backend(self) -> str:
        """``tensorrt`` or ``tensorrt-rtx``."""
        return self.library.target

    def _check_validity(self, runtime: Any, content: bytes) -> None:
        """Ask TensorRT-RTX, which can tell without loading it, whether the engine may run here."""
        ask = getattr(runtime, "get_engine_validity", None)
        if ask is None:
            return
        validity, diagnostics = ask(content)
        if validity == self.library.trt.EngineValidity.INVALID:
            names = [str(one).rpartition(".")[2].lower().replace("_", " ") for one in np.atleast_1d(diagnostics)]
            self._raise(f"does not run on {self.device.name} ({', '.join(names) or 'no reason given'})")

    def _raise(self, what: str) -> None:
        told = self.library.messages.first_error
        if self.library.messages.is_out_of_memory:
            free, total = self.device.memory_info()
            raise DeviceMemoryError(
                f"{self.name} {what}: it has {self.sidecar.bytes / 1e6:,.0f} MB and "
                f"{free / 1e6:,.0f} of {total / 1e6:,.0f} MB of {self.device.name} are free; end what else uses the "
                "GPU, take --precision fp16, or a profile with smaller batches"
            )
        raise EngineError(f"the engine of {self.name} {what} ({told}): {REBUILD}")

    def context(self) -> Any:
        """A new execution context; the weights are the engine's."""
        self.device.activate()
        self.library.messages.errors.clear()
        if self.library.is_portable and self._jit_cache is not None:
            context = self.engine.create_execution_context(self._jit_cache.configured(self.engine))
        else:
            context = self.engine.create_execution_context()
        if context is None:
            needed, (free, _) = self.engine.device_memory_size_v2, self.device.memory_info()
            most = max(self.batch_limits(name)[1] for name in self.inputs)
            fits = int(most * free / needed) if needed else 0  # activations grow with the batch
            advice = f"a profile with batches of up to {fits} would fit" if fits else "not even one picture fits"
            raise DeviceMemoryError(
                f"{self.name} needs {needed / 1e6:,.0f} MB for activations in batches of up to {most}, "
                f"{self.device.name} has {free / 1e6:,.0f} MB free: {advice}, or end what else uses the GPU"
            )
        return context

    def keep_jit(self) -> None:
        """Keep what TensorRT-RTX compiled, after the first run."""
        if self._jit_cache is not None:
            self._jit_cache.save()

    def batch_limits(self, name: str) -> tuple[int, int]:
        """The smallest and the largest batch that an input takes."""
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        return int(least[0]), int(most[0])

    def shares(self) -> dict[str, float]:
        """Of the floating-point tensors that the built layers give, the share of each type, by the inspector."""
        trt = self.library.trt
        inspector = self.engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return inspected_shares(text)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See :meth:`Engine.run`. More rows than its largest batch are run as several, on two streams in turn:
        while one is computed, the next is on its way."""
        rows = len(feeds[self.inputs[0]])
        most = min(self.batch_limits(name)[1] for name in self.inputs)
        starts = range(0, rows, most)
        while len(self._own_slots) < min(len(starts), RUN_STREAMS):
            self._own_slots.append(self.slot())
        parts: list[dict[str, NDArray[Any]]] = []
        queued: deque[Mapping[str, DeviceTensor]] = deque()
        for i, start in enumerate(starts):
            if len(queued) == len(self._own_slots):
                parts.append(_fetched(queued.popleft()))
            part = {name: feeds[name][start : start + most] for name in self.inputs}
            queued.append(self._own_slots[i % len(self._own_slots)].run(part))
        parts += [_fetched(outputs) for outputs in queued]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def slot(self) -> TensorRTSlot:
        """See :meth:`Engine.slot`: an execution context, streams and buffers of its own."""
        return TensorRTSlot(self)


def _fetched(outputs: Mapping[str, DeviceTensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy().copy() for name, tensor in outputs.items()}


def inspected_shares(text: str) -> dict[str, float]:
    """The shares in what the engine inspector says (JSON); empty where it says nothing of types.

    A tensor's entry ends in its type: ``Half``, or ``FP16`` in ``Row major linear FP16 format``.
    """
    words = {"half": "fp16", "fp16": "fp16", "float": "fp32", "fp32": "fp32", "bf16": "bf16", "bfloat16": "bf16"}
    words |= {"int8": "int8", "fp8": "fp8"}
    types = []
    for said_of in json.loads(text).get("Layers", []):
        for tensor in said_of.get("Outputs", []) if isinstance(said_of, dict) else []:
            said = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "").lower()
            found = [words[word] for word in said.replace(":", " ").replace(",", " ").split() if word in words]
            types += found[-1:]
    return shares_of(types)


class TensorRTSlot:
    """See :class:`Slot`. Copies run on one stream, kernels on another; both are this slot's alone."""

    def __init__(self, owner: TensorRTEngine) -> None:
        self._owner, self._device = owner, owner.device
        self._context = owner.context()
        self._compute, self._copies = self._device.stream(), self._device.stream()
        self._host_inputs: dict[str, HostInput] = {}
        self._outputs: dict[str, DeviceTensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graphs: dict[_Addresses, Graph | None] = {}
        self._seen: set[_Addresses] = set()
        self._borrowed: list[DeviceArray] = []
        self._done: Event | None = None
        #: Why no CUDA graph is used, where the profile asks for them.
        self.note: str | None = None

    def _input(self, name: str, value: NDArray[Any] | Tensor | Any) -> tuple[int, tuple[int, ...], DeviceTensor | None]:
        """(address, shape, the tensor to wait for) of what is fed to an input."""
        dtype = self._owner.dtypes[name]
        if isinstance(value, DeviceTensor):
            if value.dtype != dtype:
                raise EngineError(f"{self._owner.name}: {name} is {value.dtype}, the engine takes {dtype}: {REBUILD}")
            return value.pointer, value.shape, value
        if not isinstance(value, np.ndarray) and (hasattr(value, "__dlpack__") or not hasattr(value, "numpy")):
            array = device_array(value, self._device, self._compute)
            if not array.is_on_host:
                self._borrowed.append(array)  # whose memory may be used again as soon as nobody holds it
                return array.contiguous(dtype).pointer, array.shape, None
            value = array.numpy()
        array_like = np.asarray(value if isinstance(value, np.ndarray) else value.numpy())
        held = self._host_inputs.get(name)
        if held is None or held.tensor.shape != array_like.shape:
            held = self._host_inputs[name] = HostInput(self._device, array_like.shape, dtype, self._copies)
        tensor = held.fill(array_like)
        return tensor.pointer, tensor.shape, tensor

    def _check_batch(self, name: str, shape: tuple[int, ...]) -> None:
        least, most = self._owner.batch_limits(name)
        if not least <= shape[0] <= most:
            raise EngineError(
                f"the engine of {self._owner.name} takes batches of {least} to {most}, not {shape[0]}: build it "
                "with a profile that has them (--profile)"
            )

    def _shaped(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Tell the context the inputs' shapes, and make room for the outputs that follow from them."""
        for name, shape in shapes.items():
            self._check_batch(name, shape)
            if not self._context.set_input_shape(name, shape):
                raise EngineError(f"the engine of {self._owner.name} can't take {name} as {shape}: {REBUILD}")
        self._graphs.clear()
        self._seen.clear()
        for name in self._owner.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            tensor = DeviceTensor(self._device, shape, self._owner.dtypes[name])
            self._outputs[name] = tensor
            self._context.set_tensor_address(name, tensor.pointer)
        self._shapes = shapes

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, DeviceTensor]:
        """See :meth:`Slot.run`. Queues the work and returns: ``numpy()`` of an output waits for it.

        Inputs may also be arrays of other libraries on this GPU, by DLPack or the CUDA array interface. For
        another shape than the last one's the outputs are new tensors.
        """
        self._device.activate()
        if self._borrowed and self._done is not None:
            self._done.synchronize()
            self._borrowed.clear()
        taken = {name: self._input(name, feeds[name]) for name in self._owner.inputs}
        shapes = {name: shape for name, (_, shape, _) in taken.items()}
        if shapes != self._shapes:
            self._compute.synchronize()
            self._shaped(shapes)
        for name, (pointer, _, tensor) in taken.items():
            self._context.set_tensor_address(name, pointer)
            if tensor is not None:
                tensor.wait_ready(self._compute)
        for output in self._outputs.values():
            output.wait_unread(self._compute)
        self._enqueue(tuple(pointer for pointer, _, _ in taken.values()))
        self._done = done = self._compute.record()
        for output in self._outputs.values():
            output.ready = done
        for _, _, tensor in taken.values():
            if tensor is not None:
                tensor.read_until(id(self), done)
        return self._outputs

    def _execute(self) -> None:
        self._owner.library.messages.errors.clear()
        if not self._context.execute_async_v3(self._compute.handle):
            raise DeviceError(
                f"the engine of {self._owner.name} did not run ({self._owner.library.messages.first_error}): "
                f"{REBUILD}; if it goes on, please report this"
            )

    def _enqueue(self, addresses: _Addresses) -> None:
        if not self._owner.sidecar.settings.cuda_graphs:
            return self._execute()
        if addresses not in self._seen:  # what is set up lazily must not be recorded
            self._execute()
            if len(self._seen) >= MOST_GRAPHS:  # inputs that lie elsewhere each time
                self._graphs.clear()
                self._seen.clear()
            if not self._seen:
                self._compute.synchronize()
                self._owner.keep_jit()
            self._seen.add(addresses)
            return None
        if addresses not in self._graphs:
            self._graphs[addresses] = self._captured()
        graph = self._graphs[addresses]
        if graph is None:
            return self._execute()
        return graph.launch(self._compute)

    def _captured(self) -> Graph | None:
        self._compute.synchronize()
        try:
            with self._compute.capture() as graph:
                self._execute()
            return graph
        except DeviceError as error:  # a plugin that synchronises, say: slower, and as right
            self.note = f"no CUDA graph for {self._owner.name}: {error}"
            return None
