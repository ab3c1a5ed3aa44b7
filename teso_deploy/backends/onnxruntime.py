"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from teso_deploy.backends.contracts import Backend, BackendRequest
from teso_deploy.backends.engine import EngineFactory, Tensor
from teso_deploy.backends.huge_pages import huge_pages
from teso_deploy.bundle import Bundle
from teso_deploy.errors import BundleError
from teso_deploy.requirements import find_lower_bounds, is_older, read_requirements, write_upgrade_command
from teso_deploy.text import to_one_line


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


#: Slower than what they fuse: one thread of SkipLayerNormalization against two of Add and LayerNormalization.
SLOW_FUSIONS = ("SkipLayerNormFusion",)
#: How long a thread waits for work inside of a run before it goes to sleep.
SPIN_US = 1000


def check_declared(bundle: Bundle, graph: str, session: onnxruntime.InferenceSession) -> None:
    """Hold a loaded graph to the tensors that the manifest says it has.

    What is allocated and indexed later goes by the manifest. Every form of a graph has the same tensors.

    Raises:
        BundleError: A name, an element type, or a side of a shape is another one.
    """
    entry = bundle.manifest.graphs[graph]
    for said, found in ((entry.inputs, session.get_inputs()), (entry.outputs, session.get_outputs())):
        expected = {spec.name: _description(f"tensor({spec.dtype})", spec.shape) for spec in said}
        loaded = {value.name: _description(value.type, value.shape) for value in found}
        if expected != loaded:
            name = next(name for name in (*expected, *loaded) if expected.get(name) != loaded.get(name))
            raise BundleError(
                f"{bundle.folder}: the graph {graph} has {to_one_line(loaded.get(name, 'no tensor'))} for "
                f"{to_one_line(name)}, the manifest says {expected.get(name, 'nothing of it')}; export the bundle again"
            )


def _description(kind: str, shape: Sequence[int | str | None]) -> str:
    """A tensor's type and shape, as text; a side without a fixed length is the batch."""
    return f"{kind} of {' x '.join(str(side) if isinstance(side, int) else 'B' for side in shape) or 'one number'}"


def run_failure(name: str, error: Exception) -> BundleError:
    """What to raise for a graph that ONNX Runtime loads and can't run: it does not fit the inputs."""
    return BundleError(f"ONNX Runtime can't run {name} ({to_one_line(error)}); export the bundle again")


class OnnxRuntimeSlot:
    """See :class:`Slot`: an IO binding whose outputs are bound once. Its tensors are ``OrtValue``."""

    def __init__(
        self,
        name: str,
        session: onnxruntime.InferenceSession,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        check_shapes: Callable[[Sequence[Sequence[int]]], None],
    ) -> None:
        """``check_shapes``: refuses those of the outputs where they are not what the graph declares."""
        self._name, self._session, self._inputs, self._outputs = name, session, inputs, outputs
        self._check_shapes = check_shapes
        self._binding = session.io_binding()
        self._bound: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        for name in outputs:
            self._binding.bind_output(name)  # no buffer yet: the first run allocates them

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, Tensor]:
        """See :meth:`Slot.run`."""
        for name in self._inputs:
            value = feeds[name]
            if not isinstance(value, onnxruntime.OrtValue):
                self._binding.bind_cpu_input(name, np.ascontiguousarray(value))
                self._bound.pop(name, None)
            elif self._bound.get(name) is not value:
                self._binding.bind_ortvalue_input(name, value)
                self._bound[name] = value
        if self._values:
            self._run()
        else:
            with huge_pages():  # the session's activations are allocated now
                self._run()
            self._values = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
            for name, value in self._values.items():
                self._binding.bind_ortvalue_output(name, value)
        return self._values

    def _run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its own exceptions share no base class
            raise run_failure(self._name, error) from error
        if not self._values:
            self._check_shapes([value.shape() for value in self._binding.get_outputs()])


