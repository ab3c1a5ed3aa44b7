"""Deformable attention as a model-local function: an operator whose body uses standard operators.

A runtime with its own implementation replaces the node; every other runtime runs the body. The body samples by Gather,
which TensorRT computes correctly. Its GridSample is not correct.

In the canonical graph the node is ours (:data:`MSDA`). In forms for TensorRT it has the name, inputs and attributes of
TensorRT's plugin (:func:`convert_to_plugin_nodes`). Its importer uses the plugin if it is registered, else the
function of that name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, parser

from teso_deploy.backends.tensorrt.builder import MSDA_PLUGIN
from teso_deploy.conversion.rewriting import Rewriter, get_constant, get_sizes
from teso_deploy.models.msda import ONNX_OPERATOR

DOMAIN, MSDA = ONNX_OPERATOR.split("::")
#: TensorRT's own deformable attention. Version 2 is an IPluginV3 in fp32 or fp16, with one type for all its floats.
PLUGIN, PLUGIN_VERSION = MSDA_PLUGIN
#: The attributes by which TensorRT's importer looks up a node in the registry before it uses the function.
PLUGIN_ATTRIBUTES = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": ""}
#: (height, width) of every level.
Shapes = Sequence[tuple[int, int]]

#: Computes the sampling locations of a level from offsets around the reference points.
_PLACED = """
  cell = Constant <value = float[{levels}, 1, 2] {{{cells}}}> ()
  moved = Mul (offsets, cell)
  axes = Constant <value = int64[3] {{1, 2, 3}}> ()
  around = Unsqueeze (reference, axes)
  locations = Add (around, moved)
"""
#: Samples all levels at once. A sample is the weighted sum of its four neighbours' rows of (N·S·M, D), each fetched by
#: one Gather. The weight is the nearness; a neighbour outside of the level has weight 0.
_SAMPLED = """
  size = Constant <value = float[{levels}, 1, 2] {{{sizes}}}> ()
  last = Constant <value = float[{levels}, 1, 2] {{{lasts}}}> ()
  stride = Constant <value = float[{levels}, 1, 2] {{{strides}}}> ()
  start = Constant <value = float[{levels}, 1] {{{starts}}}> ()
  half = Constant <value = float {{0.5}}> ()
  zero = Constant <value = float {{0}}> ()
  one = Constant <value = float {{1}}> ()
  minus_one = Constant <value = int64[1] {{-1}}> ()
  points_axes = Constant <value = int64[2] {{3, 4}}> ()
  scaled = Mul (locations, size)
  place = Sub (scaled, half)
  near = Floor (place)
  dims = Shape (value)
  first = Constant <value = int64 {{0}}> ()
  batch = Gather (dims, first)
  batch_32 = Cast <to = 6> (batch)
  first_32 = Constant <value = int32 {{0}}> ()
  step_32 = Constant <value = int32 {{1}}> ()
  items = Range (first_32, batch_32, step_32)
  rows_an_item = Constant <value = int32 {{{rows}}}> ()
  item_rows = Mul (items, rows_an_item)
  items_shape = Constant <value = int64[5] {{-1, 1, 1, 1, 1}}> ()
  item_row = Reshape (item_rows, items_shape)
  heads_32 = Constant <value = int32 {{{heads}}}> ()
  head_row = Constant <value = int32[{heads}, 1, 1] {{{head_rows}}}> ()
  base = Add (item_row, head_row)
  table_shape = Constant <value = int64[2] {{-1, {dim}}}> ()
  table = Reshape (value, table_shape)
"""
_CORNER = """
  corner_{i} = Constant <value = float[2] {{{dx}, {dy}}}> ()
  cell_{i} = Add (near, corner_{i})
  upper_{i} = Min (cell_{i}, last)
  inside_{i} = Max (upper_{i}, zero)
  is_inside_{i} = Equal (inside_{i}, cell_{i})
  counts_{i} = Cast <to = 1> (is_inside_{i})
  away_{i} = Sub (place, cell_{i})
  distance_{i} = Abs (away_{i})
  nearness_{i} = Sub (one, distance_{i})
  share_{i} = Mul (nearness_{i}, counts_{i})
  share_x_{i}, share_y_{i} = Split <axis = -1, num_outputs = 2> (share_{i})
  shares_{i} = Mul (share_x_{i}, share_y_{i})
  steps_{i} = Mul (inside_{i}, stride)
  step_{i} = ReduceSum <keepdims = 0> (steps_{i}, minus_one)
  token_{i} = Add (step_{i}, start)
  token_32_{i} = Cast <to = 6> (token_{i})
  token_row_{i} = Mul (token_32_{i}, heads_32)
  row_{i} = Add (token_row_{i}, base)
  picked_{i} = Gather <axis = 0> (table, row_{i})
  weight_{i} = Unsqueeze (weights, minus_one)
  weighed_{i} = Mul (weight_{i}, shares_{i})
  terms_{i} = Mul (picked_{i}, weighed_{i})
  sum_{i} = ReduceSum <keepdims = 0> (terms_{i}, points_axes)
"""


def _format_numbers(values: Sequence[float]) -> str:
    """Format numbers for ONNX's text form: the shortest text that reads back to the same float32."""
    return ", ".join(str(np.float32(value)) if value % 1 else str(int(value)) for value in values)


