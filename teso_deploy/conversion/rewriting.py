"""Tools for passes over a graph: find nodes by operator, read constants, and replace nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class Rewriter:
    """A graph that is being rewritten. Unchanged tensors keep their names, so two forms can be compared by tensor."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        taken = [node.name for node in self.graph] + list(self.graph.initializers)
        self._number = sum(name is not None and name.startswith("ours_") for name in taken)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def nodes(self, op_type: str, domain: str = "") -> list[ir.Node]:
        """Return all nodes with one operator, in order."""
        return [node for node in self.graph if node.op_type == op_type and node.domain == domain]

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> list[ir.Value]:
        """Insert a node.

        Args:
            before: The node before which it is inserted.
            op_type: Its operator.
            inputs: Its inputs; None for an omitted one.
            attributes: Its attributes. Default: none.
            domain: The domain of the operator. Default: ONNX's own.
            outputs: Number of outputs. Default: 1.

        Returns:
            The outputs.
        """
        self._number += 1
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=f"ours_{self._number}")
        for i, value in enumerate(node.outputs):
            value.name = f"ours_{self._number}_{op_type.lower()}" + (f"_{i}" if outputs > 1 else "")
        self.graph.insert_before(before, node)
        return list(node.outputs)

    def constant(self, array: NDArray[Any], *, of_one_node: bool = False) -> ir.Value:
        """Return an initialiser. Equal arrays share one, unless it must belong to a single node (``of_one_node``)."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._constants or of_one_node:
            self._number += 1
            name = f"ours_{self._number}_constant"
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.initializers[name] = value
            self._constants[key] = value
        return self._constants[key]

    def reshape_value(self, before: ir.Node, value: ir.Value, *shape: int) -> ir.Value:
        """Reshape ``value``; -1 stands for the remaining size.

        Args:
            before: The node before which the reshape is inserted.
            value: The value.
            *shape: The new shape.

        Returns:
            The reshaped value.
        """
        return self.add(before, "Reshape", [value, self.constant(np.array(shape, np.int64))])[0]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Make all users of ``old`` use ``new``. If ``old`` is an output of the graph, ``new`` gets its name."""
        if old.is_graph_output():
            old.name, new.name = f"{old.name}_before", old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def finish(self) -> ir.Model:
        """Remove unused nodes and sort the rest topologically."""
        for node in reversed(list(self.graph)):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                self.graph.remove(node, safe=True)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]
        self.graph.sort()
        return self.model


def get_constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the content of an initialiser or a Constant node, or None for a computed value."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def find_producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node that computes ``value``, if it has this operator."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def get_sizes(value: ir.Value) -> tuple[int, ...]:
    """Return the shape without the batch, which is static in all our graphs."""
    assert value.shape is not None, f"{value.name} has no shape"
    return tuple(int(size) for size in list(value.shape)[1:])  # type: ignore[arg-type]
