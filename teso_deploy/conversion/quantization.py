"""int8 as a property of the graph: QuantizeLinear / DequantizeLinear around its products.

Weights are symmetric int8 with a scale per output channel. Activations are asymmetric uint8 with one scale, which is
set by real frames. A tensor that several products take (queries, keys and values) is quantised once. The outputs of
convolutions are quantised too: runtimes compute a convolution in int8 only if its output is integer.

Products that place samples (the offsets of deformable attention) stay in floating point. So do the products with the
largest error in :func:`measure_sensitivities`; how many of them depends on how well the masks agree.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from teso_deploy.backends.onnxruntime import count_cores
from teso_deploy.conversion.functions import DOMAIN, MSDA
from teso_deploy.conversion.rewriting import Rewriter, get_constant
from teso_deploy.errors import PrecisionError

#: Quantising a product with fewer weights saves no time.
LEAST_WEIGHTS = 256
#: Convolutions with fewer input channels, such as the first one, which reads the picture, are not quantised.
LEAST_CHANNELS = 32
#: Number of tensors that are observed in one run. Each is held in memory completely.
OBSERVED_AT_ONCE = 48
Name = TypeVar("Name")
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Convolution:
    """The kernel, stride and padding of a convolution; ``output`` is the name of its output."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    output: str

    def rows(self, maps: NDArray[Any]) -> NDArray[Any]:
        """(B, C, H, W) → (B · h · w, C · kernel): one row for each position of the kernel."""
        top, left, bottom, right = self.pads
        padded = np.pad(maps, ((0, 0), (0, 0), (top, bottom), (left, right)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, self.kernel, axis=(2, 3))
        seen = seen[:, :, :: self.strides[0], :: self.strides[1]].transpose(0, 2, 3, 1, 4, 5)
        return seen.reshape(-1, maps.shape[1] * self.kernel[0] * self.kernel[1])


@dataclass(frozen=True, slots=True)
class Product:
    """A product with constant weights: its node's name, the name of its input, and the weights (K, N)."""

    name: str
    activation: str
    weights: NDArray[np.float32]
    convolution: Convolution | None = None

    def rows(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Arrange the input as (M, K)."""
        rows = values.reshape(-1, values.shape[-1]) if self.convolution is None else self.convolution.rows(values)
        return rows.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Range:
    """The range of a tensor's values on the calibration frames; it always contains 0."""

    low: float = 0.0
    high: float = 0.0

    def widen(self, values: NDArray[Any]) -> Range:
        """Return the range that also contains these values."""
        return Range(min(self.low, float(values.min())), max(self.high, float(values.max())))

    def scale_and_zero(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of uint8: value = scale · (q − zero)."""
        scale = np.float32(max((self.high - self.low) / 255, 1e-12))
        return scale, np.uint8(np.clip(round(-self.low / float(scale)), 0, 255))

    def symmetric(self) -> tuple[np.float32, np.int8]:
        """Return scale and zero point of int8. TensorRT requires zero point 0, so a range of one sign loses a bit."""
        return np.float32(max(-self.low, self.high, 127e-12) / 127), np.int8(0)


def _find_weights(node: ir.Node) -> NDArray[np.float32] | None:
    """Return the weights (K, N) of a MatMul, Gemm or convolution, if they are constant."""
    if node.domain or node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    weights = get_constant(node.inputs[1])
    if node.op_type == "Conv":
        return weights.reshape(len(weights), -1).T if weights is not None and _find_convolution(node) else None
    if weights is None or weights.ndim != 2 or weights.size < LEAST_WEIGHTS or weights.dtype != np.float32:
        return None
    if node.op_type == "Gemm":
        of = {name: attribute.value for name, attribute in node.attributes.items()}
        if of.get("transA", 0) or of.get("alpha", 1.0) != 1.0 or of.get("beta", 1.0) != 1.0:
            return None
        return weights.T if of.get("transB", 0) else weights
    return weights


def _find_convolution(node: ir.Node) -> Convolution | None:
    """Return a convolution of pictures that may be quantised; None for any other node."""
    weights = get_constant(node.inputs[1]) if node.op_type == "Conv" else None
    if weights is None or weights.ndim != 4 or weights.dtype != np.float32 or weights.shape[1] < LEAST_CHANNELS:
        return None
    of = {name: attribute.value for name, attribute in node.attributes.items()}
    if of.get("group", 1) != 1 or of.get("auto_pad", "NOTSET") != "NOTSET" or set(of.get("dilations", (1,))) != {1}:
        return None
    if node.outputs[0].is_graph_output():
        return None  # inputs of the next graph are not rounded
    strides, pads = tuple(of.get("strides", (1, 1))), tuple(of.get("pads", (0, 0, 0, 0)))
    return Convolution(weights.shape[2:], strides, pads, str(node.outputs[0].name))


def _list_placing(model: ir.Model) -> set[str | None]:
    """Name the products whose outputs are sampling offsets, or lead to a logarithm (a log-mel)."""
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


def list_products(model: ir.Model) -> list[Product]:
    """List every product of a canonical graph that may be quantised, in order."""
    placing = _list_placing(model)
    found = []
    for node in model.graph:
        weights = _find_weights(node)
        if weights is not None and node.name not in placing:
            taken = str(node.inputs[0].name)  # type: ignore[union-attr]
            found.append(Product(str(node.name), taken, weights, _find_convolution(node)))
    return found


def _observe(path: Path, names: Sequence[str], batches: Iterable[Feeds]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield tensors of a graph by name, of every batch.

    Only some tensors are computed at a time, so that memory stays bounded.
    """
    batches = list(batches)
    for start in range(0, len(names), OBSERVED_AT_ONCE):
        model = ir.load(path)
        wanted = set(names[start : start + OBSERVED_AT_ONCE])
        values = [value for node in model.graph for value in node.outputs if value.name in wanted]
        given = wanted & {str(value.name) for value in model.graph.inputs}
        known = {value.name for value in model.graph.outputs}
        model.graph.outputs.extend(value for value in values if value.name not in known)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_cores()
        options.log_severity_level = 3
        # Write it next to its weights: ONNX Runtime refuses external data outside of the graph's folder.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as file:
            ir.save(model, file.name)
            session = onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
        seen = sorted(wanted - given)
        for feeds in batches:
            inputs = {value.name: feeds[value.name] for value in session.get_inputs()}
            if seen:  # without names, the session would return every output
                yield from zip(seen, session.run(seen, inputs), strict=True)
            yield from ((name, feeds[name]) for name in given)


def observe(path: Path, batches: Iterable[Feeds]) -> dict[str, Range]:
    """Measure the range of every input of a product and every output of a convolution, over the batches."""
    ranges: dict[str, Range] = {}
    found = list_products(ir.load(path))
    given = [product.convolution.output for product in found if product.convolution is not None]
    names = list(dict.fromkeys([*(product.activation for product in found), *given]))
    for name, values in _observe(path, names, batches):
        ranges[name] = ranges.get(name, Range()).widen(values)
    return ranges


def quantize_weights(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise (K, N) float32 to int8; returns also the scale of each of the N output channels."""
    scales = np.maximum(np.abs(weights).max(axis=0) / 127, 1e-12).astype(np.float32)
    return np.clip(np.rint(weights / scales), -127, 127).astype(np.int8), scales


def measure_sensitivities(path: Path, batches: Iterable[Feeds], ranges: Mapping[str, Range]) -> dict[str, float]:
    """Measure the relative error of each product's output if only this product is quantised.

    The output of a convolution is rounded as well, which adds to its error.

    Args:
        path: The canonical graph.
        batches: Inputs of the graph.
        ranges: The range of each tensor, from :func:`observe`.

    Returns:
        Name of the product → relative error, the largest first.
    """
    by_tensor: dict[str, list[Product]] = {}
    for product in list_products(ir.load(path)):
        by_tensor.setdefault(product.activation, []).append(product)
    error, power = dict[str, float](), dict[str, float]()
    for name, values in _observe(path, list(by_tensor), batches):
        scale, zero = ranges[name].scale_and_zero()
        for product in by_tensor[name]:
            x = product.rows(values)
            rounded = (np.clip(np.rint(x / scale) + zero, 0, 255) - np.float32(zero)) * scale
            integers, scales = quantize_weights(product.weights)
            exact = x @ product.weights
            error[product.name] = error.get(product.name, 0.0) + float(
                np.square(rounded @ (integers * scales) - exact).sum()
            )
            power[product.name] = power.get(product.name, 0.0) + float(np.square(exact).sum())
    convolutions = {p.convolution.output: p.name for found in by_tensor.values() for p in found if p.convolution}
    for name, values in _observe(path, list(convolutions), batches):
        step = float(ranges[name].scale_and_zero()[0])
        error[convolutions[name]] += values.size * step**2 / 12  # variance of a uniform distribution between two steps
    relative = {name: float(np.sqrt(error[name] / max(power[name], 1e-30))) for name in error}
    return dict(sorted(relative.items(), key=lambda item: -item[1]))


def _given(
    edit: Rewriter, node: ir.Node, *, weights: NDArray[np.int8], scales: NDArray[np.float32], axis: int
) -> ir.Value:
    """Return weights as int8 with one scale along ``axis``, dequantised before ``node``.

    The zero points are written out, and no other node shares these tensors. On processors without VNNI, ONNX Runtime
    converts both to uint8, which fails if two nodes share a tensor, or if several scales have no zero points.
    """
    stored = edit.constant(weights, of_one_node=True)
    zeros = edit.constant(np.zeros(len(scales), np.int8), of_one_node=True)
    return edit.add(node, "DequantizeLinear", [stored, edit.constant(scales), zeros], attributes={"axis": axis})[0]


def _quantize_convolution(
    edit: Rewriter,
    node: ir.Node,
    *,
    quantized: NDArray[np.int8],
    scales: NDArray[np.float32],
    step: np.float32 | None,
    round_to_int8: Callable[[ir.Value], ir.Value],
) -> None:
    """Quantise a convolution's weights (K, N), its bias and its output.

    The bias is in units of the products' sums; ``step`` is the scale of the input.
    """
    assert node.inputs[1] is not None and node.inputs[1].shape is not None
    stored = quantized.T.reshape(node.inputs[1].shape.numpy())
    node.replace_input_with(1, _given(edit, node, weights=stored, scales=scales, axis=0))
    bias = get_constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and step is not None:
        units = (scales * step).astype(np.float32)
        sums = edit.constant(np.rint(bias / units).astype(np.int32))
        node.replace_input_with(
            2, edit.add(node, "DequantizeLinear", [sums, edit.constant(units)], attributes={"axis": 0})[0]
        )
    users = list(node.outputs[0].uses())
    result = round_to_int8(node.outputs[0])
    for user, position in users:
        user.replace_input_with(position, result)


def quantize(
    model: ir.Model, ranges: Mapping[str, Range], leave_out: Collection[str] = (), *, symmetric: bool = False
) -> int:
    """Put Q / DQ around the products of a canonical graph, in place.

    Args:
        model: The graph.
        ranges: The range of each tensor, from :func:`observe`.
        leave_out: Names of products that stay in floating point. Default: none.
        symmetric: Whether activations are int8 around zero and biases stay floats, as TensorRT requires. Default: no.

    Returns:
        The number of quantised products.

    Raises:
        PrecisionError: A product's input has no range.
    """
    edit, placing, count = Rewriter(model), _list_placing(model), 0
    pairs: dict[str, ir.Value] = {}

    def round_to_int8(value: ir.Value, node: ir.Node) -> ir.Value:
        of = ranges[str(value.name)]
        scale, zero = (edit.constant(np.asarray(x)) for x in (of.symmetric() if symmetric else of.scale_and_zero()))
        integers = edit.add(node, "QuantizeLinear", [value, scale, zero])[0]
        return edit.add(node, "DequantizeLinear", [integers, scale, zero])[0]

    for node in list(model.graph):
        weights, taken = _find_weights(node), node.inputs[0] if node.inputs else None
        if weights is None or taken is None or node.name in placing or node.name in leave_out:
            continue
        if taken.name not in ranges:
            raise PrecisionError(
                f"no calibration frame reached {node.name}: calibrate with the graph that is to be quantised"
            )
        name = str(taken.name)
        if name not in pairs:
            pairs[name] = round_to_int8(taken, node)
        node.replace_input_with(0, pairs[name])
        quantized, scales = quantize_weights(weights)
        if node.op_type == "Conv":
            step = None if symmetric else ranges[name].scale_and_zero()[0]
            _quantize_convolution(
                edit,
                node,
                quantized=quantized,
                scales=scales,
                step=step,
                round_to_int8=partial(round_to_int8, node=node),
            )
            count += 1
            continue
        is_turned = node.op_type == "Gemm" and bool(
            node.attributes["transB"].as_int() if "transB" in node.attributes else 0
        )
        stored = quantized.T if is_turned else quantized
        node.replace_input_with(1, _given(edit, node, weights=stored, scales=scales, axis=0 if is_turned else 1))
        count += 1
    edit.finish()
    return count


def carry_over(
    ranges: Mapping[str, Range], leave_out: Collection[str], *, measured: ir.Model, other: ir.Model
) -> tuple[dict[str, Range], set[str]]:
    """Transfer ranges and excluded products from one picture size's graph to another's.

    The exporter numbers its nodes, and a size that needs padding has more of them, so names differ. The weights have
    the same order in both graphs.

    Args:
        ranges: The ranges of the measured graph.
        leave_out: Names of the measured graph's products that stay in floating point.
        measured: The measured graph.
        other: The graph of the other size.

    Returns:
        The ranges and the excluded products, by the other graph's names.

    Raises:
        PrecisionError: The weights of the graphs have different orders.
    """
    pairs = list(zip(list_products(measured), list_products(other), strict=True))
    if not all(np.array_equal(ours.weights, theirs.weights) for ours, theirs in pairs):
        raise PrecisionError(
            "the graphs of two picture sizes have their weights in different orders: export each size separately"
        )
    known = {theirs.activation: ranges[ours.activation] for ours, theirs in pairs}
    for ours, theirs in pairs:
        if ours.convolution is not None and theirs.convolution is not None:
            known[theirs.convolution.output] = ranges[ours.convolution.output]
    return (
        known,
        {theirs.name for ours, theirs in pairs if ours.name in leave_out},
    )


def find_least_left_out(
    ranked: Sequence[Name], agreement: Callable[[Collection[Name]], float], *, aim: float, least: float
) -> tuple[list[Name], float]:
    """Find the fewest products to exclude from int8 so that the masks agree.

    The most sensitive products are excluded, 0, 1, 2, 4 … of them, up to a quarter of all. If that is not enough, the
    number with the best agreement is chosen.

    Args:
        ranked: The products, the most sensitive first.
        agreement: Measures the agreement (0 … 1) without some products.
        aim: The desired agreement.
        least: The least agreement.

    Returns:
        The excluded products, and the agreement without them.

    Raises:
        PrecisionError: The best agreement is below ``least``.
    """
    best, count = (-1.0, 0), 0
    while best[0] < aim and count <= max(1, len(ranked) // 4):
        best = max(best, (agreement(ranked[:count]), -count))  # of equal agreements, prefer fewer products
        count = max(1, 2 * count)
    reached, left_out = best[0], ranked[: -best[1]]
    if not reached >= least:
        raise PrecisionError(
            f"int8 masks agree with fp32 to {reached:.4f}, but {least} is needed: calibrate on frames like those to "
            "segment"
        )
    return list(left_out), reached
