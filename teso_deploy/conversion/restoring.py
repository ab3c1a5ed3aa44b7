"""Read a bundle's weights back from its canonical graphs, into the modules that the graphs were exported from.

Most weights keep their names in a graph. The export folds small ones with the operations after them: a transposed
matrix, a table of position biases that has been looked up, a batch norm inside the convolution before it. A folded
weight has a new name, but the operations keep their order: the weights of a module in the order in which it uses them,
and the constants of its graph in the order in which its nodes use them, are the same list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from teso_deploy.bundle import Bundle
from teso_deploy.conversion.bundle_export import hash_weights
from teso_deploy.conversion.plan import META, check_memory
from teso_deploy.conversion.pytorch_engine import make_pytorch_engines
from teso_deploy.conversion.reference import make_example_arguments
from teso_deploy.errors import BundleError
from teso_deploy.models.layers import compute_sine_positions
from teso_deploy.models.methods import Model, build_model, find_method
from teso_deploy.verification.parity import LIMITS, compare_tensors
from teso_deploy.verification.probes import compute_graph_outputs, read_reference

#: The exporter writes a group norm as this node, with constants of ones and zeros, before the weights themselves.
_NORMALISATION = "InstanceNormalization"
#: (function, dimensions of a weight) → the nodes that take it. Other functions become various nodes.
_NODES = {
    ("linear", 2): ("MatMul",),
    ("linear", 1): ("Add", "Gemm"),
    ("conv2d", 4): ("Conv",),
    ("conv2d", 1): ("Conv",),
    ("layer_norm", 1): ("LayerNormalization",),
    ("group_norm", 1): ("Mul", "Add"),
    ("sigmoid", 1): ("Mul",),
}
#: Name of a table of positions → name of the buffer with the row for each pair of positions.
_INDICES = {"bias_table": ("bias_index", "buckets"), "rows": ("index",), "columns": ("index",)}
#: More uses of other constants are never between those of two weights.
_MOST_BETWEEN = 40
_CPU = torch.device("cpu")
#: The most by which rows differ that should be equal: an addition in float32 is rounded.
_ROUNDING = 1e-5
_ADVICE = "use --backend cpu, or export the bundle again"


class _UseRecorder(TorchFunctionMode):
    """Record the functions that use weights, in order."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.uses: list[tuple[str, str]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor) and id(tensor) in self._names and func.__name__ != "__get__":  # x.shape
                    self.uses.append((self._names[id(tensor)], func.__name__))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _record_uses(module: nn.Module, arguments: tuple[Tensor, ...]) -> list[tuple[str, str]]:
    """Return the weights of a module in the order in which it uses them, each with the function that uses it."""
    recorder = _UseRecorder({id(value): name for name, value in module.state_dict(keep_vars=True).items()})
    with recorder:
        module(*arguments)
    return recorder.uses


@dataclass(frozen=True, slots=True)
class _Use:
    """The use of a constant of a graph by a node.

    ``node``: the node's type. ``name``: the constant's name, which is another weight's if the two were equal.
    """

    name: str
    node: str
    value: NDArray[Any]


def _read_uses(path: Path) -> list[_Use]:
    """Return the float constants of a graph in the order in which its nodes use them."""
    graph = onnx.load(str(path)).graph
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    return [
        _Use(name, node.op_type, constants[name])
        for node in graph.node
        if node.op_type != _NORMALISATION
        for name in node.input
        if name in constants
    ]


