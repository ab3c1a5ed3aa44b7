"""An engine of TensorRT or TensorRT-RTX, run: tensors stay on the GPU, and each shape is one CUDA graph."""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.cuda.arrays import DeviceArray, device_array
from teso_deploy.backends.cuda.device import Device, Graph, Memory, Stream
from teso_deploy.backends.cuda.tensors import DeviceTensor, HostInput
from teso_deploy.backends.engine import Tensor
from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary
from teso_deploy.backends.tensorrt.builder import MSDA_PLUGIN
from teso_deploy.backends.tensorrt.inspection import inspected_shares
from teso_deploy.backends.tensorrt.jit_cache import JitCache
from teso_deploy.backends.tensorrt.sidecar import REBUILD, Sidecar
from teso_deploy.backends.tensorrt.validity import memory_refusal, refusal
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError
from teso_deploy.requirements import write_install_command

#: How many batches of one call are on the GPU at once.
RUN_STREAMS = 2
#: Of so many shapes a slot keeps outputs and CUDA graphs.
MOST_SHAPES = 4
#: Of each shape, inputs of so many places are remembered.
MOST_GRAPHS = 16
#: Addresses of the inputs of a run: a CUDA graph holds good as long as they are the same.
_Addresses = tuple[int, ...]
#: An input where it is: on the host, in a tensor of ours, in another library's memory on this GPU.
_Given = NDArray[Any] | DeviceTensor | DeviceArray


