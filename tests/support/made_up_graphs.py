"""Small ONNX graphs of made-up methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from teso_deploy.bundle import GraphEntry, TensorSpec

#: Lengths, or names of lengths that may vary.
Sides = Sequence[Any]


def save_graph(path: Path, nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Sides], output: Sides) -> None:
    """Save a graph whose output is that of its last node.

    Args:
        path: The file.
        nodes: The nodes. They may use the constants ``channel`` [1], ``first`` 0 and ``second`` 1.
        inputs: Name → shape; all are float32.
        output: The shape of the output.
    """
    numbers = {"channel": np.array([1]), "first": np.array(0), "second": np.array(1)}
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(value, name) for name, value in numbers.items() if name in used]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, list(output))]
    graph = helper.make_graph(list(nodes), path.stem, values, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def list_loudness_nodes(axes: Sequence[int]) -> list[onnx.NodeProto]:
    """List nodes that turn ``waveform`` into ``gain`` (B, 1, 1, 1): 1 if its peak over some axes is above 0.4, else 0.

    ``steepness`` is 20, a factor for logits.
    """

    def make_constant(name: str, value: object, dtype: type) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, dtype)))

    return [
        make_constant("axes", list(axes), np.int64),
        make_constant("shape", [-1, 1, 1, 1], np.int64),
        make_constant("threshold", [0.4], np.float32),
        make_constant("steepness", [20.0], np.float32),
        helper.make_node("Abs", ["waveform"], ["level"]),
        helper.make_node("ReduceMax", ["level", "axes"], ["peak"], keepdims=1),
        helper.make_node("Greater", ["peak", "threshold"], ["is_loud"]),
        helper.make_node("Cast", ["is_loud"], ["loud"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["loud", "shape"], ["gain"]),
    ]


def describe_graph(path: Path) -> GraphEntry:
    """Return the manifest's entry of a graph."""
    model = onnx.load(path)

    def describe(value: onnx.ValueInfoProto) -> TensorSpec:
        sides = tuple(side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim)
        return TensorSpec(name=value.name, dtype="float", shape=sides)

    return GraphEntry(
        file=path.name,
        inputs=tuple(map(describe, model.graph.input)),
        outputs=tuple(map(describe, model.graph.output)),
        parameters=0,
        multiply_adds=0,
        nodes=len(model.graph.node),
    )
