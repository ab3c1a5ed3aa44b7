"""Precision as a property of the graph: casts to half with an fp32 policy, and the types that a file computes in.

Strongly typed runtimes (TensorRT from 10.12 on) use the types of the graph unchanged. So the requested precision is
written into the graph, and read back from it. These parts stay in fp32:

- norms, softmax, logarithms, and everything between the waveform and a logarithm;
- everything that places samples (offsets, reference points, interpolation weights), and deformable attention itself;
- the cue gate;
- the logits of masks with their threshold and their sigmoid.

Inputs and outputs of a graph are float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from teso_deploy.conversion.functions import DOMAIN, PLUGIN
from teso_deploy.conversion.rewriting import Rewriter
from teso_deploy.errors import PrecisionError
from teso_deploy.types import Precision

Half = Literal["fp16", "bf16"]
_TYPES: Mapping[Half, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_NAMES = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
#: The first opset in which convolutions may be bfloat16. The operators of our graphs did not change otherwise.
BF16_OPSET = 22
#: Operators that stay in fp32: statistics, exponentials and thresholds.
_FP32_OPERATORS = {
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "Softmax", "LogSoftmax"),
    *("Exp", "Log", "Sqrt", "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"),
    *("Sigmoid", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Floor", "Range", "Resize", "TopK"),
}
#: Operators whose result depends on a threshold. All floating-point values that lead to them stay in fp32, back to the
#: products that computed them.
_DECIDING = {"Sigmoid", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
_DECIDING_OUTPUTS = {"cue_gate", "masks"}
_ELEMENTWISE = {"Add", "Sub", "Mul", "Abs", "Neg", "Clip", "Unsqueeze", "Reshape", "Transpose", "Gather"}
_PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "MultiHeadAttention", "FusedMatMul"}
_INTEGER_PRODUCTS = {"MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearConv"}
#: Operators that only move or convert values. Concat pads weights with zeros; the weights are its first input.
_MOVING = {"Cast", "DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Identity", "Concat"}
#: The least share of a graph's weights that must have the requested precision. int8 keeps some convolutions in fp32.
LEAST_SHARE: Mapping[Precision, float] = {"fp32": 1.0, "fp16": 0.75, "bf16": 0.75, "int8": 0.5}


def infer_types(model: ir.Model) -> ir.Model:
    """Copy a model, infer the type of every value, and inline its functions.

    The function that a plugin may replace is kept.
    """
    proto = ir.to_proto(InlinePass(lambda function: function.name != PLUGIN)(model.clone()).model)
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    for name, value in model.graph.initializers.items():  # their files are found through the first model
        inferred.graph.initializers[name].const_value = value.const_value
    return inferred


def _collect_upstream(value: ir.Value | None, kept: set[ir.Node], through_products: bool = False) -> None:
    """Collect the nodes that compute a floating-point value, back to the nearest products or to the graph's inputs."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node in kept or value.dtype != ir.DataType.FLOAT:
        return
    kept.add(node)
    if node.op_type in _PRODUCTS and not through_products:
        return
    for taken in node.inputs:
        _collect_upstream(taken, kept, through_products)


