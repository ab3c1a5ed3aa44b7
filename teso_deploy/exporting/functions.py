"""Deformable attention as a model-local function: an operator of ours with a body of standard operators.

A runtime that has an implementation of its own puts it in the node's place; every other runs the
body. That samples by gather, which TensorRT computes rightly (its GridSample does not).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from teso_deploy.models.msda import ONNX_OPERATOR, Shapes, sample_around

DOMAIN, MSDA = ONNX_OPERATOR.split("::")
#: (module, arguments, names of inputs and outputs) → an ONNX model with a dynamic batch.
ToOnnx = Callable[[nn.Module, tuple[Tensor, ...], tuple[str, ...], tuple[str, ...]], onnx.ModelProto]


class _Body(nn.Module):
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, value: Tensor, offsets: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        return sample_around(value, offsets, weights, reference, self.shapes, "gather")


def level_shapes(node: onnx.NodeProto) -> list[tuple[int, int]]:
    """(height, width) of every level that an MSDA node samples."""
    flat = next(list(attribute.ints) for attribute in node.attribute if attribute.name == "shapes")
    return list(zip(flat[::2], flat[1::2], strict=True))


def _body(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...]], to_onnx: ToOnnx) -> onnx.FunctionProto:
    arguments = [torch.zeros(2, *sizes[name][1:]) for name in node.input[:3]]
    names = ("value", "offsets", "weights", "reference")
    arguments.append(torch.zeros(sizes[node.input[1]][1], 2))
    graph = to_onnx(_Body(level_shapes(node)), tuple(arguments), names, ("sampled",)).graph
    constants = [
        helper.make_node("Constant", [], [tensor.name], name=f"{tensor.name}_constant", value=tensor)
        for tensor in graph.initializer
    ]
    return helper.make_function(
        DOMAIN,
        MSDA,
        list(names),
        ["sampled"],
        [*constants, *graph.node],
        [helper.make_opsetid("", 20)],
        attributes=["shapes"],
    )


def add_functions(model: onnx.ModelProto, to_onnx: ToOnnx) -> None:
    """Give the model's MSDA nodes their body, in place. Nothing happens where there are none."""
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    if not nodes:
        return
    shapes = level_shapes(nodes[0])
    assert all(level_shapes(node) == shapes for node in nodes), "one function serves the whole graph"
    sizes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in model.graph.value_info
    }
    model.functions.append(_body(nodes[0], sizes, to_onnx))
    if DOMAIN not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
