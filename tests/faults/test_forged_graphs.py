"""A graph that differs from its manifest or from its declared shapes is refused when it is loaded or first run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine, make_onnxruntime_factory
from teso_deploy.bundle import MANIFEST, Bundle
from teso_deploy.errors import BundleError
from teso_deploy.resources import find_shipped_path

SHIPPED = find_shipped_path("engines/bundles/teso-nano")


@pytest.mark.parametrize(
    ("graph", "side", "change", "says"),
    [
        ("audio_encoder", "outputs", {"shape": ["B", 64]}, r"has tensor\(float\) of B x 128 for audio, .* B x 64"),
        ("audio_encoder", "inputs", {"dtype": "double"}, r"tensor\(float\) of B x 15600 for waveform, .*double"),
        ("audio_encoder", "outputs", {"name": "sound"}, "fusion takes audio, which is given by none"),
        ("fusion", "outputs", {"shape": ["B", 16]}, "of B x 16 x 96 for queries"),
    ],
)
@pytest.mark.parametrize("form", [None, "onnxruntime-fp32"])
def test_a_manifest_of_other_tensors(
    tmp_path: Path, graph: str, side: str, change: dict[str, object], says: str, form: str | None
) -> None:
    for path in SHIPPED.iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = json.loads((SHIPPED / MANIFEST).read_text(encoding="utf-8"))
    content["graphs"][graph][side][0] |= change
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=says) as caught:
        make_onnxruntime_factory(1, form)(Bundle.open(tmp_path), graph)
    assert str(caught.value).isprintable()


def write_graph(path: Path, node: str, declared: list[int | str]) -> OnnxRuntimeEngine:
    """Write a graph x (B, 4), n (1,) → y. Its shape is declared, but n decides it."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4]),
              helper.make_tensor_value_info("n", TensorProto.INT64, [1])]  # fmt: skip
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, declared)
    if node == "Slice":
        nodes = [helper.make_node("Slice", ["x", "zero", "n", "one"], ["y"])]
    else:
        nodes = [helper.make_node("Gather", ["x", "n"], ["y"], axis=1)]
    constants = [numpy_helper.from_array(np.array([value]), name) for value, name in ((0, "zero"), (1, "one"))]
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return OnnxRuntimeEngine(path, threads=1)


def test_outputs_of_another_shape_than_declared(tmp_path: Path) -> None:
    engine = write_graph(tmp_path / "g.onnx", "Slice", ["B", 3])
    feeds = {"x": np.ones((2, 4), np.float32), "n": np.array([3])}
    assert engine.run(feeds)["y"].shape == (2, 3)
    assert engine.slot().run(feeds)["y"].numpy().shape == (2, 3)
    for run in (engine.run, engine.slot().run):
        with pytest.raises(BundleError, match=r"g gives y of shape \(2, 2\), its file declares"):
            run({**feeds, "n": np.array([2])})


def test_a_graph_that_can_not_run(tmp_path: Path) -> None:
    engine = write_graph(tmp_path / "g.onnx", "Gather", ["B", 1])
    feeds = {"x": np.ones((2, 4), np.float32), "n": np.array([9])}
    for run in (engine.run, engine.slot().run):
        with pytest.raises(BundleError, match="ONNX Runtime can't run g") as caught:
            run(feeds)
        assert str(caught.value).isprintable()