def _collect_placing(model: ir.Model) -> set[ir.Node]:
    """Collect all nodes that compute sampling positions or the weights of a sample's neighbours."""
    placing: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type == "GridSample":
            _collect_upstream(node.inputs[1], placing)
        elif node.op_type == "Cast" and node.outputs[0].dtype in (ir.DataType.INT32, ir.DataType.INT64):
            _collect_upstream(node.inputs[0], placing)  # indices of a Gather
        elif node.domain == DOMAIN:  # its floats have one type, and 11 bits can't place a sample
            placing.add(node)
            _collect_upstream(node.inputs[3], placing)
    for node in model.graph:  # nodes that depend only on these compute the neighbours' weights
        if node.op_type in _ELEMENTWISE and node.outputs[0].dtype == ir.DataType.FLOAT:
            makers = [v.producer() for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
            computed = [maker for maker in makers if maker is not None and maker.op_type not in ("Cast", "Constant")]
            if computed and placing.issuperset(computed):
                placing.add(node)
    return placing


def _log_mel(model: ir.Model) -> set[ir.Node]:
    """Collect all nodes between the waveform and a logarithm."""
    front: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type == "Log":
            _collect_upstream(node.inputs[0], front, through_products=True)
    return front


def _collect_fp32_nodes(model: ir.Model) -> set[ir.Node]:
    kept = _collect_placing(model) | _log_mel(model)
    for node in model.graph:
        if node.op_type in _DECIDING:
            for value in node.inputs:
                _collect_upstream(value, kept)
    for output in model.graph.outputs:
        if output.name in _DECIDING_OUTPUTS:
            _collect_upstream(output, kept)
    return kept | {node for node in model.graph if node.op_type in _FP32_OPERATORS}


def cast_to_half(model: ir.Model, precision: Half) -> ir.Model:
    """Return a copy of a canonical model, cast to half precision, with standard operators only.

    Raises :class:`PrecisionError` if a weight is too large for fp16.
    """
    model = infer_types(model)
    half, kept, edit = _TYPES[precision], _collect_fp32_nodes(model), Rewriter(model)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    became_half: set[ir.Value] = set()

    def in_type(value: ir.Value, wanted: ir.DataType, node: ir.Node) -> ir.Value:
        if (value in became_half) == (wanted == half):
            return value
        if (value, wanted) not in casts:
            if value.is_initializer():
                casts[value, wanted] = _cast_weights(edit, value, precision)
            else:
                cast = casts[value, wanted] = edit.add(node, "Cast", [value], attributes={"to": int(wanted)})[0]
                cast.shape, cast.dtype = value.shape, wanted
        return casts[value, wanted]

    for node in list(model.graph):
        gives_floats = any(value.dtype == ir.DataType.FLOAT for value in node.outputs)
        is_half = gives_floats and node not in kept and node.op_type != "Constant"
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT and is_half:
            node.attributes["to"] = ir.AttrInt64("to", int(half))
        for i, value in enumerate(node.inputs):
            if value is None or (value.dtype != ir.DataType.FLOAT and value not in became_half):
                continue
            # The standard requires float32 for the sizes of Resize and similar operators. Their nodes are kept in fp32.
            wanted = half if is_half else ir.DataType.FLOAT
            node.replace_input_with(i, in_type(value, wanted, node))
        if is_half:
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    value.dtype = half
                    became_half.add(value)
    for i, output in enumerate(model.graph.outputs):
        if output in became_half:
            last = list(model.graph)[-1]
            cast = ir.node("Cast", [output], {"to": int(ir.DataType.FLOAT)}, name=f"{output.name}_float32")
            model.graph.insert_after(last, cast)
            name = output.name
            output.name = f"{name}_{precision}"
            cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].dtype = name, output.shape, ir.DataType.FLOAT
            model.graph.outputs[i] = cast.outputs[0]
    if precision == "bf16":
        model.graph.opset_imports[""] = BF16_OPSET
        for function in model.functions.values():
            function.opset_imports[""] = BF16_OPSET
    return edit.finish()


def _cast_weights(edit: Rewriter, value: ir.Value, precision: Half) -> ir.Value:
    assert value.const_value is not None
    weights = value.const_value.numpy()
    largest = float(np.abs(weights).max(initial=0.0))
    if precision == "fp16" and largest > float(np.finfo(np.float16).max):
        raise PrecisionError(
            f"{value.name} holds {largest:.3g}, which fp16 can't represent: export with --precision bf16 or fp32"
        )
    return edit.constant(weights.astype(_TYPES[precision].numpy()))


def _find_origin(value: ir.Value | None) -> ir.Value | None:
    """Return a value before it was moved, cast or dequantised.

    For weights this is the initialiser.
    """
    while value is not None and (node := value.producer()) is not None and node.op_type in _MOVING:
        value = node.inputs[0]
    return value


def compute_shares(model: ir.Model) -> dict[str, float]:
    """Compute the share of the weights in products (MatMul, Gemm, Conv, attention) that each precision computes.

    The shares come from the file, not from the request. A product is int8 if both operands come from DequantizeLinear,
    or if the operator is one of integers. Otherwise it has the type of its input. The filters of a log-mel do not count
    as weights.
    """
    counts: Counter[str] = Counter()
    model = infer_types(model)
    filters = _log_mel(model)
    for node in model.graph:
        if node.op_type not in _PRODUCTS | _INTEGER_PRODUCTS or node in filters:
            continue
        operands = [value for value in node.inputs[:2] if value is not None]
        weights = [
            origin for value in operands if (origin := _find_origin(value)) is not None and origin.is_initializer()
        ]
        size = sum(int(np.prod(value.const_value.shape.numpy())) for value in weights if value.const_value is not None)
        makers = [value.producer() for value in operands]
        if node.op_type in _INTEGER_PRODUCTS or all(m is not None and m.op_type == "DequantizeLinear" for m in makers):
            counts["int8"] += size
        else:
            types = [_NAMES[value.dtype] for value in operands if value.dtype in _NAMES]
            counts[types[0] if types else "fp32"] += size
    total = sum(counts.values())
    return {name: round(n / total, 4) for name, n in sorted(counts.items()) if n} if total else {"fp32": 1.0}


def check_precision(model: ir.Model, asked: Precision, where: str) -> dict[str, float]:
    """Check that enough of a model's weights have the requested precision, as read back from the file.

    Args:
        model: The model.
        asked: The requested precision.
        where: Name of the graph, for the message.

    Returns:
        The :func:`compute_shares` of each precision.

    Raises:
        PrecisionError: The share is below :data:`LEAST_SHARE`.
    """
    got = compute_shares(model)
    if got.get(asked, 0.0) < LEAST_SHARE[asked]:
        stored = ", ".join(f"{share:.0%} {name}" for name, share in got.items())
        raise PrecisionError(
            f"{where} should be {asked}, but its weights are {stored}: this graph can't be stored in {asked}, export "
            "it in fp32"
        )
    return got