def _advise_loading() -> str:
    """What to do about a graph that can't be loaded: an old library knows no new operators."""
    bound = find_lower_bounds(read_requirements()).get("onnxruntime")
    if bound is None or not is_older(onnxruntime.__version__, bound):
        return "export the bundle again"
    return f"version {onnxruntime.__version__} is too old: {write_upgrade_command('onnxruntime', bound)}"


class OnnxRuntimeEngine:
    """The graph of a file in an ONNX Runtime session.

    ``threads``: of its operators, default all cores. ``precision`` and ``form``: what the file is.
    Raises :class:`BundleError` for a file that is no graph.
    """

    backend = "cpu"
    is_asynchronous = False

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        precision: str = "fp32",
        form: str | None = None,
    ) -> None:
        self.precision, self.form = precision, form
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its errors come as exceptions, and their text may be a stranger's
        # A graph has a thousand places where its threads meet: waiting for the next by spinning saves 4 to
        # 12 %. Behind the run it would starve the sessions of the other graphs and whatever decodes the video.
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Without VNNI products of uint8 and int8 are added up in 16 bits, which they overflow: with this the
        # library takes slower ones there, and on other processors none.
        options.add_session_config_entry("session.x64quantprecision", "1")
        # Memory patterns put a second plan of all activations beside what the first run has taken from
        # the arena: 190 MB more for Swin-B at 384 x 384, and no time won.
        options.enable_mem_pattern = False
        try:
            with huge_pages():
                self.session = onnxruntime.InferenceSession(
                    str(path), options, providers=list(providers), disabled_optimizers=list(SLOW_FUSIONS)
                )
        except Exception as error:  # its own exceptions share no base class
            reason = to_one_line(error)
            raise BundleError(f"ONNX Runtime can't load {path} ({reason}); {_advise_loading()}") from error
        self.name = path.stem
        self.inputs = tuple(value.name for value in self.session.get_inputs())
        self.outputs = tuple(value.name for value in self.session.get_outputs())
        self._declared = tuple(tuple(value.shape) for value in self.session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See :meth:`Engine.run`."""
        try:
            values = self.session.run(self.outputs, {name: feeds[name] for name in self.inputs})
        except Exception as error:  # its own exceptions share no base class
            raise run_failure(self.name, error) from error
        self._check_shapes([value.shape for value in values])
        return dict(zip(self.outputs, values, strict=True))

    def slot(self) -> OnnxRuntimeSlot:
        """See :meth:`Engine.slot`."""
        return OnnxRuntimeSlot(self.name, self.session, self.inputs, self.outputs, self._check_shapes)

    def _check_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        """Outputs of a run have the shapes that the file declares. ONNX Runtime itself only warns."""
        for name, declared, shape in zip(self.outputs, self._declared, shapes, strict=True):
            sides = zip(declared, shape, strict=False)
            if len(declared) != len(shape) or any(a != b for a, b in sides if isinstance(a, int)):
                raise BundleError(
                    f"{self.name} gives {to_one_line(name)} of shape {tuple(shape)}, its file declares "
                    f"{to_one_line(declared)}; export the bundle again"
                )


#: The target of forms that are derived for this library.
TARGET = "onnxruntime"


def onnxruntime_factory(threads: int | None = None, form: str | None = None) -> EngineFactory:
    """Engines of a bundle's graphs on the CPU: of the canonical ones, or of a form by its name in the manifest."""

    def make(bundle: Bundle, graph: str) -> OnnxRuntimeEngine:
        path = bundle.graph_path(graph, form)
        engine = OnnxRuntimeEngine(path, threads, precision=bundle.precision_of(graph, form), form=form)
        check_declared(bundle, graph, engine.session)
        return engine

    return make


def load_cpu(request: BackendRequest) -> Backend:
    """Load ONNX Runtime on the CPU. Raises :class:`BundleError` (no form of the precision)."""
    return Backend(onnxruntime_factory(request.threads, request.bundle.form_for((TARGET,), request.precision)))