def _undo_folding(
    constant: NDArray[Any], node: str, *, weight: Tensor, index: Tensor | None = None
) -> NDArray[Any] | None:
    """Return a weight from a constant that it may have been folded into; None if they do not fit.

    Args:
        constant: The constant.
        node: The type of the node that uses it.
        weight: The weight, for its shape.
        index: For a table of positions, the row for each element of the constant. Default: none.
    """
    shape = tuple(weight.shape)
    if node == "MatMul":  # it takes the transposed matrix
        return constant.T if weight.ndim == 2 and constant.shape == shape[::-1] else None
    if constant.shape == shape:
        return constant
    if index is not None and constant.size == index.numel() * shape[-1]:
        table = np.zeros(shape, constant.dtype)
        is_first = constant.ndim == 3 and constant.shape[0] == shape[-1]  # (heads, length, length), else heads last
        rows = constant.reshape(shape[-1], -1).T if is_first else constant.reshape(-1, shape[-1])
        table[index.flatten().numpy()] = rows
        return table
    squeezed = [side for side in constant.shape if side != 1]
    return constant.reshape(shape) if squeezed == list(shape) else None


def _undo_additions(
    constants: Sequence[NDArray[Any]], weight: Tensor, positions: Sequence[NDArray[np.float32]]
) -> NDArray[Any]:
    """Return a table with a row for each level of features from the constants that its rows are in.

    A row is a constant, or it was added to the positions of its level, alone or with those of all levels. The graph has
    no row of a level that it does not use, which is 0 here.

    Args:
        constants: The constants in which the rows may be, in order.
        weight: The table (levels, d), for its shape.
        positions: The positions (h · w, d) of each level.

    Returns:
        The table.
    """
    levels, dim = weight.shape
    ends = np.cumsum([len(of_level) for of_level in positions])
    parts = [part for c in constants if c.shape == (ends[-1], dim) for part in np.split(c, ends[:-1])]
    rows: dict[int, NDArray[Any]] = {}
    for level, of_level in enumerate(positions):
        for constant in (*constants, *parts):
            if constant.shape == of_level.shape and np.ptp(constant - of_level, axis=0).max() < _ROUNDING:
                row = (constant - of_level).mean(axis=0)
                if np.abs(row).max() > _ROUNDING:  # otherwise these are the positions alone
                    rows[level] = row
    alone = [constant for constant in constants if constant.shape == (dim,)]
    rows |= dict(zip([level for level in range(levels) if level not in rows], alone, strict=False))
    return np.stack([rows.get(level, np.zeros(dim, np.float32)) for level in range(levels)])


def _restore_module(
    module: nn.Module, uses: Sequence[tuple[str, str]], path: Path, *, positions: Sequence[NDArray[np.float32]]
) -> None:
    """Fill a module from its graph.

    Args:
        module: The module.
        uses: Its weights in the order in which it uses them, each with the function that uses it.
        path: The graph.
        positions: The positions (h · w, d) of each level of features.

    Raises:
        ValueError: The graph lacks a weight; the message names it.
    """
    own = module.state_dict()
    of_graph = _read_uses(path)
    constants = {use.name: use.name for use in of_graph if use.name in own}  # weight → its constant
    found: dict[str, Tensor] = {}
    place = 0
    for name, function in uses:
        if function == "batch_norm" and name not in constants:
            continue  # it is part of the convolution before it
        after = range(place, len(of_graph))
        if name in constants:
            at = next((number for number in after if of_graph[number].name == constants[name]), None)
            if at is not None:
                place = at + 1
                found.setdefault(name, torch.from_numpy(of_graph[at].value.copy()))
            elif name not in found:
                raise ValueError(f"{name} is used in another order")
        else:
            value, at = _find_folded(module, name, function=function, uses=of_graph[place:], positions=positions)
            if at is not None and function == "sigmoid":
                del of_graph[place + at]  # the graph uses it after other weights
            elif at is not None:
                constants[name], place = of_graph[place + at].name, place + at + 1
            found[name] = torch.from_numpy(value.copy())
    for holder, norm in module.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and f"{holder}.running_var" not in found:
            _set_identity(norm)
    if misshaped := [name for name, value in found.items() if value.shape != own[name].shape]:
        raise ValueError(f"{misshaped[0]} has the shape {list(found[misshaped[0]].shape)}")
    module.load_state_dict(found, strict=False)


