"""Merging chains of nodes that only move tokens into one gather.

A shifted window of Swin is cut out by two rolls (each a pair of slices and a concatenation) and a transposition, and
put back in the same way. Each of these nodes reads and writes the whole map.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from teso_deploy.conversion.rewriting import Rewriter, get_constant, get_sizes

_MOVING = {"Reshape", "Transpose", "Slice", "Concat"}
#: A chain of nodes without these operators is kept: it transposes whole blocks, which is as fast as a gather.
_ROLLING = {"Concat"}


def _find_chain(sink: ir.Value) -> tuple[list[ir.Node], ir.Value] | None:
    """Return (the moving nodes that lead to ``sink`` in order, the single value that they move)."""
    nodes: list[ir.Node] = []
    sources: set[ir.Value] = set()

    def visit(value: ir.Value) -> None:
        node = value.producer()
        if node is None or node.op_type not in _MOVING or node.domain:
            sources.add(value)
        elif node not in nodes:
            for taken in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
                assert taken is not None
                visit(taken)
            nodes.append(node)

    visit(sink)
    if len(sources) != 1 or not _ROLLING & {node.op_type for node in nodes}:
        return None
    source = sources.pop()
    return None if get_constant(source) is not None or source.shape is None else (nodes, source)


def _move(nodes: list[ir.Node], source: ir.Value, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Apply the chain of nodes to ``places``. Return None if this needs a value that is not constant."""
    values: dict[ir.Value | None, NDArray[np.int64]] = {source: places}
    for node in nodes:
        taken, constants = values[node.inputs[0]], [get_constant(value) for value in node.inputs[1:]]
        if node.op_type == "Transpose":
            found = taken.transpose(node.attributes["perm"].as_ints())
        elif node.op_type == "Concat":
            found = np.concatenate([values[value] for value in node.inputs], axis=node.attributes["axis"].as_int())
        elif any(constant is None for constant in constants):
            return None
        elif node.op_type == "Reshape":
            shape = [int(side) for side in constants[0]]  # type: ignore[union-attr]
            shape = [taken.shape[i] if side == 0 else side for i, side in enumerate(shape)]
            if taken.size % abs(int(np.prod(shape))):
                return None
            found = taken.reshape(shape)
        else:
            starts, ends, *more = [[int(v) for v in constant] for constant in constants]  # type: ignore[union-attr]
            axes = more[0] if more else list(range(len(starts)))
            steps = more[1] if len(more) > 1 else [1] * len(starts)
            where = [slice(None)] * taken.ndim
            for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
                where[axis] = slice(start, end, step)
            found = taken[tuple(where)]
        values[node.outputs[0]] = found
    return values[nodes[-1].outputs[0]]


def _find_rows(nodes: list[ir.Node], source: ir.Value) -> NDArray[np.int64] | None:
    """Return the source token of each target token, which is equal for every batch item.

    None if the chain does anything else.
    """
    sizes, target = get_sizes(source), get_sizes(nodes[-1].outputs[0])
    windows = max(1, int(np.prod(target)) // int(np.prod(sizes)))  # windows that were items of the batch
    count, channels = windows * int(np.prod(sizes[:-1])), sizes[-1]
    places = np.arange(2 * count * channels, dtype=np.int64).reshape(2 * windows, *sizes)
    moved = _move(nodes, source, places)
    if moved is None or moved.size != places.size:
        return None
    tokens = moved.reshape(-1, channels)
    rows = tokens[:, 0] // channels
    first, second = rows[:count], rows[count:]
    is_whole = np.array_equal(tokens, rows[:, None] * channels + np.arange(channels))
    return first if is_whole and np.array_equal(first + count, second) and first.max() < count else None


def gather_tokens(edit: Rewriter) -> None:
    """Replace every roll of windows, with the cutting and joining around it, by one Gather."""
    for last in reversed(list(edit.graph)):
        sink = last.outputs[0]
        if last.op_type not in _MOVING or last.domain or not sink.uses() or sink.shape is None:
            continue
        if all(node.op_type in _MOVING and not node.domain for node, _ in sink.uses()):
            continue  # this node is not the end of the chain
        found = _find_chain(sink)
        rows = _find_rows(*found) if found is not None else None
        if found is None or rows is None:
            continue
        source = found[1]
        sizes, shape = get_sizes(source), get_sizes(sink)
        tokens = source if sizes[:-1] == (len(rows),) else edit.reshape_value(last, source, -1, len(rows), sizes[-1])
        moved = edit.add(last, "Gather", [tokens, edit.constant(rows)], attributes={"axis": 1})[0]
        edit.replace(sink, edit.reshape_value(last, moved, -1, *shape))
