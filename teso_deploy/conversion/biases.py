"""Removing biases: those that softmax cancels, and those that a later addition can include.

- A bias of the keys adds the same number to all scores of a query, so softmax cancels it.
- The weights of an attention sum to 1, so a bias of the values passes through unchanged and can be added to the
  output projection's bias.
- A bias before a residual bottleneck (an adapter) may be added after it, if the first bias of the bottleneck
  compensates for it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from teso_deploy.conversion.rewriting import Rewriter, find_producer, get_constant


def _find_bias(value: ir.Value | None) -> tuple[ir.Value, NDArray[np.float32], ir.Node] | None:
    """Return the value without its bias, the bias (N,) and the addition's node. Return None if no bias is added."""
    node = find_producer(value, "Add")
    bias = get_constant(node.inputs[1]) if node is not None else None
    if node is None or bias is None or bias.ndim != 1 or node.inputs[0] is None:
        return None
    return node.inputs[0], bias, node


def _find_weights(node: ir.Node | None) -> NDArray[np.float32] | None:
    weights = (
        get_constant(node.inputs[1]) if node is not None and node.op_type == "MatMul" and not node.domain else None
    )
    return weights if weights is not None and weights.ndim == 2 else None


def _find_only_user(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


def _find_tokens_before_heads(value: ir.Value | None, product: ir.Node) -> ir.Value | None:
    """Return the tokens that ``value`` splits into heads for a single product."""
    user = product
    for op_type in ("Transpose", "Reshape"):
        node = find_producer(value, op_type)
        if node is None or value is None or _find_only_user(value) is not user:
            return None
        value, user = node.inputs[0], node
    return value if value is not None and _find_only_user(value) is user else None


def _find_output_projection(weighted: ir.Node) -> tuple[ir.Node, NDArray[np.float32]] | None:
    """Return the bias addition after the product of the merged heads, and that product's weights."""
    node: ir.Node | None = weighted
    for op_type in ("Transpose", "Reshape", "MatMul", "Add"):
        taken = node.outputs[0] if node is not None else None
        node = _find_only_user(taken) if taken is not None else None
        if node is None or node.op_type != op_type or node.domain or node.inputs[0] is not taken:
            return None
        if op_type == "MatMul" and (weights := _find_weights(node)) is None:
            return None
    assert node is not None
    return (node, weights) if _find_bias(node.outputs[0]) else None  # type: ignore[return-value]


def _set_bias(edit: Rewriter, addition: ir.Node, bias: NDArray[np.float64]) -> None:
    addition.replace_input_with(1, edit.constant(bias.astype(np.float32)))


def _rename_between(first: ir.Value, last: ir.Value) -> None:
    """Rename tensors between ``first`` and ``last``, because they differ from those of the canonical graph."""
    waiting = [first]
    while waiting:
        for node, _ in waiting.pop().uses():
            for value in node.outputs:
                if value is not last:
                    value.name = f"{value.name}_unbiased"
                    waiting.append(value)


def _attention_biases(edit: Rewriter) -> None:
    for softmax in edit.nodes("Softmax"):
        weighted, scores = _find_only_user(softmax.outputs[0]), softmax.inputs[0]
        if weighted is None or weighted.op_type != "MatMul" or weighted.inputs[0] is not softmax.outputs[0]:
            continue
        user = softmax
        while scores is not None and _find_only_user(scores) is user:
            if (mask := find_producer(scores, "Add") or find_producer(scores, "Reshape")) is None:
                break
            scores, user = mask.inputs[0], mask
        # Scores with another user (SeDAM's gate is their mean) keep their bias.
        product = find_producer(scores, "MatMul") if scores is not None and _find_only_user(scores) is user else None
        keys = _find_bias(_find_tokens_before_heads(product.inputs[1], product)) if product is not None else None
        if keys is not None:
            edit.replace(keys[2].outputs[0], keys[0])
            _rename_between(keys[0], softmax.outputs[0])
        values, output = (
            _find_bias(_find_tokens_before_heads(weighted.inputs[1], weighted)),
            _find_output_projection(weighted),
        )
        if values is not None and output is not None:
            addition, weights = output
            own = get_constant(addition.inputs[1])
            assert own is not None
            _set_bias(edit, addition, own + values[1].astype(np.float64) @ weights)
            edit.replace(values[2].outputs[0], values[0])
            _rename_between(values[0], addition.outputs[0])


def _adapter_biases(edit: Rewriter) -> None:
    for addition in edit.nodes("Add"):
        found = _find_bias(addition.outputs[0])
        users = [node for node, _ in addition.outputs[0].uses()]
        if found is None or len(users) != 2 or addition.outputs[0].is_graph_output():
            continue
        down = next((node for node in users if _find_weights(node) is not None), None)
        joined = next((node for node in users if node.op_type == "Add" and not node.domain), None)
        inner = _find_only_user(down.outputs[0]) if down is not None else None
        if down is None or joined is None or inner is None or _find_bias(inner.outputs[0]) is None:
            continue
        other = next((value for value in joined.inputs if value is not addition.outputs[0]), None)
        last = _find_bias(other)
        if (
            last is None
            or other is None
            or _find_only_user(other) is not joined
            or _find_weights(last[0].producer()) is None
        ):
            continue
        weights, inner_bias = _find_weights(down), get_constant(inner.inputs[1])
        assert weights is not None and inner_bias is not None
        bias = found[1].astype(np.float64)
        _set_bias(edit, inner, inner_bias + bias @ weights)
        _set_bias(edit, last[2], last[1] + bias)
        edit.replace(addition.outputs[0], found[0])
        for value in (down.outputs[0], other):
            value.name = f"{value.name}_rebiased"


def fold_biases(edit: Rewriter) -> None:
    """Remove all three kinds of biases. They are computed in float64 and rounded once."""
    _attention_biases(edit)
    _adapter_biases(edit)