def _find_folded(
    module: nn.Module,
    name: str,
    *,
    function: str,
    uses: Sequence[_Use],
    positions: Sequence[NDArray[np.float32]],
) -> tuple[NDArray[Any], int | None]:
    """Find a weight that has no constant of its name.

    Args:
        module: The module.
        name: The weight's name.
        function: The function that uses it.
        uses: The uses of constants after those that were found before.
        positions: The positions (h · w, d) of each level of features.

    Returns:
        The weight, and the number of its use; None if it has several.

    Raises:
        ValueError: None of the constants fits.
    """
    weight = module.state_dict()[name]
    holder, _, leaf = name.rpartition(".")
    if leaf == "level_embedding":
        others = [use.value for use in uses[:_MOST_BETWEEN] if use.name not in module.state_dict()]
        return _undo_additions(others, weight, positions), None
    if function == "conv2d" and weight.ndim == 1 and (not uses or uses[0].value.shape != tuple(weight.shape)):
        return np.zeros(tuple(weight.shape), np.float32), None  # the exporter omits biases of zeros
    buffers = dict(module.get_submodule(holder).named_buffers(recurse=False))
    index = next((buffers[other] for other in _INDICES.get(leaf, ()) if other in buffers), None)
    for number, use in enumerate(uses[:_MOST_BETWEEN]):
        if use.node in _NODES.get((function, weight.ndim), (use.node,)):
            value = _undo_folding(use.value, use.node, weight=weight, index=index)
            if value is not None:
                return np.log(value / (1 - value)) if function == "sigmoid" else value, number
    raise ValueError(f"{name} is missing")


@torch.no_grad()
def _set_identity(norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Let a batch norm return its input, because its effect is part of the convolution before it."""
    norm.reset_running_stats()
    norm.reset_parameters()
    norm.weight.fill_((1 + norm.eps) ** 0.5)


def restore_model(bundle: Bundle) -> Model:
    """Build the model of a bundle, with the weights of its canonical graphs.

    The result is proven: either the hash of all weights is the exported model's, or every stage computes the bundle's
    reference outputs within the limits of `verify`.

    Args:
        bundle: The bundle.

    Returns:
        The model, on the CPU, in eval mode.

    Raises:
        BundleError: The weights can't be read back.
    """
    recipe = bundle.recipe
    check_memory(recipe)
    size = bundle.sizes[0]
    with META:
        shapes = build_model(recipe)
    shapes = shapes.to(META)
    model = build_model(recipe)
    method = find_method(recipe)
    if method.program != bundle.program:
        raise BundleError(f"{bundle.folder} has another program than its recipe; {_ADVICE}")
    positions = [
        compute_sine_positions(size[0] // stride, size[1] // stride, recipe.pixel_decoder.dim, device=_CPU).numpy()
        for stride in (32, 16, 8)
    ]
    of_shapes, modules = method.get_graph_modules(shapes), method.get_graph_modules(model)
    for stage, arguments in make_example_arguments(shapes, size, META).items():
        uses = _record_uses(of_shapes[stage], arguments)
        try:
            _restore_module(modules[stage], uses, bundle.graph_path(bundle.graph_at(stage, size)), positions=positions)
        except ValueError as error:
            raise BundleError(
                f"{bundle.folder}: weights can't be read back from {stage} ({error}); {_ADVICE}"
            ) from error
    if hash_weights(model) != bundle.manifest.provenance.get("weights_sha256"):
        _compare_with_reference(bundle, model)
    return model


def _compare_with_reference(bundle: Bundle, model: Model) -> None:
    """Check that every stage computes the bundle's reference outputs. Raises :class:`BundleError`."""
    reference = read_reference(bundle, bundle.sizes[0])
    threshold = bundle.manifest.postprocessing.threshold
    for stage, outputs in compute_graph_outputs(make_pytorch_engines(model), reference).items():
        if failure := compare_tensors(outputs, reference, threshold).failure(LIMITS["fp32"].pytorch):
            raise BundleError(
                f"{bundle.folder}: {stage} with the weights of its graph differs from the reference ({failure}); "
                f"{_ADVICE}"
            )