def _write_sampling(shapes: Shapes, heads: int, dim: int) -> str:
    """Write the node text that computes ``heads_sum`` (N, Q, M, D).

    The text reads ``value`` (N, S, M, D), ``locations`` (N, Q, M, L, P, 2) and ``weights``.

    Args:
        shapes: (height, width) of every level.
        heads: M.
        dim: D.
    """
    areas = [height * width for height, width in shapes]
    pairs = [(width, height) for height, width in shapes]
    text = _SAMPLED.format(
        levels=len(shapes),
        sizes=_format_numbers([side for pair in pairs for side in pair]),
        lasts=_format_numbers([side - 1 for pair in pairs for side in pair]),
        strides=_format_numbers([step for width, _ in pairs for step in (1, width)]),
        starts=_format_numbers([sum(areas[:level]) for level in range(len(areas))]),
        rows=sum(areas) * heads,
        heads=heads,
        head_rows=_format_numbers(range(heads)),
        dim=dim,
    )
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    text += "".join(_CORNER.format(i=i, dx=dx, dy=dy) for i, (dx, dy) in enumerate(corners))
    text += "  upper_sum = Add (sum_0, sum_1)\n  lower_sum = Add (sum_2, sum_3)\n"
    return text + "  heads_sum = Add (upper_sum, lower_sum)\n"


def _make_function(name: str, *, inputs: str, attributes: Sequence[str], body: str) -> onnx.FunctionProto:
    given = f" <{', '.join(attributes)}>" if attributes else ""
    header = f'<opset_import: ["" : 20], domain: "{DOMAIN}">\n{name}{given} ({inputs}) => (sampled)\n'
    function = parser.parse_function(f"{header}{{{body}}}")
    for node in function.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return function


def make_msda_function(shapes: Shapes, heads: int, dim: int) -> onnx.FunctionProto:
    """Make the function :data:`MSDA`: value, offsets, weights, reference → (N, Q, M·D).

    :func:`models.msda.sample_around` is the same function in PyTorch.

    Args:
        shapes: (height, width) of every level.
        heads: M.
        dim: D.

    Returns:
        The function.
    """
    cells = _format_numbers([1 / side for height, width in shapes for side in (width, height)])
    body = _PLACED.format(levels=len(shapes), cells=cells) + _write_sampling(shapes, heads, dim)
    body += f"  flat = Constant <value = int64[3] {{0, 0, {heads * dim}}}> ()\n  sampled = Reshape (heads_sum, flat)\n"
    return _make_function(MSDA, inputs="value, offsets, weights, reference", attributes=["shapes"], body=body)


def make_plugin_function(shapes: Shapes, heads: int, dim: int) -> onnx.FunctionProto:
    """Make the function :data:`PLUGIN`: → (N, Q, M, D). Its inputs ``shapes`` and ``starts`` are constants here.

    Args:
        shapes: (height, width) of every level.
        heads: M.
        dim: D.

    Returns:
        The function.
    """
    body = _write_sampling(shapes, heads, dim) + "  sampled = Identity (heads_sum)\n"
    return _make_function(
        PLUGIN, inputs="value, shapes, starts, locations, weights", attributes=list(PLUGIN_ATTRIBUTES), body=body
    )


def _split_pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def read_level_shapes(node: onnx.NodeProto) -> list[tuple[int, int]]:
    """Return (height, width) of every level that an MSDA node samples."""
    return _split_pairs(next(list(attribute.ints) for attribute in node.attribute if attribute.name == "shapes"))


def add_functions(model: onnx.ModelProto) -> None:
    """Add the body of the model's MSDA nodes, in place. A model without such nodes is unchanged."""
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    if not nodes:
        return
    shapes = read_level_shapes(nodes[0])
    assert all(read_level_shapes(node) == shapes for node in nodes), "one function serves the whole graph"
    values = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    heads, dim = (size.dim_value for size in values[nodes[0].input[0]][2:])
    model.functions.append(make_msda_function(shapes, heads, dim))
    if DOMAIN not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def convert_to_plugin_nodes(model: ir.Model) -> ir.Model:
    """Convert the MSDA nodes of a canonical model to those of TensorRT's plugin, in place.

    Offsets become locations in 0 … 1, as the plugin expects. A model without MSDA nodes is unchanged.
    """
    edit = Rewriter(model)
    nodes = edit.nodes(MSDA, DOMAIN)
    for node in nodes:
        value, offsets, weights, reference = node.inputs
        points = get_constant(reference)
        assert value is not None and offsets is not None and points is not None, "reference points are constant"
        level_sizes = _split_pairs([int(side) for side in node.attributes["shapes"].as_ints()])
        shapes = np.array(level_sizes, np.int32)
        starts = np.concatenate(([0], np.cumsum(shapes.prod(1))[:-1])).astype(np.int32)
        cell = (1 / shapes[:, ::-1]).astype(np.float32)[:, None]  # (L, 1, 2), x then y
        moved = edit.add(node, "Mul", [offsets, edit.constant(cell)])[0]
        where = edit.constant(points.astype(np.float32)[:, None, None, None])  # (Q, 1, 1, 1, 2)
        locations = edit.add(node, "Add", [where, moved])[0]
        inputs = [value, edit.constant(shapes), edit.constant(starts), locations, weights]
        sampled = edit.add(node, PLUGIN, inputs, attributes=PLUGIN_ATTRIBUTES, domain=DOMAIN)[0]
        queries, (heads, dim) = get_sizes(offsets)[0], get_sizes(value)[1:]
        for made, like in ((moved, offsets), (locations, offsets), (sampled, value)):
            made.dtype = ir.DataType.FLOAT
            made.shape = like.shape
        assert value.shape is not None
        sampled.shape = ir.Shape([value.shape[0], queries, heads, dim])
        flat = edit.reshape_value(node, sampled, 0, queries, heads * dim)
        flat.dtype, flat.shape = ir.DataType.FLOAT, node.outputs[0].shape
        edit.replace(node.outputs[0], flat)
    if nodes:
        function = ir.serde.deserialize_function(make_plugin_function(level_sizes, heads, dim))
        model.functions.clear()
        model.functions[function.identifier()] = function
    return edit.finish()
