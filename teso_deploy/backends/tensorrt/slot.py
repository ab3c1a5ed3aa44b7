"""Runs of a TensorRT engine: tensors stay on the GPU, and each shape is recorded as a CUDA graph."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.cuda.arrays import DeviceArray, take_array
from teso_deploy.backends.cuda.device import Graph, Stream
from teso_deploy.backends.cuda.tensors import DeviceTensor, HostInput
from teso_deploy.backends.engine import Tensor
from teso_deploy.backends.tensorrt.sidecar import REBUILD
from teso_deploy.backends.tensorrt.validity import explain_memory
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError

if TYPE_CHECKING:
    from teso_deploy.backends.tensorrt.engine import TensorRTEngine

#: The number of shapes whose outputs and CUDA graphs a slot keeps.
MOST_SHAPES = 4
#: The number of combinations of input addresses that are remembered for each shape.
MOST_GRAPHS = 16
#: Addresses of the inputs of a run. A CUDA graph is valid until one of them changes.
_Addresses = tuple[int, ...]
#: An input on the host, in one of our tensors, or in another library's memory on this GPU.
_Given = NDArray[Any] | DeviceTensor | DeviceArray


@dataclass(eq=False)
class _Shaped:
    """The objects that a slot keeps for one combination of input shapes.

    Attributes:
        context: Its own execution context: a CUDA graph is only valid until the context that it was recorded from gets
            other shapes.
        outputs: The outputs by name.
        host_inputs: The buffers of each input that comes from the host.
        graphs: Addresses of the inputs → their CUDA graph; None if none could be recorded.
        seen: Addresses of inputs that were run without a graph, which has to happen before one is recorded.
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
    """The :class:`~teso_deploy.backends.engine.Slot` of an engine, with one stream for copies and one for kernels."""

    def __init__(self, owner: TensorRTEngine) -> None:
        self._owner, self._device = owner, owner.device
        self._activations = owner.activations()
        self._compute, self._copies = self._device.stream(), self._device.stream()
        # In order of use: the shapes of the last run are at the end.
        self._kept: OrderedDict[tuple[tuple[int, ...], ...], _Shaped] = OrderedDict()
        self._borrowed: list[DeviceArray] = []
        #: The reason why no CUDA graph is used, if the profile asks for CUDA graphs.
        self.note: str | None = None
        weakref.finalize(self, _finish, self._copies, self._compute)  # before contexts, graphs and buffers are freed

    @property
    def _now(self) -> _Shaped:
        """The objects for the shapes of the last run."""
        return next(reversed(self._kept.values()))

    @property
    def _graphs(self) -> dict[_Addresses, Graph | None]:
        return self._now.graphs

    def _take_input(self, name: str, value: NDArray[Any] | Tensor | Any) -> _Given:
        """Take an input without copying it. Its content is complete for all work that is queued after the call."""
        dtype = self._owner.dtypes[name]
        if isinstance(value, DeviceTensor):
            if value.dtype != dtype:
                raise EngineError(f"{self._owner.name}: {name} is {value.dtype}, the engine takes {dtype}: {REBUILD}")
            return value
        if not isinstance(value, np.ndarray) and (hasattr(value, "__dlpack__") or not hasattr(value, "numpy")):
            array = take_array(value, self._device, self._compute)
            if not array.is_on_host:
                return array.contiguous(dtype)
            value = array.numpy()
        return np.asarray(value if isinstance(value, np.ndarray) else value.numpy())

    def _make_shaped(self, shapes: dict[str, tuple[int, ...]]) -> _Shaped:
        """Make a context for these input shapes, and the outputs that follow from them."""
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
        """Make :attr:`_now` the entry for these inputs' shapes. If this fails, no existing entry has changed."""
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        key = tuple(shapes.values())
        if key not in self._kept:
            made = self._make_shaped(shapes)
            self._drop(MOST_SHAPES - 1)
            self._kept[key] = made
        self._kept.move_to_end(key)
        held = self._now.host_inputs
        for name, value in given.items():
            if isinstance(value, np.ndarray) and name not in held:
                held[name] = HostInput(self._device, value.shape, self._owner.dtypes[name], stream=self._copies)

    def _drop(self, most: int) -> None:
        """Delete the entries of all but the ``most`` shapes that were used last."""
        if len(self._kept) > most:
            self._compute.synchronize()  # contexts and graphs are in use until then
        while len(self._kept) > most:
            self._kept.popitem(last=False)

    def _make_room(self, given: dict[str, _Given]) -> None:
        try:
            return self._prepare(given)
        except DeviceMemoryError:
            if not self._kept:
                raise
        # Free the buffers of other shapes. The except block would still hold what the failed attempt allocated.
        self._drop(0)
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
        """Queue a run and return; ``numpy()`` of an output waits until it is done.

        Inputs may have other shapes than before, within the build profile. Runs of one shape return the same output
        tensors while the shape is among the last :data:`MOST_SHAPES` and the GPU's memory suffices.

        Inputs may also be arrays of other libraries on this GPU, by DLPack or the CUDA array interface. Their kind
        decides when they may be written again:

        - NumPy arrays: as soon as this returns.
        - Tensors of slots: at any time, by their slots.
        - Arrays that name their owner's stream (``stream`` of the CUDA array interface): by work that is queued on
          that stream after this call.
        - Arrays that name no stream (DLPack never does): as soon as this returns, because it then waits until the
          array has been read.
        """
        self._device.activate()
        if self._borrowed:  # their memory may be reused as soon as they are released
            self._compute.synchronize()
            self._borrowed.clear()
        given = {name: self._take_input(name, feeds[name]) for name in self._owner.inputs}
        self._make_room(given)
        inputs = {name: self._upload(name, value) for name, value in given.items()}
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

    def _upload(self, name: str, value: _Given) -> DeviceTensor | DeviceArray:
        return self._now.host_inputs[name].fill(value) if isinstance(value, np.ndarray) else value

    def _execute(self) -> None:
        messages = self._owner.library.messages
        messages.errors.clear()
        if not self._now.context.execute_async_v3(self._compute.handle):
            if messages.is_out_of_memory:
                raise explain_memory(self._device, self._owner.sidecar, "did not run")
            raise DeviceError(
                f"the engine of {self._owner.name} did not run ({messages.first_error}): "
                f"{REBUILD}; if that does not help, please report this"
            )

    def _enqueue(self, places: dict[str, int]) -> None:
        """Queue the kernels, by a CUDA graph if one was recorded for these addresses of the inputs."""
        now, addresses = self._now, tuple(places.values())
        if (graph := now.graphs.get(addresses)) is not None:
            return graph.launch(self._compute)
        for name, pointer in places.items():
            if not now.context.set_tensor_address(name, pointer):
                raise EngineError(
                    f"{self._owner.name} can't read {name} at {pointer:#x} "
                    f"({self._owner.library.messages.first_error}): copy it into separate memory"
                )
        if addresses not in now.seen:  # a first run may initialise things, which must not be recorded
            self._execute()
            if len(now.seen) >= MOST_GRAPHS:  # the inputs have other addresses each time
                self._compute.synchronize()
                now.graphs.clear()
                now.seen.clear()
            if not now.seen:
                self._compute.synchronize()
                self._owner.keep_jit()
            now.seen.add(addresses)
            return None
        if self._owner.sidecar.settings.cuda_graphs and addresses not in now.graphs:
            now.graphs[addresses] = recorded = self._capture()
            if recorded is not None:
                return recorded.launch(self._compute)
        return self._execute()

    def _capture(self) -> Graph | None:
        self._compute.synchronize()
        context = self._now.context
        may_capture = getattr(context, "is_stream_capturable", None)  # TensorRT-RTX sometimes allocates during a run
        if may_capture is not None and not may_capture(self._compute.handle):
            self.note = f"no CUDA graph for {self._owner.name}: {self._owner.backend} says that it can't be recorded"
            return None
        try:
            with self._compute.capture() as graph:
                self._execute()
            return graph
        except DeviceError as error:  # for example a plugin that synchronises: slower, but as correct
            self.note = f"no CUDA graph for {self._owner.name}: {error}"
            return None
