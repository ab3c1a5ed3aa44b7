"""The form of a canonical graph for ONNX Runtime on the CPU: the same function in operators that are fast there.

- Deformable attention becomes DeformConv. A depthwise kernel whose taps are the attention's points replaces GridSample,
  Mul and ReduceSum, and takes half the time. Its queries are arranged as a picture of any shape. One constant holds
  the reference points minus the positions where a convolution would sample.
- Attention becomes one operator, so its scores stay in the cache. Position bias and window mask are one constant.
- Biases that softmax cancels are removed; others are combined into one addition.
- Windows are shifted, cut out and put back by one gather each.
- Hidden layers fit the caches (:mod:`.hidden_layers`).
- Quantised products become MatMulIntegerToFloat, which includes the bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from teso_deploy.conversion.biases import fold_biases
from teso_deploy.conversion.functions import DOMAIN, MSDA
from teso_deploy.conversion.hidden_layers import pad_hidden_layers, split_hidden_layers
from teso_deploy.conversion.rearrangement import gather_tokens
from teso_deploy.conversion.rewriting import Rewriter, find_producer, get_constant, get_sizes

#: Opset 23 introduced Attention. From opset 20 to 23 the operators in our graphs did not change.
OPSET = 23
MICROSOFT = "com.microsoft"
#: The longest side of the query grid. If a side were longer, the offsets would lose their last bits.
LONGEST_GRID_SIDE = 512


def query_grid(count: int) -> tuple[int, int]:
    """Return the most square grid (rows, columns) with ``count`` cells."""
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return rows, count // rows


def _compute_stride_and_padding(size: int, cells: int, kernel: int) -> tuple[int, int]:
    """Return stride and end padding with which a convolution over ``size`` has exactly ``cells`` outputs.

    Args:
        size: Length of the input.
        cells: Number of outputs.
        kernel: Length of the kernel.
    """
    stride = 1
    while (padding := (cells - 1) * stride + kernel - size) < 0:
        stride += 1
    return stride, padding


def _select_channels(edit: Rewriter, node: ir.Node, maps: ir.Value, *, index: NDArray[np.int64], rows: int) -> ir.Value:
    """Select channels of (B, channels, Q), arranged as pictures with this many rows."""
    picked = edit.add(node, "Gather", [maps, edit.constant(index.reshape(-1))], attributes={"axis": 1})[0]
    return edit.reshape_value(node, picked, 0, index.size, rows, -1)


def fuse_deformable_attention(edit: Rewriter) -> None:
    """Replace every MSDA node by one DeformConv per level."""
    for node in edit.nodes(MSDA, DOMAIN):
        value, offsets, weights, reference = node.inputs
        points_of = get_constant(reference)
        assert value is not None and offsets is not None and weights is not None
        queries, heads, levels, points, _ = get_sizes(offsets)
        rows, columns = query_grid(queries)
        if points_of is None or columns > LONGEST_GRID_SIDE:
            continue  # keep the body of the function
        dim = heads * get_sizes(value)[2]
        flat = [int(side) for side in node.attributes["shapes"].as_ints()]
        shapes = list(zip(flat[::2], flat[1::2], strict=True))
        places = np.empty((queries, heads, levels, points, 2))
        strides, paddings = [], []
        row, column = np.divmod(np.arange(queries), columns)
        for level, (height, width) in enumerate(shapes):
            (down, below), (across, right) = (
                _compute_stride_and_padding(height, rows, 1),
                _compute_stride_and_padding(width, columns, points),
            )
            strides.append([down, across])
            paddings.append([0, 0, below, right])
            x = points_of[:, 0].astype(np.float64) * width - 0.5 - column * across
            y = points_of[:, 1].astype(np.float64) * height - 0.5 - row * down
            places[:, :, level, :, 0] = (x[:, None] - np.arange(points))[:, None]
            places[:, :, level, :, 1] = y[:, None, None]
        count = levels * heads * points
        moved = edit.reshape_value(node, offsets, 0, queries, count * 2)
        base = edit.constant(places.reshape(queries, count * 2).astype(np.float32))
        moved = edit.add(node, "Add", [moved, base])[0]
        moved = edit.add(node, "Transpose", [moved], attributes={"perm": [0, 2, 1]})[0]
        share = edit.reshape_value(node, weights, 0, queries, count)
        share = edit.add(node, "Transpose", [share], attributes={"perm": [0, 2, 1]})[0]
        tokens = edit.reshape_value(node, value, 0, -1, dim)
        maps = edit.add(node, "Transpose", [tokens], attributes={"perm": [0, 2, 1]})[0]
        cells = edit.constant(np.array([height * width for height, width in shapes], np.int64))
        pictures = edit.add(node, "Split", [maps, cells], attributes={"axis": 2}, outputs=levels)
        ones = edit.constant(np.ones((dim, 1, 1, points), np.float32))
        channels = np.arange(count).reshape(heads, levels, points)

        total: ir.Value | None = None
        for level, (height, width) in enumerate(shapes):
            channel = channels[:, level].reshape(-1)
            y_then_x = np.stack((2 * channel + 1, 2 * channel), axis=1)
            sampled = edit.add(
                node,
                "DeformConv",
                [
                    edit.reshape_value(node, pictures[level], 0, dim, height, width),
                    ones,
                    _select_channels(edit, node, moved, index=y_then_x, rows=rows),
                    None,
                    _select_channels(edit, node, share, index=channel, rows=rows),
                ],
                attributes={
                    "kernel_shape": [1, points],
                    "strides": strides[level],
                    "pads": paddings[level],
                    "group": dim,
                    "offset_group": heads,
                },
            )[0]
            total = sampled if total is None else edit.add(node, "Add", [total, sampled])[0]
        assert total is not None
        total = edit.reshape_value(node, total, 0, dim, queries)
        edit.replace(node.outputs[0], edit.add(node, "Transpose", [total], attributes={"perm": [0, 2, 1]})[0])


def _find_only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the only node that uses ``value``, if it has this operator and ``value`` is its first input."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, position = uses[0]
    return node if node.op_type == op_type and node.domain == "" and position == 0 else None


def _undo_permutation(value: ir.Value | None, *perm: int) -> ir.Value | None:
    """Return the input of the Transpose node that made ``value``, if its permutation is ``perm``."""
    node = find_producer(value, "Transpose")
    return node.inputs[0] if node is not None and tuple(node.attributes["perm"].as_ints()) == perm else None


def _find_tokens(heads: ir.Value | None) -> ir.Value | None:
    """Return the tensor (B, S, d) that was split into the heads (B, heads, S, d_head)."""
    reshape = find_producer(_undo_permutation(heads, 0, 2, 1, 3), "Reshape")
    tokens = reshape.inputs[0] if reshape is not None else None
    return tokens if tokens is not None and tokens.shape is not None and len(tokens.shape) == 3 else None


def _split_scale(query: ir.Value) -> tuple[ir.Value, float]:
    """Return the queries before a multiplication by a scalar, and the scalar."""
    node = find_producer(query, "Mul")
    factor = get_constant(node.inputs[1]) if node is not None else None
    if node is None or factor is None or factor.size != 1 or node.inputs[0] is None:
        return query, 1.0
    return node.inputs[0], float(factor.reshape(()))


def _peel(edit: Rewriter, softmax: ir.Node) -> tuple[ir.Node, ir.Value | None, int] | None:
    """Return the product of queries and keys, the value that is added to it, and how many windows become heads.

    Swin adds the position bias (heads, S, S) and, in shifted blocks, the mask (1, windows, 1, S, S) of each window.
    With windows as heads, one table serves every picture of the batch.
    """
    scores, windows, mask = softmax.inputs[0], 1, None
    if (outer := find_producer(scores, "Reshape")) is not None:
        masking = find_producer(outer.inputs[0], "Add")
        inner = find_producer(masking.inputs[0], "Reshape") if masking is not None else None
        if masking is None or inner is None or masking.inputs[1] is None:
            return None
        mask, scores = masking.inputs[1], inner.inputs[0]
        sizes = get_sizes(mask)
        if len(sizes) != 4 or sizes[1] != 1:
            return None
        windows, *table = sizes
        mask = edit.reshape_value(softmax, mask, windows, *table)
    bias = None
    if (added := find_producer(scores, "Add")) is not None:
        scores, bias = added.inputs
    product = find_producer(scores, "MatMul")
    if product is None or (windows > 1 and bias is None):
        return None
    rows = get_sizes(softmax.outputs[0])[1]
    if bias is not None and (bias.shape is None or bias.shape[-2] != rows):
        return None  # ONNX Runtime's Attention does not broadcast a mask over the queries
    if bias is not None and bias.shape is not None and len(bias.shape) == 3:
        bias = edit.add(softmax, "Unsqueeze", [bias, edit.constant(np.array([0]))])[0]
    if mask is not None:
        bias = edit.reshape_value(
            softmax, edit.add(softmax, "Add", [mask, bias])[0], 1, -1, *get_sizes(softmax.outputs[0])[1:]
        )
    return product, bias, windows


def fuse_attention(edit: Rewriter) -> None:
    """Fuse softmax(q kᵀ + bias) v into one Attention node, on whole tokens if heads are only split and merged."""
    for softmax in edit.nodes("Softmax"):
        weighted = _find_only_user(softmax.outputs[0], "MatMul")
        found = _peel(edit, softmax) if weighted is not None else None
        if weighted is None or found is None:
            continue
        product, bias, windows = found
        query, scale = _split_scale(product.inputs[0])  # type: ignore[arg-type]
        value, turned = weighted.inputs[1], product.inputs[1]
        assert value is not None
        heads, length, dim = get_sizes(value)
        key = _undo_permutation(turned, 0, 1, 3, 2)
        if key is None and (split := _undo_permutation(turned, 0, 2, 3, 1)) is not None:
            key = edit.add(softmax, "Transpose", [split], attributes={"perm": [0, 2, 1, 3]})[0]
        if key is None:
            continue
        tokens = [_find_tokens(part) for part in (query, key, value)]
        merge = _find_only_user(weighted.outputs[0], "Transpose")
        merged = _find_only_user(merge.outputs[0], "Reshape") if merge is not None else None
        if windows == 1 and None not in tokens and merged is not None:
            attributes = {"scale": scale, "q_num_heads": heads, "kv_num_heads": heads}
            edit.replace(merged.outputs[0], edit.add(softmax, "Attention", [*tokens, bias], attributes=attributes)[0])
            continue
        rows = get_sizes(query)[1]
        if windows > 1:
            query = edit.reshape_value(softmax, query, -1, windows * heads, rows, dim)
            key = edit.reshape_value(softmax, key, -1, windows * heads, length, dim)
            value = edit.reshape_value(softmax, value, -1, windows * heads, length, dim)
        mixed = edit.add(softmax, "Attention", [query, key, value, bias], attributes={"scale": scale})[0]
        if windows > 1:
            mixed = edit.reshape_value(softmax, mixed, -1, heads, rows, dim)
        edit.replace(weighted.outputs[0], mixed)


def fuse_integer_products(edit: Rewriter) -> None:
    """Fuse products between Q / DQ pairs, and a bias after them, into MatMulIntegerToFloat."""
    for node in [*edit.nodes("MatMul"), *edit.nodes("Gemm")]:
        taken, given = (
            find_producer(node.inputs[0], "DequantizeLinear"),
            find_producer(node.inputs[1], "DequantizeLinear"),
        )
        weights = get_constant(given.inputs[0]) if given is not None else None
        if taken is None or given is None or weights is None:
            continue
        output, bias = node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
        if "transB" in node.attributes and node.attributes["transB"].as_int():
            weights = weights.T
        adding = _find_only_user(output, "Add")
        added = get_constant(adding.inputs[1]) if adding is not None else None
        if bias is None and adding is not None and added is not None and added.ndim == 1:
            output, bias = adding.outputs[0], adding.inputs[1]
        integers, scale, zero = taken.inputs
        # On processors without VNNI the library converts these to uint8, and fails if two nodes share one.
        zeros = edit.constant(np.zeros(weights.shape[1], np.int8), of_one_node=True)
        weights_value = edit.constant(weights, of_one_node=True)
        inputs = [integers, weights_value, scale, given.inputs[1], zero, zeros, bias]
        product = edit.add(node, "MatMulIntegerToFloat", inputs, domain=MICROSOFT)[0]
        product.shape, product.type = output.shape, output.type
        edit.replace(output, product)


PASSES: Mapping[str, Callable[[Rewriter], None]] = {
    "deformable attention as DeformConv": fuse_deformable_attention,
    "fewer biases": fold_biases,
    "attention as one operator": fuse_attention,
    "windows by one gather": gather_tokens,
    "hidden layers out of step with the cache": pad_hidden_layers,
    "large hidden layers in parts": split_hidden_layers,
    "integer products": fuse_integer_products,
}


def derive_form(model: ir.Model, passes: Sequence[str] = tuple(PASSES)) -> ir.Model:
    """Rewrite a canonical model (or its int8 form) for ONNX Runtime, in place. ``passes``: keys of :data:`PASSES`."""
    edit = Rewriter(model)
    for name in passes:
        PASSES[name](edit)
        edit.finish()
    if not any(node.domain == DOMAIN for node in model.graph):
        model.functions.clear()
        model.graph.opset_imports.pop(DOMAIN, None)
    model.graph.opset_imports[""] = OPSET
    if any(node.domain == MICROSOFT for node in model.graph):
        model.graph.opset_imports[MICROSOFT] = 1
    return model
