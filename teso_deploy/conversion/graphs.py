"""Export of one graph from PyTorch to a canonical ONNX file."""

from __future__ import annotations

import gc
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from teso_deploy.bundle import GraphEntry, TensorSpec
from teso_deploy.conversion.functions import add_functions
from teso_deploy.conversion.weights import WeightsFile, save_with_weights
from teso_deploy.models.methods import GraphSpec

OPSET = 20
#: Larger constants are not folded: in the file they would take more space than the nodes that compute them.
LARGEST_FOLDED_ELEMENTS = 16_384


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about packages that our graphs do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _collect_rarely() -> Iterator[None]:
    """Collect garbage rarely.

    Tracing creates millions of small objects that stay alive, and scanning them takes a tenth of the time.
    """
    threshold = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


def _describe_tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def count_multiply_adds(module: nn.Module, arguments: Sequence[Tensor]) -> int:
    """Count the multiply-adds of convolutions and matrix products for one item of the batch."""
    counter = FlopCounterMode(display=False)
    with counter:  # not under torch.no_grad: the counter finds the modules by hooks on gradients
        module(*arguments)
    return int(counter.get_total_flops() // 2 // len(arguments[0]))


def export_module(
    module: nn.Module,
    arguments: Sequence[Tensor],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: tuple[Any, ...],
) -> onnx.ModelProto:
    """Convert a module to ONNX, with small constants folded, and without traces of the exporting machine.

    Args:
        module: The module.
        arguments: Example inputs.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        shapes: The dynamic dimensions of the inputs.

    Returns:
        The model.
    """
    with _quiet(), _collect_rarely(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(arguments),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        # Fold small constants here. Large ones (Swin's window masks) are folded by each runtime when it loads them.
        optimize_ir(program.model, output_size_limit=LARGEST_FOLDED_ELEMENTS)
    model = program.model_proto
    # Remove the stack traces of the exporting machine.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


def export_graph(
    module: nn.Module,
    spec: GraphSpec,
    arguments: Sequence[Tensor],
    *,
    path: Path,
    metadata: Mapping[str, str],
    weights: WeightsFile | None = None,
) -> GraphEntry:
    """Write one graph: opset 20, dynamic batch "B".

    Args:
        module: The module.
        spec: Names of inputs and outputs.
        arguments: Example inputs with a batch of at least 2. With 1, the exporter would make the batch constant.
        path: The file.
        metadata: Metadata of the file.
        weights: A separate file in the same folder, for the weights. Default: the weights are inside the graph's file.

    Returns:
        The graph's entry in the manifest.
    """
    assert len(arguments[0]) >= 2
    batch = {0: torch.export.Dim("B", min=1, max=4096)}
    shapes: tuple[Any, ...] = tuple(batch for _ in arguments)
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:  # the decoder's *memory is one argument
        named = len(parameters) - 1
        shapes = (*shapes[:named], shapes[named:])
    model = export_module(module, arguments, inputs=spec.inputs, outputs=spec.outputs, shapes=shapes)
    add_functions(model)
    for key, text in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=text)
    if weights is None:
        onnx.save(model, path)
    else:
        save_with_weights(ir.from_proto(model), path, weights)
    onnx.checker.check_model(str(path))
    return GraphEntry(
        file=path.name,
        weights=weights.name if weights is not None else None,
        inputs=tuple(map(_describe_tensor, model.graph.input)),
        outputs=tuple(map(_describe_tensor, model.graph.output)),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        multiply_adds=count_multiply_adds(module, arguments),
        nodes=len(model.graph.node),
    )
