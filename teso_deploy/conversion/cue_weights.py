"""Store the weights of a language model in 8 or 4 bits. Computations with them stay in floating point."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from teso_deploy.cues.model_bundle import WeightPrecision

#: Number of weights that share a scale.
BLOCK = 32


def quantize_weights(path_in: Path, path_out: Path, precision: Literal["int8", "int4"]) -> None:
    """Replace products with constant matrices by MatMulNBits, which has a symmetric scale for each ``BLOCK`` weights.

    Args:
        path_in: The graph, with its external data in the same folder.
        path_out: File of the new graph; its external data is written to the same folder.
        precision: int8 or int4.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    # 8 bits are only fast with rounded inputs (43 ms per token; 310 ms without rounding). 4 bits are faster without
    # rounding (42 ms; 59 ms with).
    bits, accuracy_level = (8, 4) if precision == "int8" else (4, 1)
    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=accuracy_level, bits=bits)
    model = onnx.load(str(path_in))
    split_gemms(model.graph)
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    call_quietly(quantizer.process)
    save_graph(quantizer.model.model, path_out)


def split_gemms(graph: onnx.GraphProto) -> None:
    """Replace each Gemm with a constant matrix by MatMul and Add.

    The quantiser only handles MatMul, and GPT-2 consists of Gemm nodes.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for place in reversed(range(len(graph.node))):
        node = graph.node[place]
        if node.op_type != "Gemm" or node.input[1] not in constants:
            continue
        said = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if said.get("transA", 0) or said.get("alpha", 1.0) != 1.0 or said.get("beta", 1.0) != 1.0:
            continue
        taken, weights, *bias = node.input
        if said.get("transB", 0):
            turned = np.ascontiguousarray(onnx.numpy_helper.to_array(constants[weights]).T)
            weights = f"{weights}_of_{node.output[0]}"
            graph.initializer.append(onnx.numpy_helper.from_array(turned, weights))
        product = f"{node.output[0]}_product" if bias and bias[0] else node.output[0]
        parts = [onnx.helper.make_node("MatMul", [taken, weights], [product], name=f"{node.name}_MatMul")]
        if product != node.output[0]:
            parts.append(onnx.helper.make_node("Add", [product, bias[0]], [node.output[0]], name=f"{node.name}_Add"))
        graph.node.remove(node)
        for part in reversed(parts):
            graph.node.insert(place, part)
    used = {name for node in graph.node for name in node.input}
    for name in constants.keys() - used - {output.name for output in graph.output}:
        graph.initializer.remove(constants[name])


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph to one file and its weights to another in the same folder."""
    data = f"{path.name}.data"
    (path.parent / data).unlink(missing_ok=True)  # the library would append to an existing file
    onnx.save_model(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=data)
    if (path.parent / data).is_file():
        (path.parent / data).chmod(path.stat().st_mode)  # the library makes it readable by its owner only


def store_graph(graph: Path, out: Path, precision: WeightPrecision) -> None:
    """Write a graph with its weights in a precision.

    Args:
        graph: The graph's file, in fp32.
        out: File of the result.
        precision: Precision of the weights.
    """
    if precision == "fp32":
        save_graph(onnx.load(str(graph)), out)
    else:
        quantize_weights(graph, out, precision)


def call_quietly(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Call an exporter or a quantiser without its log messages about every tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            return function(*arguments, **more)
        finally:
            logging.disable(before)
