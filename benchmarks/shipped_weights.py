"""A checkpoint made from the graphs of a bundle, for benchmarks that go on training from the shipped model.

The shipped bundle has no checkpoint beside it, but its canonical graphs hold all weights, some of them transposed,
sliced or gathered. To find out which element of a graph is which element of the model, the model is exported once more
with the number of each element in its place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from teso_deploy.bundle import Bundle
from teso_deploy.conversion.graphs import export_graph
from teso_deploy.conversion.reference import make_example_arguments
from teso_deploy.errors import BundleError
from teso_deploy.models import build
from teso_deploy.models.layers import compute_sine_positions
from teso_deploy.models.methods import find_method
from teso_deploy.models.teso import Teso
from teso_deploy.recipe import Recipe

#: Numbers of elements begin here, above all constants of the graphs. float32 holds integers up to 2**24 exactly.
_FIRST_NUMBER = 1 << 17
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def read_bundle_weights(bundle: Bundle, graphs: Sequence[str]) -> dict[str, Tensor]:
    """Recover the weights of some graphs of a bundle of TeSO on Mask2Former.

    Batch norms were folded into the layers before them, so theirs are those of an identity in eval mode.

    Args:
        bundle: The bundle.
        graphs: Names of its graphs.

    Returns:
        Key of the model's state → weights, for the parameters of these graphs.

    Raises:
        BundleError: A graph was exported by another version, so its nodes differ from those of today's export.
    """
    recipe = Recipe.model_validate(bundle.manifest.recipe)
    model = build(recipe, 0)
    for module in model.modules():
        if isinstance(module, _NORMS):
            nn.init.constant_(module.running_var, 1 - module.eps)  # type: ignore[arg-type]
    found: dict[str, Tensor] = {}
    for graph in graphs:
        numbered = _number_elements(model, graph)
        pairs = _pair_constants(_export(model, graph), onnx.load(bundle.graph_path(graph)))
        found |= _collect_elements(pairs, numbered, _list_positions(recipe))
    state = model.state_dict()
    return {name: found.get(name, state[name]) for name in state if name.startswith(tuple(f"{g}." for g in graphs))}


def _list_positions(recipe: Recipe) -> list[NDArray[np.float32]]:
    """Compute the positions of each level, and of all levels together: (S, d) each."""
    height, width = recipe.image.sizes[0]
    levels = [
        compute_sine_positions(height // stride, width // stride, recipe.pixel_decoder.dim, device=torch.device("cpu"))
        for stride in (32, 16, 8)
    ]
    return [positions.numpy() for positions in (*levels, torch.cat(levels))]


def _number_elements(model: Teso, graph: str) -> dict[str, tuple[int, torch.Size]]:
    """Set each element of a graph's parameters to its number. Return key → (number of the first element, shape)."""
    numbered, first = {}, _FIRST_NUMBER
    kept = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, _NORMS)
        for key in module.state_dict()
    }
    for name, parameter in model.named_parameters():
        if name.startswith(f"{graph}.") and name not in kept:
            values = torch.arange(first, first + parameter.numel(), dtype=torch.float32)
            parameter.data.copy_(values.view(parameter.shape))
            numbered[name] = (first, parameter.shape)
            first += parameter.numel()
    assert first < 1 << 24, "too many elements to number them in float32"
    return numbered


def _export(model: Teso, graph: str) -> onnx.ModelProto:
    method, recipe = find_method(model.recipe), model.recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        arguments = make_example_arguments(model, recipe.image.sizes[0])[graph]
        module, spec = method.get_graph_modules(model)[graph], method.list_graph_specs(recipe)[graph]
        export_graph(module, spec, arguments, path=path, metadata={})
        return onnx.load(path)


Constant = NDArray[Any]


def _pair_constants(numbers: onnx.ModelProto, values: onnx.ModelProto) -> list[tuple[Constant, Constant]]:
    """Pair the constants of two exports of one module by the nodes that take them. Raises :class:`BundleError`."""
    if [node.op_type for node in numbers.graph.node] != [node.op_type for node in values.graph.node]:
        raise BundleError("the bundle's graphs differ from those of this version: export it again")
    one, other = (
        {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
        for model in (numbers, values)
    )
    # By name is not enough: the exporter merges equal constants, such as the ones of several norms.
    pairs = {
        name: same
        for node, twin in zip(numbers.graph.node, values.graph.node, strict=True)
        for name, same in zip(node.input, twin.input, strict=False)  # the exporter omits a bias of zeros
        if name in one and same in other
    }
    return [(one[name], other[same]) for name, same in pairs.items()]


def _collect_elements(
    pairs: Sequence[tuple[Constant, Constant]],
    numbered: dict[str, tuple[int, torch.Size]],
    positions: Sequence[NDArray[np.float32]],
) -> dict[str, Tensor]:
    """Put the constants of a bundle's graph at the places that the constants of the other export number.

    Args:
        pairs: A constant with numbers and the bundle's constant.
        numbered: Key → (number of the first element, shape).
        positions: Each (S, d). The exporter may have added a level's embedding (d,) to them, as a constant (S, d).

    Returns:
        Key → weights.

    Raises:
        BundleError: An element is in no constant, because the graph does not use it or computes with it.
    """
    flat = np.full(max(first + shape.numel() for first, shape in numbered.values()), np.nan, np.float32)
    for places, found in pairs:
        if places.dtype != np.float32 or not places.size or places.min() < _FIRST_NUMBER - 2:
            continue
        if np.abs(places - np.rint(places)).max() > 0.2:  # a sum
            added = next((each for each in positions if each.shape == places.shape), None)
            if added is None:
                continue
            places, found = places.astype(np.float64) - added, found - added
        flat[np.rint(places).astype(np.int64)] = found
    weights = {
        name: torch.from_numpy(flat[first : first + shape.numel()].reshape(shape))
        for name, (first, shape) in numbered.items()
    }
    if lacking := [name for name, tensor in weights.items() if tensor.isnan().any()]:
        raise BundleError(f"the bundle's graphs do not hold all of {lacking[0]}: take a checkpoint")
    return weights


def restore_batch_norms(encoder: nn.Module, inputs: Tensor) -> None:
    """Give folded batch norms the statistics of some inputs, with weights that undo them in eval mode.

    In training mode the norms then do what they did before they were folded, for inputs of this kind.

    Args:
        encoder: A module with identities in place of its batch norms.
        inputs: Its inputs, as many as give good statistics.
    """
    handles = [
        module.register_forward_pre_hook(_set_statistics) for module in encoder.modules() if isinstance(module, _NORMS)
    ]
    with torch.no_grad():
        encoder.eval()(inputs)
    for handle in handles:
        handle.remove()


def _set_statistics(module: nn.Module, arguments: tuple[Tensor]) -> None:
    assert isinstance(module, _NORMS) and module.running_mean is not None and module.running_var is not None
    (x,) = arguments
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean, variance = x.mean(axes), x.var(axes, unbiased=False)
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)
    module.bias.copy_(mean)
    module.weight.copy_((variance + module.eps).sqrt())
