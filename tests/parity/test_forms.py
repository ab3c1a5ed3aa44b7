"""Derived forms agree with the canonical graphs: for ONNX Runtime, in half precision, in int8."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.onnxruntime import TARGET, OnnxRuntimeEngine
from teso_deploy.bundle import Bundle
from teso_deploy.conversion.bundle_export import export_bundle
from teso_deploy.conversion.derive import derive_bundle
from teso_deploy.conversion.functions import PLUGIN, convert_to_plugin_nodes
from teso_deploy.conversion.onnxruntime_form import query_grid
from teso_deploy.conversion.precision import cast_to_half, check_precision, compute_shares
from teso_deploy.conversion.quantization import (
    find_least_left_out,
    list_products,
    measure_sensitivities,
    observe,
    quantize,
)
from teso_deploy.conversion.weights import WeightsFile
from teso_deploy.errors import BundleError, OutputError, PrecisionError
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.recipe import Recipe

GRAPHS = ("visual_encoder", "audio_encoder", "fusion", "decoder")


def feeds_of(bundle: Bundle, graph: str, batch: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return seeded inputs of a graph."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for tensor in bundle.manifest.graphs[graph].inputs:
        shape = [batch, *(int(size) for size in tensor.shape[1:])]
        noise = rng.standard_normal(shape).astype(np.float32)
        feeds[tensor.name] = noise > 0 if tensor.dtype == "bool" else noise
    return feeds


@pytest.fixture(scope="module")
def bundle(full_bundle: Path) -> Bundle:
    return Bundle.open(full_bundle)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("graph", [*GRAPHS, "visual_encoder@64x96", "decoder@64x96"])
def test_the_form_for_onnxruntime_is_the_canonical_graph(bundle: Bundle, graph: str, batch: int) -> None:
    feeds = feeds_of(bundle, graph, batch)
    canonical = OnnxRuntimeEngine(bundle.graph_path(graph), threads=1).run(feeds)
    ours = OnnxRuntimeEngine(bundle.graph_path(graph, "onnxruntime-fp32"), threads=1).run(feeds)
    for name, expected in canonical.items():
        np.testing.assert_allclose(ours[name], expected, atol=2e-5, err_msg=name)


def test_the_form_has_the_operators_that_it_is_for(bundle: Bundle) -> None:
    def operators(graph: str, form: str) -> set[str]:
        return {node.op_type for node in onnx.load(bundle.graph_path(graph, form), load_external_data=False).graph.node}

    assert {"DeformConv", "Attention"} <= operators("visual_encoder", "onnxruntime-fp32")
    assert "MSDA" not in operators("visual_encoder", "onnxruntime-fp32")
    assert "MatMulIntegerToFloat" in operators("visual_encoder", "onnxruntime-int8")
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators("visual_encoder", "onnx-int8")
    assert "MatMulIntegerToFloat" not in operators("visual_encoder", "onnx-int8")


#: The operators of our graphs that NVIDIA's ONNX parser documents (onnx-tensorrt, docs/operators.md).
TENSORRT_OPERATORS = {
    *("Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "Conv", "Cos", "DequantizeLinear", "Div", "Equal"),
    *("Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Greater"),
    *("GreaterOrEqual", "Identity", "InstanceNormalization", "LayerNormalization", "Less", "LessOrEqual", "Log"),
    *("MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "QuantizeLinear", "Range", "Reciprocal"),
    *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Sin"),
    *("Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "TopK", "Transpose", "Unsqueeze"),
    *("Where", "ConvTranspose", "Einsum", "GlobalAveragePool", "MaxPool", "AveragePool"),
}


def test_standard_forms_hold_only_what_tensorrt_parses(bundle: Bundle) -> None:
    for form in (None, "onnx-fp16", "onnx-bf16", "onnx-int8"):
        for graph in bundle.manifest.graphs:
            model = onnx.load(bundle.graph_path(graph, form), load_external_data=False)
            functions = {function.name for function in model.functions}
            nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
            found = {node.op_type for node in nodes} - functions
            assert found <= TENSORRT_OPERATORS, f"{graph} {form}: {found - TENSORRT_OPERATORS}"
            assert functions <= ({"MSDA"} if form is None else {PLUGIN}) and {node.domain for node in nodes} <= {
                "",
                "teso_deploy",
            }


def test_graphs_say_what_they_are_of(bundle: Bundle) -> None:
    for form in (None, *bundle.manifest.forms):
        for graph in bundle.manifest.graphs:
            model = onnx.load(bundle.graph_path(graph, form), load_external_data=False)
            said = {prop.key: prop.value for prop in model.metadata_props}
            assert said["recipe"] == "tiny" and said["torch"] and said["onnx"] and said["teso-deploy"]
            assert said["weights_sha256"] == bundle.manifest.provenance["weights_sha256"]


def test_buckets_and_forms_share_their_weights(bundle: Bundle) -> None:
    entries = [bundle.manifest.graphs["visual_encoder"], bundle.manifest.graphs["visual_encoder@64x96"]]
    assert {entry.weights for entry in entries} == {"visual_encoder.weights"}
    weights = bundle.manifest.files["visual_encoder.weights"].bytes
    assert weights < 4 * sum(4 * entry.parameters for entry in entries[:1])


def test_weights_of_two_types_never_share_a_place(tmp_path: Path) -> None:
    """Equal bytes may be different numbers. TensorRT's parser refuses a graph in which one address has two lengths."""
    file = WeightsFile(tmp_path / "x.weights")
    arrays: dict[str, NDArray[Any]] = {
        "a": np.zeros(512, np.float32),
        "b": np.zeros(1024, np.float16),
        "c": np.zeros((2, 256), np.float32),
    }
    values = {
        name: ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        for name, array in arrays.items()
    }
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=list(values.values())), ir_version=10)
    file.take(model)
    places = {name: value.const_value.offset for name, value in values.items()}
    assert places["a"] == places["c"] != places["b"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(values[name].const_value.numpy(), array)


def test_the_form_for_tensorrt_has_its_plugins_node(bundle: Bundle) -> None:
    for form in ("onnx-fp16", "onnx-bf16", "onnx-int8"):
        for graph in ("visual_encoder", "visual_encoder@64x96"):
            model = ir.load(bundle.graph_path(graph, form))
            nodes = [node for node in model.graph if node.op_type == PLUGIN]
            assert len(nodes) == 1 and len(model.functions) == 1
            said = {name: attribute.as_string() for name, attribute in nodes[0].attributes.items()}
            assert said == {"plugin_version": "2", "plugin_namespace": ""}
            value, shapes, starts, locations, weights = nodes[0].inputs
            sizes = shapes.const_value.numpy()
            assert sizes.dtype == starts.const_value.numpy().dtype == np.int32
            assert starts.const_value.numpy().tolist() == [0, *np.cumsum(sizes.prod(1))[:-1]]
            cells = int(sizes.prod(1).sum())
            assert value.shape[1] == cells and list(locations.shape or ())[1:] == [cells, 2, 3, 2, 2]
            # All its floats have one type, and indices need 24 bits.
            assert {v.dtype for v in (value, locations, weights, nodes[0].outputs[0])} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_plugins_node_is_the_canonical_attention(bundle: Bundle, batch: int, tmp_path: Path) -> None:
    folder = tmp_path / "forms"
    folder.mkdir()
    shutil.copy(bundle.folder / "visual_encoder.weights", folder)
    path = folder / "visual_encoder.onnx"
    ir.save(convert_to_plugin_nodes(ir.load(bundle.graph_path("visual_encoder"))), path)
    onnx.checker.check_model(str(path))
    feeds = feeds_of(bundle, "visual_encoder", batch)
    canonical = OnnxRuntimeEngine(bundle.graph_path("visual_encoder"), threads=1).run(feeds)
    ours = OnnxRuntimeEngine(path, threads=1).run(feeds)
    for name, expected in canonical.items():
        np.testing.assert_allclose(ours[name], expected, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("form", "atol"), [("onnx-fp16", 0.02), ("onnxruntime-int8", 0.3), ("onnx-int8", 0.3)])
def test_other_precisions_stay_near(bundle: Bundle, form: str, atol: float) -> None:
    for graph in GRAPHS:
        feeds = feeds_of(bundle, graph, 2)
        canonical = OnnxRuntimeEngine(bundle.graph_path(graph), threads=1).run(feeds)
        ours = OnnxRuntimeEngine(bundle.graph_path(graph, form), threads=1).run(feeds)
        for name, expected in canonical.items():
            assert ours[name].dtype == expected.dtype
            if name not in ("masks", "tags"):
                np.testing.assert_allclose(ours[name], expected, atol=atol, err_msg=f"{graph} {name}")


def test_every_form_is_a_valid_model_that_says_what_it_is_in(bundle: Bundle) -> None:
    for name, form in bundle.manifest.forms.items():
        precision = name.partition("-")[2]
        for graph, entry in form.items():
            onnx.checker.check_model(str(bundle.graph_path(graph, name)))
            if graph != "fusion" or precision != "int8":
                assert entry.precision == precision and entry.shares[precision] >= 0.5
            assert abs(sum(entry.shares.values()) - 1) < 1e-3


def test_tensorrt_s_int8_is_around_zero(bundle: Bundle) -> None:
    """TensorRT refuses activations of another type or with another zero point, and biases in int32."""
    model = ir.load(bundle.graph_path("visual_encoder", "onnx-int8"))
    rounding = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert rounding and all(node.inputs[2].const_value.numpy().dtype == np.int8 for node in rounding)
    assert not any(node.inputs[2].const_value.numpy().any() for node in rounding)
    taken = [node.inputs[0].dtype for node in model.graph if node.op_type == "DequantizeLinear"]
    assert ir.DataType.INT32 not in taken
    ours = ir.load(bundle.graph_path("visual_encoder", "onnxruntime-int8"))
    assert any(node.op_type == "QuantizeLinear" and node.inputs[2].const_value.numpy() for node in ours.graph)


def test_bfloat16_is_near_too(bundle: Bundle) -> None:
    from onnx.reference import ReferenceEvaluator

    feeds = feeds_of(bundle, "fusion", 2)
    canonical = OnnxRuntimeEngine(bundle.graph_path("fusion"), threads=1).run(feeds)["queries"]
    ours = ReferenceEvaluator(str(bundle.graph_path("fusion", "onnx-bf16"))).run(["queries"], feeds)[0]
    assert 0 < np.linalg.norm(ours - canonical) / np.linalg.norm(canonical) < 0.02


def test_what_was_asked_for_must_be_in_the_file(bundle: Bundle) -> None:
    fp32 = ir.load(bundle.graph_path("visual_encoder"))
    assert compute_shares(fp32) == {"fp32": 1.0}
    with pytest.raises(PrecisionError, match="100% fp32"):
        check_precision(fp32, "fp16", "visual_encoder.onnx")
    assert check_precision(cast_to_half(fp32, "fp16"), "fp16", "x")["fp16"] > 0.9


def test_a_weight_that_fp16_cannot_hold_is_refused(bundle: Bundle) -> None:
    model = ir.load(bundle.graph_path("fusion"))
    name = next(
        n for n, v in model.graph.initializers.items() if v.const_value is not None and v.const_value.size > 500
    )
    value = model.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(np.full(value.const_value.numpy().shape, 1e6, np.float32), name=name)
    with pytest.raises(PrecisionError, match="which fp16 can't represent"):
        cast_to_half(model, "fp16")


def test_what_places_samples_is_never_quantised(bundle: Bundle) -> None:
    path = bundle.graph_path("visual_encoder")
    model = ir.load(path)
    names = {product.name for product in list_products(model)}
    offsets = next(node for node in model.graph if node.op_type == "MSDA").inputs[1]
    while offsets is not None and (node := offsets.producer()) is not None and node.op_type != "MatMul":
        offsets = node.inputs[0]
    assert node is not None and node.op_type == "MatMul" and node.name not in names
    frames = [feeds_of(bundle, "visual_encoder", 1)]
    ranges = observe(path, frames)
    ranked = measure_sensitivities(path, frames, ranges)
    assert set(ranked) == names and list(ranked.values()) == sorted(ranked.values(), reverse=True)
    errors = list(ranked.values())
    assert 0.001 < np.median(errors) <= errors[0] < 0.1  # 0 if the inputs of a product are all zero
    assert quantize(model, ranges, {next(iter(ranked))}) == len(names) - 1
    with pytest.raises(PrecisionError, match="calibration"):
        quantize(ir.load(path), {})


def test_as_few_as_possible_are_left_out() -> None:
    ranked = [f"layer {i}" for i in range(20)]
    assert find_least_left_out(ranked, lambda out: 1.0, aim=0.99, least=0.9) == ([], 1.0)
    left_out, reached = find_least_left_out(ranked, lambda out: 0.9 + 0.05 * len(out), aim=0.99, least=0.9)
    assert left_out == ranked[:2] and reached == pytest.approx(1.0)
    best = {0: 0.95, 1: 0.97, 2: 0.96, 4: 0.94}
    assert find_least_left_out(ranked, lambda out: best[len(out)], aim=0.99, least=0.9) == (ranked[:1], 0.97)
    with pytest.raises(PrecisionError, match="agree with fp32 to 0"):
        find_least_left_out(ranked, lambda out: 0.5, aim=0.99, least=0.9)


def convolutional(tmp_path: Path) -> tuple[Path, dict[str, NDArray[Any]]]:
    """Write a convolution with bias and stride, a norm-like addition, and a convolution that is the graph's output."""
    rng = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {
        "w": rng.standard_normal((24, 32, 3, 3)).astype(np.float32) / 17,
        "b": rng.standard_normal(24).astype(np.float32),
        "v": rng.standard_normal((8, 24, 1, 1)).astype(np.float32) / 5,
        "one": np.ones((), np.float32),
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "w", "b"], ["c"], "first", pads=[1, 0, 1, 2], strides=[2, 1]),
            onnx.helper.make_node("Add", ["c", "one"], ["d"], "add"),
            onnx.helper.make_node("Conv", ["d", "v"], ["y"], "last"),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["B", 32, 12, 10])],
        [onnx.helper.make_tensor_value_info("y", 1, ["B", 8, 6, 10])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "conv.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path, {"x": rng.standard_normal((2, 32, 12, 10)).astype(np.float32)}


def test_convolutions_are_quantised_with_their_output(tmp_path: Path) -> None:
    path, feeds = convolutional(tmp_path)
    found = list_products(ir.load(path))
    assert [product.name for product in found] == ["first"], "what the next graph takes is not rounded"
    rows = found[0].rows(feeds["x"]) @ found[0].weights
    exact = OnnxRuntimeEngine(path, threads=1).run(feeds)["y"]
    v = onnx.numpy_helper.to_array(next(t for t in onnx.load(path).graph.initializer if t.name == "v"))[:, :, 0, 0]
    b = onnx.numpy_helper.to_array(next(t for t in onnx.load(path).graph.initializer if t.name == "b"))
    np.testing.assert_allclose(((rows + b + 1) @ v.T).reshape(2, 6, 10, 8).transpose(0, 3, 1, 2), exact, atol=1e-4)
    ranges = observe(path, [feeds])
    assert {"x", "c"} == set(ranges) and 0.002 < measure_sensitivities(path, [feeds], ranges)["first"] < 0.05
    model = ir.load(path)
    assert quantize(model, ranges) == 1
    ir.save(model, tmp_path / "int8.onnx")
    assert {"int8", "fp32"} == set(compute_shares(ir.load(tmp_path / "int8.onnx")))
    ours = OnnxRuntimeEngine(tmp_path / "int8.onnx", threads=1).run(feeds)["y"]
    assert 0 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.03


def test_queries_are_laid_out_as_square_as_can_be() -> None:
    assert query_grid(3024) == (54, 56) and query_grid(7) == (1, 7)


def test_the_pipeline_takes_the_form_of_a_precision(bundle: Bundle) -> None:
    ours = (TARGET,)
    assert bundle.form_for(ours, "fp32") == "onnxruntime-fp32" and bundle.form_for(ours, "int8") == "onnxruntime-int8"
    assert bundle.form_for(("onnx", *ours), "int8") == "onnx-int8" and bundle.form_for((), "fp32") is None
    with pytest.raises(BundleError, match="no fp16 form for onnxruntime"):
        bundle.form_for(ours, "fp16")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    sound = np.random.default_rng(0).standard_normal(15_600).astype(np.float32) * 0.1
    gates = [
        Pipeline.load(bundle.folder, threads=1, precision=precision).segment(image, sound, ["dog"]).labels.shape
        for precision in ("fp32", "int8")
    ]
    assert gates == [(64, 64), (64, 64)]


def test_a_bundle_is_given_other_forms(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "other"
    done, parity = derive_bundle(bundle, out, ("fp32", "fp16"))
    assert parity.passed and set(done.manifest.forms) == {"onnxruntime-fp32", "onnx-fp16"}
    opened = Bundle.open(out)
    assert opened.manifest.provenance == bundle.manifest.provenance and opened.sizes == bundle.sizes
    weights = opened.manifest.files["visual_encoder.weights"].bytes
    assert weights < bundle.manifest.files["visual_encoder.weights"].bytes, "forms that are gone leave no weights"
    feeds = feeds_of(bundle, "decoder@64x96", 2)
    before, after = (
        OnnxRuntimeEngine(b.graph_path("decoder@64x96"), threads=1).run(feeds)["masks"] for b in (bundle, opened)
    )
    np.testing.assert_array_equal(before, after)


def test_too_little_disk_is_found_before_anything_is_written(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr("teso_deploy.conversion.forms.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(OutputError, match="make room"):
        export_bundle(tiny_recipe, tmp_path / "out", random_weights_seed=0)
    with pytest.raises(OutputError, match="make room"):
        derive_bundle(Bundle.open(), tmp_path / "other")
    assert list(tmp_path.iterdir()) == []
