"""Each pass of the form for ONNX Runtime alone: it finds its pattern, and the function does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.conversion import hidden_layers
from teso_deploy.conversion.biases import fold_biases
from teso_deploy.conversion.hidden_layers import pad_hidden_layers, split_hidden_layers
from teso_deploy.conversion.rearrangement import gather_tokens
from teso_deploy.conversion.rewriting import Rewriter

Node = tuple[str, list[str], str, dict[str, Any]]


def written(
    path: Path, nodes: list[Node], constants: dict[str, NDArray[Any]], given: list[Any], sizes: dict[str, list[Any]]
) -> Path:
    """Write a graph x → y, batch first. ``sizes``: the shapes of intermediate tensors."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], f"node_{output}", **more) for op, inputs, output, more in nodes],
        "g",
        [helper.make_tensor_value_info("x", 1, given)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=[helper.make_tensor_value_info(name, 1, shape) for name, shape in sizes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def rewritten(path: Path, change: Any) -> tuple[Path, list[str]]:
    """Apply one pass, and return the graph and its operators."""
    edit = Rewriter(ir.load(path))
    change(edit)
    model = edit.finish()
    target = path.with_name("after.onnx")
    ir.save(model, target)
    onnx.checker.check_model(str(target), full_check=True)
    return target, [node.op_type for node in model.graph]


def check(before: Path, after: Path, shape: tuple[int, ...], atol: float) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected, found = (OnnxRuntimeEngine(path, threads=1).run({"x": x})["y"] for path in (before, after))
    np.testing.assert_allclose(found, expected, atol=atol)


def feed_forward(path: Path, units: int, tokens: int = 12) -> Path:
    rng = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {
        "w": rng.standard_normal((8, units)).astype(np.float32),
        "b": rng.standard_normal(units).astype(np.float32),
        "v": rng.standard_normal((units, 8)).astype(np.float32) / 30,
    }
    nodes: list[Node] = [
        ("MatMul", ["x", "w"], "a", {}),
        ("Add", ["a", "b"], "c", {}),
        ("Gelu", ["c"], "d", {}),
        ("MatMul", ["d", "v"], "e", {}),
        ("Add", ["x", "e"], "y", {}),
    ]
    return written(path, nodes, constants, ["B", tokens, 8], {})


@pytest.mark.parametrize(("units", "is_padded"), [(1024, True), (2048, True), (1000, False), (512, False)])
def test_hidden_layers_whose_rows_collide_are_padded(tmp_path: Path, units: int, is_padded: bool) -> None:
    before = feed_forward(tmp_path / "before.onnx", units)
    after, operators = rewritten(before, pad_hidden_layers)
    assert operators.count("Concat") == (2 if is_padded else 0)
    check(before, after, (3, 12, 8), 1e-5)


@pytest.mark.parametrize("units", [512, 1024])
def test_large_hidden_layers_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    monkeypatch.setattr(hidden_layers, "LARGEST_LAYER_BYTES", 12 * 512 * 4 - 1)
    monkeypatch.setattr(hidden_layers, "PART_BYTES", 5 * 512 * 4)
    before = feed_forward(tmp_path / "before.onnx", units)

    def both(edit: Rewriter) -> None:
        pad_hidden_layers(edit)
        split_hidden_layers(edit)

    after, operators = rewritten(before, both)
    assert operators.count("Gelu") == (3 if units == 512 else 5) and "Split" in operators
    check(before, after, (2, 12, 8), 1e-5)


def shifted_windows(path: Path, side: int = 6, window: int = 3) -> Path:
    """Write a graph: roll a map's tokens by 1 both ways, cut windows, double them, and undo the steps."""
    count, channels = side // window, 4
    constants = {
        "map": np.array([-1, side, side, channels]), "cut": np.array([-1, count, window, count, window, channels]),
        "windows": np.array([-1, window * window, channels]),
        "back": np.array([-1, count, count, window, window, channels]),
        "tokens": np.array([-1, side * side, channels]),
        "0": np.array([0]), "1": np.array([1]), "2": np.array([2]), "-1": np.array([-1]), "end": np.array([99]),
        "two": np.array(2, np.float32),
    }  # fmt: skip

    def roll(taken: str, axis: str, cut: str, name: str) -> list[Node]:
        return [
            ("Slice", [taken, "0", cut, axis], f"{name}_a", {}),
            ("Slice", [taken, cut, "end", axis], f"{name}_b", {}),
            ("Concat", [f"{name}_b", f"{name}_a"], name, {"axis": int(axis)}),
        ]

    swap = {"perm": [0, 1, 3, 2, 4, 5]}
    nodes: list[Node] = [
        ("Abs", ["x"], "s", {}),
        ("Reshape", ["s", "map"], "m", {}),
        *roll("m", "1", "1", "r1"), *roll("r1", "2", "1", "r2"),
        ("Reshape", ["r2", "cut"], "c", {}), ("Transpose", ["c"], "t", swap), ("Reshape", ["t", "windows"], "w", {}),
        ("Mul", ["w", "two"], "d", {}),
        ("Reshape", ["d", "back"], "k", {}), ("Transpose", ["k"], "u", swap), ("Reshape", ["u", "map"], "n", {}),
        *roll("n", "1", "-1", "r3"), *roll("r3", "2", "-1", "r4"),
        ("Reshape", ["r4", "tokens"], "o", {}),
        ("Neg", ["o"], "y", {}),
    ]  # fmt: skip
    sizes = {"w": [f"{count * count}*B", window * window, channels], "d": [f"{count * count}*B", 9, channels]}
    sizes |= {"o": ["B", side * side, channels]}
    return written(path, nodes, constants, ["B", side * side, channels], sizes)


def test_windows_are_cut_out_and_put_back_by_one_gather_each(tmp_path: Path) -> None:
    before = shifted_windows(tmp_path / "before.onnx")
    after, operators = rewritten(before, gather_tokens)
    assert operators.count("Gather") == 2 and not {"Slice", "Concat", "Transpose"} & set(operators)
    check(before, after, (1, 36, 4), 0)
    check(before, after, (3, 36, 4), 0)


def attention(path: Path, is_looked_at: bool) -> Path:
    """Write one head of two, then an adapter. ``is_looked_at``: the scores are an output, as SeDAM's are."""
    rng = np.random.default_rng(0)
    shapes = {f"w{name}": (8, 8) for name in "qkvo"} | {f"b{name}": (8,) for name in "qkvo"}
    shapes |= {"wd": (8, 4), "bd": (4,), "wu": (4, 8), "bu": (8,)}
    constants: dict[str, NDArray[Any]] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    constants |= {"heads": np.array([0, 0, 2, 4]), "merge": np.array([0, 0, 8])}
    nodes: list[Node] = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            ("MatMul", ["x", f"w{name}"], f"{name}0", {}), ("Add", [f"{name}0", f"b{name}"], f"{name}1", {}),
            ("Reshape", [f"{name}1", "heads"], f"{name}2", {}), ("Transpose", [f"{name}2"], f"{name}3", {"perm": perm}),
        ]  # fmt: skip
    nodes += [
        ("MatMul", ["q3", "k3"], "scores", {}), ("Softmax", ["scores"], "share", {"axis": -1}),
        ("MatMul", ["share", "v3"], "mixed", {}), ("Transpose", ["mixed"], "turned", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["turned", "merge"], "merged", {}), ("MatMul", ["merged", "wo"], "o0", {}),
        ("Add", ["o0", "bo"], "o", {}), ("MatMul", ["o", "wd"], "d0", {}), ("Add", ["d0", "bd"], "d1", {}),
        ("Relu", ["d1"], "d2", {}), ("MatMul", ["d2", "wu"], "u0", {}), ("Add", ["u0", "bu"], "u", {}),
        ("Add", ["o", "u"], "y" if not is_looked_at else "z", {}),
    ]  # fmt: skip
    if is_looked_at:
        nodes += [
            ("ReduceMax", ["scores"], "highest", {"keepdims": 0}),
            ("Add", ["z", "highest"], "y", {}),
        ]
    return written(path, nodes, constants, ["B", 5, 8], {})


@pytest.mark.parametrize("is_looked_at", [False, True])
def test_biases_that_cancel_or_can_wait_are_gone(tmp_path: Path, is_looked_at: bool) -> None:
    before = attention(tmp_path / "before.onnx", is_looked_at)
    after, operators = rewritten(before, fold_biases)
    added = sum(node.op_type == "Add" for node in onnx.load(before).graph.node)
    assert operators.count("Add") == added - (2 if is_looked_at else 3), "scores that are looked at keep their bias"
    check(before, after, (2, 5, 8), 2e-4)
