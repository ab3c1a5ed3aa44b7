"""A text encoder that differs from the exported one, or can't run here, is refused with the reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from teso_deploy.bundle import (
    CUE_TABLE,
    KIND,
    REFERENCE,
    Bundle,
    BundleManifest,
    CueEntry,
    Postprocessing,
    Preprocessing,
    TextEncoderEntry,
    write_manifest,
)
from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.names import CueNames
from teso_deploy.errors import BundleError, MissingExtraError
from teso_deploy.recipe import Recipe
from tests.support.graph_files import empty_graph, one_graph

FILES = {"graph": "text_encoder.onnx", "weights": "text_encoder.onnx.data", "tokenizer": "text_encoder.tokenizer.json"}


def write_graph(path: Path) -> None:
    """Write a graph with the sum and the count of the ids. The manifest needs its file of weights."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["ids", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axis"], ["count"], keepdims=1),
        helper.make_node("Concat", ["sum", "count"], ["cue"], axis=1),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    graph = helper.make_graph(
        nodes,
        "text_encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "L"])],
        [helper.make_tensor_value_info("cue", TensorProto.FLOAT, [1, 2])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture
def folder(tmp_path: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a bundle with a text encoder of two words: "[UNK]" is 0, "kazoo" is 5."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers (extra: export) is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "kazoo": 5}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    manifest = BundleManifest(
        name="tiny",
        trained=False,
        recipe=tiny_recipe.model_dump(mode="json", by_alias=True),
        **one_graph("text_encoder.onnx"),
        preprocessing=Preprocessing(sizes=((64, 64),), mean=(0, 0, 0), std=(1, 1, 1)),
        postprocessing=Postprocessing(threshold=0.5),
        classes=("dog",),
        cue=CueEntry(template="One {cue} here", max_cues=2, dim=2, table=CUE_TABLE, encoder=TextEncoderEntry(**FILES)),
        provenance={},
        licence="none",
    )
    with KIND.staging(tmp_path / "bundle") as new:
        np.savez(new / REFERENCE, nothing=np.zeros(1))
        np.savez(new / CUE_TABLE, names=np.array(["dog"]), embeddings=np.ones((1, 2), np.float32))
        write_graph(new / FILES["graph"])
        (new / FILES["weights"]).write_bytes(b"weights")
        tokenizer.save(str(new / FILES["tokenizer"]))
        write_manifest(new, manifest)
    return tmp_path / "bundle"


def vouch(folder: Path) -> None:
    """Write a manifest for the folder's current content."""
    manifest = Bundle(folder, KIND.read(folder, BundleManifest)).manifest
    write_manifest(folder, manifest)


def test_the_encoder_of_these_tests_works(folder: Path) -> None:
    cues = CueNames.open(Bundle.open(folder)).look_up_words(["kazoos", "dog"])
    assert cues.names == ("kazoo", "dog")
    np.testing.assert_array_equal(cues.embeddings, [[5, 3], [1, 1]])


@pytest.mark.parametrize("name", FILES.values())
def test_one_changed_byte(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", FILES.values())
def test_a_file_that_is_missing_or_that_nothing_vouches_for(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    del manifest["files"][name]
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match=f"no hash of {name}"):
        Bundle.open(folder)
    vouch(folder)
    Bundle.open(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (FILES["graph"], empty_graph("no nodes"), "ONNX Runtime can't load"),
        (FILES["tokenizer"], b"{}", "is not a tokenizer"),
    ],
)
def test_files_that_are_none_of_their_kind(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    vouch(folder)
    names = CueNames.open(Bundle.open(folder))
    with pytest.raises(BundleError, match=message):
        names.look_up_words(["kazoo"])
    assert names.look_up_words(["dogs"]).names == ("dog",), "words of the table need no encoder"


def test_without_the_library_words_of_the_table_still_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    names = CueNames.open(Bundle.open(folder))
    assert names.look_up_words(["dogs"]).names == ("dog",)
    with pytest.raises(MissingExtraError, match=r"needs? the package tokenizers: .*teso-deploy\[cues\]"):
        names.look_up_words(["kazoo"])
    with pytest.raises(MissingExtraError, match="tokenizers"):
        names.look_up_answer(CueAnswer(("kazoo",), "llm"))


def test_words_that_were_embedded_before_need_no_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = CueNames.open(Bundle.open(folder)).look_up_words(["kazoo"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    after = CueNames.open(Bundle.open(folder)).look_up_words(["kazoo"])
    np.testing.assert_array_equal(after.embeddings, before.embeddings)


def test_a_graph_of_another_width_is_refused(folder: Path) -> None:
    names = CueNames.open(Bundle.open(folder))
    names.look_up_words(["kazoo"])
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    manifest["cue"]["dim"] = 3
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    np.savez(folder / CUE_TABLE, names=np.array(["dog"]), embeddings=np.ones((1, 3), np.float32))
    vouch(folder)
    with pytest.raises(BundleError, match="gives 2 numbers, the bundle's cues have 3"):
        CueNames.open(Bundle.open(folder)).look_up_words(["kazoo"])


def test_a_cache_that_can_not_be_written_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "bundle.json"))
    assert CueNames.open(Bundle.open(folder)).look_up_words(["kazoo"]).names == ("kazoo",)
