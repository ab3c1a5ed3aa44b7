"""Hidden layers that fit the caches of a CPU: the same function with another memory layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from teso_deploy.conversion.rewriting import Rewriter, find_producer, get_constant, get_sizes

#: Rows whose length is a multiple of this many bytes use the same sets of an L1 cache and evict each other.
ALIASED_BYTES = 4096
#: Columns of zeros that are added to such rows, so that they do not evict each other: one cache line.
PAD_COLUMNS = 16
#: A larger hidden layer has left the caches when the second product reads it.
LARGEST_LAYER_BYTES = 16 << 20
#: A larger hidden layer is computed in parts of this size.
PART_BYTES = 5 << 20
#: Activations with f(0) = 0: the added columns stay zero.
_ZERO_KEEPING = {"Gelu", "Relu"}


@dataclass(frozen=True, slots=True)
class HiddenLayer:
    """Two successive products with constant weights. ``between``: bias and activation."""

    first: ir.Node
    between: tuple[ir.Node, ...]
    second: ir.Node

    @property
    def units(self) -> int:
        """The width of the layer."""
        return get_sizes(self.first.outputs[0])[-1]


def _has_constant_weights(node: ir.Node) -> bool:
    """Whether a product has constant weights (K, N) float32, or such weights with zeros appended."""
    if node.op_type != "MatMul" or node.domain:
        return False
    weights = node.inputs[1]
    if weights is None or weights.shape is None or len(weights.shape) != 2 or weights.dtype != ir.DataType.FLOAT:
        return False
    joined = find_producer(weights, "Concat")
    return all(part is not None and part.is_initializer() for part in (joined.inputs if joined else [weights]))


def find_hidden_layers(edit: Rewriter) -> list[HiddenLayer]:
    """Return all hidden layers of a graph, in order."""
    found = []
    for second in filter(_has_constant_weights, edit.nodes("MatMul")):
        between: list[ir.Node] = []
        value = second.inputs[0]
        while value is not None and (node := value.producer()) is not None and not node.domain:
            if len(tuple(value.uses())) != 1 or value.is_graph_output() or value.shape is None:
                break
            if _has_constant_weights(node):
                found.append(HiddenLayer(node, tuple(between), second))
                break
            bias = get_constant(node.inputs[1]) if node.op_type == "Add" else None
            if node.op_type not in _ZERO_KEEPING and (bias is None or bias.ndim != 1):
                break
            between.insert(0, node)
            value = node.inputs[0]
    return found


def pad_hidden_layers(edit: Rewriter) -> None:
    """Add a few units with zero weights to layers whose rows would be multiples of 4 KiB.

    The stored weights are those of the canonical graph; the runtime appends the zeros when it loads them.
    """
    for layer in find_hidden_layers(edit):
        units, (inner, outer) = layer.units, (node.inputs[1] for node in (layer.first, layer.second))
        if units * 4 % ALIASED_BYTES or inner is None or outer is None or not inner.is_initializer():
            continue
        inputs, outputs = int(inner.shape[0]), int(outer.shape[1])  # type: ignore[index,arg-type]
        wider = edit.constant(np.zeros((inputs, PAD_COLUMNS), np.float32))
        taller = edit.constant(np.zeros((PAD_COLUMNS, outputs), np.float32))
        for node, parts, axis, shape in (
            (layer.first, [inner, wider], 1, (inputs, units + PAD_COLUMNS)),
            (layer.second, [outer, taller], 0, (units + PAD_COLUMNS, outputs)),
        ):
            padded = edit.add(layer.first, "Concat", parts, attributes={"axis": axis})[0]
            padded.shape, padded.dtype = ir.Shape(shape), ir.DataType.FLOAT
            node.replace_input_with(1, padded)
        for node in (layer.first, *layer.between):
            if node.op_type == "Add":
                bias = get_constant(node.inputs[1])
                assert bias is not None
                node.replace_input_with(1, edit.constant(np.pad(bias, (0, PAD_COLUMNS))))
            output = node.outputs[0]
            output.shape = ir.Shape([*list(output.shape or ())[:-1], units + PAD_COLUMNS])


def split_hidden_layers(edit: Rewriter) -> None:
    """Compute layers that exceed the caches in parts, some tokens at a time."""
    for layer in find_hidden_layers(edit):
        tokens, taken = get_sizes(layer.first.outputs[0])[:-1], layer.first.inputs[0]
        if len(tokens) != 1 or taken is None or tokens[0] * layer.units * 4 <= LARGEST_LAYER_BYTES:
            continue
        count = -(-tokens[0] * layer.units * 4 // PART_BYTES)
        sizes = np.diff(np.linspace(0, tokens[0], count + 1).astype(np.int64))
        given = edit.add(layer.first, "Split", [taken, edit.constant(sizes)], attributes={"axis": 1}, outputs=count)
        parts = []
        for part in given:
            for node in (layer.first, *layer.between, layer.second):
                attributes = {name: attribute.value for name, attribute in node.attributes.items()}
                part = edit.add(layer.second, node.op_type, [part, *node.inputs[1:]], attributes=attributes)[0]
            parts.append(part)
        edit.replace(layer.second.outputs[0], edit.add(layer.second, "Concat", parts, attributes={"axis": 1})[0])
