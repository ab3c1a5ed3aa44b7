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


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


#: Fusions that are slower than the nodes that they replace: SkipLayerNormalization runs on one thread, while Add and
#: LayerNormalization run on two.
SLOW_FUSIONS = ("SkipLayerNormFusion",)
#: How long in microseconds a thread waits for work during a run before it sleeps.
SPIN_US = 1000


def check_declared(bundle: Bundle, graph: str, session: onnxruntime.InferenceSession) -> None:
    """Check that a loaded graph has the tensors that the manifest declares.

    Later code allocates and indexes by the manifest. Every form of a graph has the same tensors.

    Args:
        bundle: The bundle with the manifest.
        graph: The graph's name in the manifest.
        session: The loaded graph, in any form.

    Raises:
        BundleError: A name, an element type, or a side of a shape differs.
    """
    entry = bundle.manifest.graphs[graph]
    for said, found in ((entry.inputs, session.get_inputs()), (entry.outputs, session.get_outputs())):
        expected = {spec.name: _describe(f"tensor({spec.dtype})", spec.shape) for spec in said}
        loaded = {value.name: _describe(value.type, value.shape) for value in found}
        if expected != loaded:
            name = next(name for name in (*expected, *loaded) if expected.get(name) != loaded.get(name))
            raise BundleError(
                f"{bundle.folder}: the graph {graph} has {to_one_line(loaded.get(name, 'no tensor'))} for "
                f"{to_one_line(name)}, the manifest says {expected.get(name, 'nothing of it')}; export the bundle again"
            )


def _describe(kind: str, shape: Sequence[int | str | None]) -> str:
    """Write a tensor's type and shape; a side without a fixed length is the batch."""
    return f"{kind} of {' x '.join(str(side) if isinstance(side, int) else 'B' for side in shape) or 'one number'}"


def explain_failure(name: str, error: Exception) -> BundleError:
    """Make the error for a graph that ONNX Runtime loads but can't run, because it does not fit the inputs."""
    return BundleError(f"ONNX Runtime can't run {name} ({to_one_line(error)}); export the bundle again")


class OnnxRuntimeSlot:
    """A :class:`~teso_deploy.backends.engine.Slot` that uses an IO binding.

    Its outputs are bound once, each as an ``OrtValue``.
    """

    def __init__(
        self,
        name: str,
        session: onnxruntime.InferenceSession,
        *,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        check_shapes: Callable[[Sequence[Sequence[int]]], None],
    ) -> None:
        """Bind the outputs of a session.

        Args:
            name: The graph's name, for messages.
            session: The session that runs the graph.
            inputs: Names of the inputs.
            outputs: Names of the outputs.
            check_shapes: Refuses shapes of outputs that the graph does not declare.
        """
        self._name, self._session, self._inputs, self._outputs = name, session, inputs, outputs
        self._check_shapes = check_shapes
        self._binding = session.io_binding()
        self._bound: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        for name in outputs:
            self._binding.bind_output(name)  # no buffer yet: the first run allocates them

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, Tensor]:
        """Run the graph; the outputs are complete when this returns."""
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
            raise explain_failure(self._name, error) from error
        if not self._values:
            self._check_shapes([value.shape() for value in self._binding.get_outputs()])


def _advise_loading() -> str:
    """Say what to do about a graph that can't be loaded: an old library lacks the newest operators."""
    bound = find_lower_bounds(read_requirements()).get("onnxruntime")
    if bound is None or not is_older(onnxruntime.__version__, bound):
        return "export the bundle again"
    return f"version {onnxruntime.__version__} is too old: {write_upgrade_command('onnxruntime', bound)}"


class OnnxRuntimeEngine:
    """The graph of a file in an ONNX Runtime session.

    Args:
        path: The file.
        threads: Threads of its operators. Default: all cores.
        providers: ONNX Runtime's execution providers. Default: the CPU.
        precision: The precision of the file, for reports. Default: fp32.
        form: Name in the manifest of the form that the file belongs to. Default: the canonical graphs.

    Raises:
        BundleError: The file is not a graph that can be loaded.
    """

    backend = "cpu"
    is_asynchronous = False

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        precision: str = "fp32",
        form: str | None = None,
    ) -> None:
        self.precision, self.form = precision, form
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or count_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its errors come as exceptions; their text may come from an untrusted file
        # The threads of a graph wait for each other a thousand times per run, and spinning saves 4 to 12 % there. After
        # the run, spinning would take the cores from the other graphs and from the video decoder.
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # On processors without VNNI, products of uint8 and int8 are summed in 16 bits, which overflow. With this option
        # the library uses slower instructions on these processors. Other processors are not affected.
        options.add_session_config_entry("session.x64quantprecision", "1")
        # Memory patterns allocate all activations a second time, in addition to the arena of the first run. For Swin-B
        # at 384 x 384 that takes 190 MB more and is not faster.
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
        """Run the graph on arrays."""
        try:
            values = self.session.run(self.outputs, {name: feeds[name] for name in self.inputs})
        except Exception as error:  # its own exceptions share no base class
            raise explain_failure(self.name, error) from error
        self._check_shapes([value.shape for value in values])
        return dict(zip(self.outputs, values, strict=True))

    def slot(self) -> OnnxRuntimeSlot:
        """Make a slot."""
        return OnnxRuntimeSlot(
            self.name, self.session, inputs=self.inputs, outputs=self.outputs, check_shapes=self._check_shapes
        )

    def _check_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        """Refuse outputs whose shapes the file does not declare; ONNX Runtime itself only warns."""
        for name, declared, shape in zip(self.outputs, self._declared, shapes, strict=True):
            sides = zip(declared, shape, strict=False)
            if len(declared) != len(shape) or any(a != b for a, b in sides if isinstance(a, int)):
                raise BundleError(
                    f"{self.name} gives {to_one_line(name)} of shape {tuple(shape)}, its file declares "
                    f"{to_one_line(declared)}; export the bundle again"
                )


#: The target of forms that are derived for this library.
TARGET = "onnxruntime"


def make_onnxruntime_factory(threads: int | None = None, form: str | None = None) -> EngineFactory:
    """Make a factory of engines on the CPU; ``form``: name of a form in the manifest, default the canonical graphs."""

    def make(bundle: Bundle, graph: str) -> OnnxRuntimeEngine:
        path = bundle.graph_path(graph, form)
        engine = OnnxRuntimeEngine(path, threads=threads, precision=bundle.precision_of(graph, form), form=form)
        check_declared(bundle, graph, engine.session)
        return engine

    return make


def load_cpu(request: BackendRequest) -> Backend:
    """Load ONNX Runtime on the CPU. Raises :class:`BundleError` (no form of the precision)."""
    return Backend(make_onnxruntime_factory(request.threads, request.bundle.form_for((TARGET,), request.precision)))
