"""Finding the first tensor, in the order of the canonical graph, in which two forms of a graph differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from teso_deploy.backends.onnxruntime import count_cores
from teso_deploy.verification.parity import compare

#: Number of tensors that are compared in one run. Each is held in memory completely.
AT_ONCE = 64
#: The largest serialised model: the limit of protobuf.
LARGEST_BYTES = 2_000_000_000
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first tensor that differs, and the node of the form that computes it."""

    tensor: str
    node: str
    op_type: str
    cosine: float
    max_abs_error: float

    def __str__(self) -> str:
        return (
            f"{self.op_type} {self.node} is the first that differs: {self.tensor}, "
            f"cosine {self.cosine:.6f}, largest error {self.max_abs_error:.3g}"
        )


class _Opened:
    """A graph whose inner tensors can be read."""

    def __init__(self, path: Path) -> None:
        # Embed the weights: ONNX Runtime refuses external weights outside of a graph's folder, and nothing may be
        # written into a bundle.
        self._proto = onnx.load(path)
        self.makers = {name: node for node in self._proto.graph.node for name in node.output if name}
        self._outputs = list(self._proto.graph.output)

    def values(self, names: list[str], feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return some tensors, by name."""
        del self._proto.graph.output[:]
        self._proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_cores()
        options.log_severity_level = 3
        # Run the file as it is, because fusions of the library are not examined here.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            self._proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        inputs = {value.name: feeds[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(names, inputs), strict=True))

    @property
    def is_too_large(self) -> bool:
        """Whether protobuf can't hold the graph in one piece."""
        return self._proto.ByteSize() > LARGEST_BYTES


def find_first_difference(canonical: Path, form: Path, feeds: Feeds, *, tolerance: float) -> Difference | None:
    """Return the first tensor that differs, of those with the same name in both graphs, or None.

    A form lacks tensors that it has fused away. So the returned node is the first one where a difference shows.

    Args:
        canonical: The canonical graph.
        form: The other graph.
        feeds: The graph's inputs.
        tolerance: Allowed largest error, as a share of the tensor's largest value.

    Returns:
        The tensor and the node of the form that computes it, or None if no tensor differs.

    Raises:
        ValueError: A graph has more than 2 GB.
    """
    left, right = _Opened(canonical), _Opened(form)
    if left.is_too_large or right.is_too_large:
        raise ValueError(f"{canonical.name} has more than 2 GB: its nodes can't be compared one by one")
    is_float = {
        value.name
        for node in ir.load(canonical).graph
        for value in node.outputs
        if value.dtype in (None, ir.DataType.FLOAT)
    }
    shared = [name for name in left.makers if name in right.makers and name in is_float]
    for start in range(0, len(shared), AT_ONCE):
        names = shared[start : start + AT_ONCE]
        expected, found = left.values(names, feeds), right.values(names, feeds)
        for name in names:
            cosine, error = compare(found[name], expected[name])
            scale = float(np.abs(expected[name]).max(initial=0.0))
            if not error <= tolerance * max(scale, 1e-6):
                node = right.makers[name]
                return Difference(name, node.name, node.op_type, cosine, error)
    return None