class TensorRTEngine:
    """See :class:`Engine`. ``content``: of a file that :func:`read_engine` has vouched for.

    Raises :class:`EngineError` where the library refuses it, :class:`DeviceMemoryError`.
    """

    #: A slot queues its run on the device's stream.
    is_asynchronous = True

    def __init__(
        self,
        library: TensorRTLibrary,
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
                f"{MSDA_PLUGIN[0]} here: {write_install_command('tensorrt', '--force-reinstall')}"
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
        validity, bits = ask(content)
        if validity == self.library.trt.EngineValidity.INVALID:
            raise refusal(self.library, self.device, self.sidecar, int(bits))

    def _raise(self, what: str) -> None:
        if self.library.messages.is_out_of_memory:
            raise memory_refusal(self.device, self.sidecar, what)
        raise EngineError(f"the engine of {self.name} {what} ({self.library.messages.first_error}): {REBUILD}")

    def activations(self) -> Memory:
        """Room for what lies between the layers, for the largest batch.

        Contexts whose work is on one stream share it. Raises :class:`DeviceMemoryError` with what would fit.
        """
        needed = int(self.engine.device_memory_size_v2)
        try:
            return self.device.allocate(needed)
        except DeviceMemoryError as error:
            free, _ = self.device.memory_info()
            most = max(self.batch_limits(name)[1] for name in self.inputs)
            fits = min(int(most * free / needed), most - 1) if needed else 0  # activations grow with the batch
            advice = f"a profile with batches of up to {fits} would fit" if fits else "not even one picture fits"
            raise DeviceMemoryError(
                f"{self.name} needs {needed / 1e6:,.0f} MB for activations in batches of up to {most}, "
                f"{self.device.name} has {free / 1e6:,.0f} MB free: {advice}, or end what else uses the GPU"
            ) from error

    def context(self) -> Any:
        """A new execution context; the weights are the engine's, and activations are the caller's to give it.

        Raises :class:`DeviceMemoryError` where the library says that memory was short, else :class:`EngineError`.
        """
        trt = self.library.trt
        self.device.activate()
        self.library.messages.errors.clear()
        runtime_config = self.engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.library.is_portable:
            # Else kernels are exchanged behind our back, where a CUDA graph goes on launching the slow ones.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
            if self._jit_cache is not None:
                self._jit_cache.use_in(runtime_config)
        context = self.engine.create_execution_context(runtime_config)
        if context is None:
            self._raise("can't be given an execution context")
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
        """Of the floating-point tensors that the built layers give, the share of each type, by the inspector.

        Empty where it does not say; see :func:`inspected_shares`.
        """
        inspector = self.engine.create_engine_inspector()
        with suppress(EngineError, DeviceError):  # without it, types of dynamic shapes are left unsaid
            context = self.context()
            for name in self.inputs:
                context.set_input_shape(name, tuple(self.engine.get_tensor_profile_shape(name, 0)[1]))
            inspector.execution_context = context
        return inspected_shares(inspector.get_engine_information(self.library.trt.LayerInformationFormat.JSON))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See :meth:`Engine.run`. More rows than its largest batch are run as several, on two streams in turn:
        while one is computed, the next is on its way. No rows give no rows."""
        rows = len(feeds[self.inputs[0]])
        if different := [name for name in self.inputs if len(feeds[name]) != rows]:
            raise EngineError(
                f"{self.name} was given {rows} of {self.inputs[0]} and {len(feeds[different[0]])} of {different[0]}: "
                "give as many rows of each input"
            )
        if not rows:
            shapes = {name: tuple(self.engine.get_tensor_shape(name))[1:] for name in self.outputs}
            return {name: np.empty((0, *shapes[name]), self.dtypes[name]) for name in self.outputs}
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


@dataclass(eq=False)
class _Shaped:
    """What a slot keeps for one shape of each input.

    The context is its own: a CUDA graph is only valid as long as the context that it was recorded from keeps its
    shapes. ``seen``: where inputs lay that have been run without a graph, which has to be before one is recorded.
    """

    context: Any
    outputs: dict[str, DeviceTensor]
    host_inputs: dict[str, HostInput] = field(default_factory=dict)
    graphs: dict[_Addresses, Graph | None] = field(default_factory=dict)
    seen: set[_Addresses] = field(default_factory=set)


def _finish(*streams: Stream) -> None:
    with suppress(DeviceError):
        for stream in streams:
            stream.synchronize()


class TensorRTSlot:
    """See :class:`Slot`. Copies run on one stream, kernels on another; both are this slot's alone."""

    def __init__(self, owner: TensorRTEngine) -> None:
        self._owner, self._device = owner, owner.device
        self._activations = owner.activations()
        self._compute, self._copies = self._device.stream(), self._device.stream()
        self._kept: OrderedDict[tuple[tuple[int, ...], ...], _Shaped] = OrderedDict()  # the last used one is the last
        self._borrowed: list[DeviceArray] = []
        #: Why no CUDA graph is used, where the profile asks for them.
        self.note: str | None = None
        weakref.finalize(self, _finish, self._copies, self._compute)  # before contexts, graphs and buffers go

    @property
    def _now(self) -> _Shaped:
        """Of the last shape."""
        return next(reversed(self._kept.values()))

    @property
    def _graphs(self) -> dict[_Addresses, Graph | None]:
        return self._now.graphs

    def _given(self, name: str, value: NDArray[Any] | Tensor | Any) -> _Given:
        """What is fed to an input, where it is. What is queued from now on sees what is in it."""
        dtype = self._owner.dtypes[name]
        if isinstance(value, DeviceTensor):
            if value.dtype != dtype:
                raise EngineError(f"{self._owner.name}: {name} is {value.dtype}, the engine takes {dtype}: {REBUILD}")
            return value
        if not isinstance(value, np.ndarray) and (hasattr(value, "__dlpack__") or not hasattr(value, "numpy")):
            array = device_array(value, self._device, self._compute)
            if not array.is_on_host:
                return array.contiguous(dtype)
            value = array.numpy()
        return np.asarray(value if isinstance(value, np.ndarray) else value.numpy())

    def _made(self, shapes: dict[str, tuple[int, ...]]) -> _Shaped:
        """A context for these shapes, and room for the outputs that follow from them."""
        self._check_batches(shapes)
        context = self._owner.context()
        context.set_device_memory(self._activations.pointer, self._activations.nbytes)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"the engine of {self._owner.name} can't take {name} as {shape}: {REBUILD}")
        outputs = {
            name: DeviceTensor(self._device, tuple(context.get_tensor_shape(name)), self._owner.dtypes[name])
            for name in self._owner.outputs
        }
        for name, tensor in outputs.items():
            context.set_tensor_address(name, tensor.pointer)
        return _Shaped(context, outputs)

    def _prepare(self, given: dict[str, _Given]) -> None:
        """Make :attr:`_now` that of these inputs' shapes. Where this fails, what was kept is as it was."""
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        key = tuple(shapes.values())
        if key not in self._kept:
            made = self._made(shapes)
            self._drop(MOST_SHAPES - 1)
            self._kept[key] = made
        self._kept.move_to_end(key)
        held = self._now.host_inputs
        for name, value in given.items():
            if isinstance(value, np.ndarray) and name not in held:
                held[name] = HostInput(self._device, value.shape, self._owner.dtypes[name], self._copies)

    def _drop(self, most: int) -> None:
        """Forget all but the ``most`` shapes that were used last."""
        if len(self._kept) > most:
            self._compute.synchronize()  # contexts and graphs are at work up to there
        while len(self._kept) > most:
            self._kept.popitem(last=False)

    def _make_room(self, given: dict[str, _Given]) -> None:
        try:
            return self._prepare(given)
        except DeviceMemoryError:
            if not self._kept:
                raise
        self._drop(0)  # other shapes' buffers; not in the except, which still holds what the failure had got
        return self._prepare(given)

    def _check_batches(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            least, most = self._owner.batch_limits(name)
            rows = shape[0] if shape else 0
            if not least <= rows <= most:
                raise EngineError(
                    f"the engine of {self._owner.name} takes batches of {least} to {most}, not {rows}: build it "
                    "with a profile that has them (--profile)"
                )

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, DeviceTensor]:
        """See :meth:`Slot.run`. Queues the work and returns: ``numpy()`` of an output waits for it.

        Inputs may have other shapes than before, within the profile. The outputs are the same tensors for the same
        shapes, as long as these are among the last :data:`MOST_SHAPES` and the GPU's memory suffices.

        Inputs may also be arrays of other libraries on this GPU, by DLPack or the CUDA array interface. When may
        they be written again? NumPy arrays as soon as this returns, tensors of slots by their slots at any time.
        Where an array names the stream that its owner works on (``stream`` of the CUDA array interface), by what is
        queued on that stream behind this call. Where it names none (DLPack never does), this returns when the array
        has been read: it may be written at once, from anywhere.
        """
        self._device.activate()
        if self._borrowed:  # whose memory may be used again as soon as nobody holds it
            self._compute.synchronize()
            self._borrowed.clear()
        given = {name: self._given(name, feeds[name]) for name in self._owner.inputs}
        self._make_room(given)
        inputs = {name: self._uploaded(name, value) for name, value in given.items()}
        outputs = self._now.outputs
        for value in inputs.values():
            if isinstance(value, DeviceTensor):
                value.wait_ready(self._compute)
        for output in outputs.values():
            output.wait_unread(self._compute)
        self._borrowed += [value for value in inputs.values() if isinstance(value, DeviceArray)]
        self._enqueue({name: value.pointer for name, value in inputs.items()})
        done = self._compute.record()
        for output in outputs.values():
            output.ready = done
        for value in inputs.values():
            if isinstance(value, DeviceTensor):
                value.read_until(id(self), done)
        for array in self._borrowed:
            if array.owner_stream is not None:
                self._device.order_streams(self._compute.handle, array.owner_stream)
        if any(array.owner_stream is None for array in self._borrowed):
            done.synchronize()
        return outputs

    def _uploaded(self, name: str, value: _Given) -> DeviceTensor | DeviceArray:
        return self._now.host_inputs[name].fill(value) if isinstance(value, np.ndarray) else value

    def _execute(self) -> None:
        messages = self._owner.library.messages
        messages.errors.clear()
        if not self._now.context.execute_async_v3(self._compute.handle):
            if messages.is_out_of_memory:
                raise memory_refusal(self._device, self._owner.sidecar, "did not run")
            raise DeviceError(
                f"the engine of {self._owner.name} did not run ({messages.first_error}): "
                f"{REBUILD}; if it goes on, please report this"
            )

    def _enqueue(self, places: dict[str, int]) -> None:
        """``places``: addresses of the inputs."""
        now, addresses = self._now, tuple(places.values())
        if (graph := now.graphs.get(addresses)) is not None:
            return graph.launch(self._compute)
        for name, pointer in places.items():
            if not now.context.set_tensor_address(name, pointer):
                raise EngineError(
                    f"{self._owner.name} can't read {name} at {pointer:#x} "
                    f"({self._owner.library.messages.first_error}): copy it to memory of its own"
                )
        if addresses not in now.seen:  # what is set up lazily must not be recorded
            self._execute()
            if len(now.seen) >= MOST_GRAPHS:  # inputs that lie elsewhere each time
                self._compute.synchronize()
                now.graphs.clear()
                now.seen.clear()
            if not now.seen:
                self._compute.synchronize()
                self._owner.keep_jit()
            now.seen.add(addresses)
            return None
        if self._owner.sidecar.settings.cuda_graphs and addresses not in now.graphs:
            now.graphs[addresses] = recorded = self._captured()
            if recorded is not None:
                return recorded.launch(self._compute)
        return self._execute()

    def _captured(self) -> Graph | None:
        self._compute.synchronize()
        context = self._now.context
        may_capture = getattr(context, "is_stream_capturable", None)  # TensorRT-RTX allocates while it runs, at times
        if may_capture is not None and not may_capture(self._compute.handle):
            self.note = f"no CUDA graph for {self._owner.name}: {self._owner.backend} says that it can't be recorded"
            return None
        try:
            with self._compute.capture() as graph:
                self._execute()
            return graph
        except DeviceError as error:  # a plugin that synchronises, say: slower, and as right
            self.note = f"no CUDA graph for {self._owner.name}: {error}"
            return None
