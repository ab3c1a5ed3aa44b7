"""int8 as a property of the graph: QuantizeLinear / DequantizeLinear around its products.

Weights are symmetric int8 with a scale per output channel, activations asymmetric uint8 with one scale,
set by what real frames show. A tensor that several products take (queries, keys and values) is quantised
once. Products that place samples (the offsets of deformable attention) stay as they are, and so do those
that :func:`sensitivities` finds to suffer most, as many as the masks ask for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from teso_deploy.backends.onnxruntime import available_cores
from teso_deploy.errors import PrecisionError
from teso_deploy.exporting.functions import DOMAIN, MSDA
from teso_deploy.exporting.rewriting import Rewriter, constant_of

#: A product of fewer weights gains nothing.
LEAST_WEIGHTS = 256
#: Tensors that are looked at in one run; each is held whole.
OBSERVED_AT_ONCE = 48
Name = TypeVar("Name")
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Product:
    """A product with constant weights: its node's name, what it takes, and the weights (K, N)."""

    name: str
    activation: str
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Range:
    """What values of a tensor lie between on the calibration frames; 0 is always inside."""

    low: float = 0.0
    high: float = 0.0

    def widened(self, values: NDArray[Any]) -> Range:
        """With these values inside."""
        return Range(min(self.low, float(values.min())), max(self.high, float(values.max())))

    def scale_and_zero(self) -> tuple[np.float32, np.uint8]:
        """Of uint8: value = scale · (q − zero)."""
        scale = np.float32(max((self.high - self.low) / 255, 1e-12))
        return scale, np.uint8(np.clip(round(-self.low / float(scale)), 0, 255))


def _weights_of(node: ir.Node) -> NDArray[np.float32] | None:
    """(K, N) of a MatMul or Gemm with constant weights."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    weights = constant_of(node.inputs[1])
    if weights is None or weights.ndim != 2 or weights.size < LEAST_WEIGHTS or weights.dtype != np.float32:
        return None
    if node.op_type == "Gemm":
        of = {name: attribute.value for name, attribute in node.attributes.items()}
        if of.get("transA", 0) or of.get("alpha", 1.0) != 1.0 or of.get("beta", 1.0) != 1.0:
            return None
        return weights.T if of.get("transB", 0) else weights
    return weights


def _placing(model: ir.Model) -> set[str | None]:
    """Names of the products whose outputs are sampling offsets, or lead to a logarithm (a log-mel)."""
    found: set[str | None] = set()
    before_log = [value for node in model.graph if node.op_type == "Log" for value in node.inputs]
    while before_log:
        maker = value.producer() if (value := before_log.pop()) is not None else None
        if maker is not None and maker.name not in found:
            found.add(maker.name)
            before_log.extend(maker.inputs)
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type == MSDA:
            value = node.inputs[1]
            while value is not None and (producer := value.producer()) is not None:
                if producer.op_type in ("MatMul", "Gemm"):
                    found.add(producer.name)
                    break
                value = producer.inputs[0]
    return found


def products(model: ir.Model) -> list[Product]:
    """Every product of a canonical graph that may be quantised, in order."""
    placing = _placing(model)
    found = []
    for node in model.graph:
        weights = _weights_of(node)
        if weights is not None and node.name not in placing:
            found.append(Product(str(node.name), str(node.inputs[0].name), weights))  # type: ignore[union-attr]
    return found


def _observed(path: Path, names: Sequence[str], batches: Iterable[Feeds]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Tensors of a graph by name, of every batch; some at a time, so that memory stays bounded."""
    batches = list(batches)
    for start in range(0, len(names), OBSERVED_AT_ONCE):
        model = ir.load(path)
        wanted = set(names[start : start + OBSERVED_AT_ONCE])
        values = [value for node in model.graph for value in node.outputs if value.name in wanted]
        given = wanted & {str(value.name) for value in model.graph.inputs}
        known = {value.name for value in model.graph.outputs}
        model.graph.outputs.extend(value for value in values if value.name not in known)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores()
        options.log_severity_level = 3
        # Beside its weights: ONNX Runtime refuses external data outside of the graph's folder.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as file:
            ir.save(model, file.name)
            session = onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
        seen = sorted(wanted - given)
        for feeds in batches:
            inputs = {value.name: feeds[value.name] for value in session.get_inputs()}
            yield from zip(seen, session.run(seen, inputs), strict=True)
            yield from ((name, feeds[name]) for name in given)


def observe(path: Path, batches: Iterable[Feeds]) -> dict[str, Range]:
    """The range of every tensor that a product of the graph takes, over the batches."""
    ranges: dict[str, Range] = {}
    names = list(dict.fromkeys(product.activation for product in products(ir.load(path))))
    for name, values in _observed(path, names, batches):
        ranges[name] = ranges.get(name, Range()).widened(values)
    return ranges


