"""Engines of TensorRT and TensorRT-RTX, loaded and ready to run."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.cuda.device import Device, Memory
from teso_deploy.backends.cuda.tensors import DeviceTensor
from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary
from teso_deploy.backends.tensorrt.builder import MSDA_PLUGIN
from teso_deploy.backends.tensorrt.inspection import read_shares
from teso_deploy.backends.tensorrt.jit_cache import JitCache
from teso_deploy.backends.tensorrt.sidecar import REBUILD, Sidecar
from teso_deploy.backends.tensorrt.slot import TensorRTSlot
from teso_deploy.backends.tensorrt.validity import explain_memory, explain_refusal
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError
from teso_deploy.requirements import write_install_command

#: The number of batches of one call that are on the GPU at once.
RUN_STREAMS = 2


class TensorRTEngine:
    """A built :class:`~teso_deploy.backends.engine.Engine`, loaded on a GPU.

    Args:
        library: The library that built it.
        device: The GPU that runs it.
        content: Bytes of an engine whose hash was checked (:func:`read_engine`).
        sidecar: Its sidecar.
        form: Name in the manifest of the form that it was built from. Default: the canonical graphs.
        jit_cache: The cache of the kernels that TensorRT-RTX compiles. Default: none.

    Raises:
        EngineError: The library refuses the engine.
        DeviceMemoryError: The GPU's memory does not suffice.
    """

    #: Running a slot only queues work on the device's stream.
    is_asynchronous = True

    def __init__(
        self,
        library: TensorRTLibrary,
        device: Device,
        content: bytes,
        *,
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
        """Ask TensorRT-RTX whether the engine can run here; it answers without loading the engine."""
        ask = getattr(runtime, "get_engine_validity", None)
        if ask is None:
            return
        validity, bits = ask(content)
        if validity == self.library.trt.EngineValidity.INVALID:
            raise explain_refusal(self.library, self.device, self.sidecar, bits=int(bits))

    def _raise(self, what: str) -> None:
        if self.library.messages.is_out_of_memory:
            raise explain_memory(self.device, self.sidecar, what)
        raise EngineError(f"the engine of {self.name} {what} ({self.library.messages.first_error}): {REBUILD}")

    def activations(self) -> Memory:
        """Allocate the memory for intermediate tensors, for the largest batch.

        Contexts whose work is on one stream share it.

        Raises:
            DeviceMemoryError: The memory does not suffice; the message says which batch would fit.
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
                f"{self.device.name} has {free / 1e6:,.0f} MB free: {advice}, or stop other programs on the GPU"
            ) from error

    def context(self) -> Any:
        """Make an execution context. It shares the engine's weights; the caller sets the memory of its activations.

        Raises :class:`DeviceMemoryError` if the library reports a lack of memory, otherwise :class:`EngineError`.
        """
        trt = self.library.trt
        self.device.activate()
        self.library.messages.errors.clear()
        runtime_config = self.engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.library.is_portable:
            # Otherwise the library replaces kernels later in the background, while a CUDA graph keeps launching the
            # slow ones.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
            if self._jit_cache is not None:
                self._jit_cache.use_in(runtime_config)
        context = self.engine.create_execution_context(runtime_config)
        if context is None:
            self._raise("can't be given an execution context")
        return context

    def keep_jit(self) -> None:
        """Save the kernels that TensorRT-RTX compiled. Call it after the first run."""
        if self._jit_cache is not None:
            self._jit_cache.save()

    def batch_limits(self, name: str) -> tuple[int, int]:
        """Return the smallest and the largest batch of an input."""
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        return int(least[0]), int(most[0])

    def shares(self) -> dict[str, float]:
        """Read the share of each type among the floating-point outputs of the built layers from the library's
        inspector.

        Empty if the inspector reports none; see :func:`read_shares`.
        """
        inspector = self.engine.create_engine_inspector()
        with suppress(EngineError, DeviceError):  # without a context it omits the types of dynamic shapes
            context = self.context()
            for name in self.inputs:
                context.set_input_shape(name, tuple(self.engine.get_tensor_profile_shape(name, 0)[1]))
            inspector.execution_context = context
        return read_shares(inspector.get_engine_information(self.library.trt.LayerInformationFormat.JSON))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run any number of rows; no rows give no rows.

        More rows than the largest batch are run as several batches on two streams in turn, so that one batch is
        uploaded while another is computed.
        """
        rows = len(feeds[self.inputs[0]])
        if different := [name for name in self.inputs if len(feeds[name]) != rows]:
            raise EngineError(
                f"{self.name} was given {rows} of {self.inputs[0]} and {len(feeds[different[0]])} of {different[0]}: "
                "give the same number of rows of each input"
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
                parts.append(_fetch(queued.popleft()))
            part = {name: feeds[name][start : start + most] for name in self.inputs}
            queued.append(self._own_slots[i % len(self._own_slots)].run(part))
        parts += [_fetch(outputs) for outputs in queued]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def slot(self) -> TensorRTSlot:
        """Make a slot. It has its own execution context, streams and buffers."""
        return TensorRTSlot(self)


def _fetch(outputs: Mapping[str, DeviceTensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy().copy() for name, tensor in outputs.items()}