def quantized_weights(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(K, N) float32 → int8 and the scale of each of the N output channels."""
    scales = np.maximum(np.abs(weights).max(axis=0) / 127, 1e-12).astype(np.float32)
    return np.clip(np.rint(weights / scales), -127, 127).astype(np.int8), scales


def sensitivities(path: Path, batches: Iterable[Feeds], ranges: Mapping[str, Range]) -> dict[str, float]:
    """Relative error of every product's own output when it alone is quantised, the worst first."""
    by_tensor: dict[str, list[Product]] = {}
    for product in products(ir.load(path)):
        by_tensor.setdefault(product.activation, []).append(product)
    error, power = dict[str, float](), dict[str, float]()
    for name, values in _observed(path, list(by_tensor), batches):
        x = values.reshape(-1, values.shape[-1]).astype(np.float32)
        scale, zero = ranges[name].scale_and_zero()
        rounded = (np.clip(np.rint(x / scale) + zero, 0, 255) - np.float32(zero)) * scale
        for product in by_tensor[name]:
            integers, scales = quantized_weights(product.weights)
            exact = x @ product.weights
            error[product.name] = error.get(product.name, 0.0) + float(
                np.square(rounded @ (integers * scales) - exact).sum()
            )
            power[product.name] = power.get(product.name, 0.0) + float(np.square(exact).sum())
    relative = {name: float(np.sqrt(error[name] / max(power[name], 1e-30))) for name in error}
    return dict(sorted(relative.items(), key=lambda item: -item[1]))


def quantize(model: ir.Model, ranges: Mapping[str, Range], leave_out: Collection[str] = ()) -> int:
    """Put Q / DQ around the products of a canonical graph, in place; how many there are now."""
    edit, placing, count = Rewriter(model), _placing(model), 0
    pairs: dict[str, ir.Value] = {}
    for node in list(model.graph):
        weights, taken = _weights_of(node), node.inputs[0] if node.inputs else None
        if weights is None or taken is None or node.name in placing or node.name in leave_out:
            continue
        if taken.name not in ranges:
            raise PrecisionError(
                f"no calibration frame reached {node.name}: calibrate with the graph that is quantised"
            )
        name = str(taken.name)
        if name not in pairs:
            scale, zero = (edit.constant(np.asarray(part)) for part in ranges[name].scale_and_zero())
            integers = edit.add(node, "QuantizeLinear", [taken, scale, zero])[0]
            pairs[name] = edit.add(node, "DequantizeLinear", [integers, scale, zero])[0]
        node.replace_input_with(0, pairs[name])
        quantized, scales = quantized_weights(weights)
        is_turned = node.op_type == "Gemm" and bool(
            node.attributes["transB"].as_int() if "transB" in node.attributes else 0
        )
        stored = edit.constant(quantized.T if is_turned else quantized)
        inputs = [stored, edit.constant(scales)]
        node.replace_input_with(1, edit.add(node, "DequantizeLinear", inputs, {"axis": 0 if is_turned else 1})[0])
        count += 1
    edit.finish()
    return count


def carried_over(
    ranges: Mapping[str, Range], leave_out: Collection[str], measured: ir.Model, other: ir.Model
) -> tuple[dict[str, Range], set[str]]:
    """Ranges and products to leave out of one picture size's graph, by the names of another's.

    The exporter numbers its nodes, and a size that needs padding has more of them; weights come in one order.
    """
    pairs = list(zip(products(measured), products(other), strict=True))
    if not all(np.array_equal(ours.weights, theirs.weights) for ours, theirs in pairs):
        raise PrecisionError("the graphs of two picture sizes have their weights in another order: export each alone")
    return (
        {theirs.activation: ranges[ours.activation] for ours, theirs in pairs},
        {theirs.name for ours, theirs in pairs if ours.name in leave_out},
    )


def least_left_out(ranked: Sequence[Name], agreement: Callable[[Collection[Name]], float], wanted: float) -> list[Name]:
    """The fewest of the most sensitive products, tried by doubling, without which ``agreement`` is ``wanted``.

    Raises :class:`PrecisionError` when even a quarter of them is not enough.
    """
    count = 0
    while True:
        reached = agreement(ranked[:count])
        if reached >= wanted:
            return list(ranked[:count])
        count = max(1, 2 * count)
        if count > max(1, len(ranked) // 4):
            raise PrecisionError(
                f"int8 masks agree to {reached:.4f} with fp32, {wanted} is needed: "
                "calibrate on frames of what is to be seen"
            )
