"""Bundles: a bundle is opened as it was written, and replaces an earlier one completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from teso_deploy.bundle import (
    KIND,
    Bundle,
    BundleManifest,
    CueEntry,
    GraphEntry,
    Postprocessing,
    Preprocessing,
    TensorSpec,
    write_manifest,
)
from teso_deploy.cues.table import CueTable
from teso_deploy.errors import BundleError, InputNotFoundError, OutputError
from teso_deploy.program import Program, Stage
from teso_deploy.recipe import Recipe
from teso_deploy.sealed import hash_file
from tests.support.graph_files import empty_graph


def write_bundle(out: Path, recipe: Recipe, note: str = "a graph") -> None:
    """Write a bundle with one file in place of a graph, a cue table and a reference."""
    tensor = TensorSpec(name="masks", dtype="float", shape=("B", 3, 16, 16))
    manifest = BundleManifest(
        program=Program(stages=(Stage(name="decoder", inputs=("image",)),)),
        name=recipe.name,
        trained=False,
        recipe=recipe.model_dump(mode="json", by_alias=True),
        graphs={
            "decoder": GraphEntry(
                file="decoder.onnx", inputs=(), outputs=(tensor,), parameters=1, multiply_adds=2, nodes=3
            )
        },
        preprocessing=Preprocessing(sizes=recipe.image.sizes, mean=recipe.image.mean, std=recipe.image.std),
        postprocessing=Postprocessing(threshold=recipe.head.threshold),
        classes=recipe.head.classes,
        cue=CueEntry(template=recipe.text.template, max_cues=4, dim=2, table="cues.npz"),
        provenance={"weights": "none"},
        licence="none",
    )
    with KIND.staging(out) as folder:
        (folder / "decoder.onnx").write_bytes(empty_graph(note))
        np.savez(folder / "reference.npz", masks=np.ones((1, 3, 16, 16), np.float32))
        np.savez(folder / "cues.npz", names=np.array(["dog", "cow"]), embeddings=np.eye(2, dtype=np.float32))
        write_manifest(folder, manifest, {"cosine": 1.0})


@pytest.fixture
def folder(tmp_path: Path, tiny_recipe: Recipe) -> Path:
    out = tmp_path / "bundle"
    write_bundle(out, tiny_recipe)
    return out


def test_what_was_written_is_opened(folder: Path, tiny_recipe: Recipe) -> None:
    bundle = Bundle.open(folder)
    assert bundle.recipe == tiny_recipe
    assert bundle.classes == ("dog", "cow", "car")
    assert bundle.graph_path("decoder") == folder / "decoder.onnx" == bundle.path("decoder.onnx")
    assert bundle.manifest.graphs["decoder"].outputs[0].shape == ("B", 3, 16, 16)
    assert bundle.manifest.measured == {"cosine": 1.0}
    assert bundle.reference()["masks"].shape == (1, 3, 16, 16)
    assert set(bundle.manifest.files) == {"decoder.onnx", "reference.npz", "cues.npz"}
    assert bundle.manifest.files["decoder.onnx"].sha256 == hash_file(folder / "decoder.onnx")


def test_its_cue_table_knows_its_words(folder: Path) -> None:
    np.testing.assert_array_equal(CueTable.open(Bundle.open(folder)).lookup(["cows"]).embeddings[0], [0, 1])


def test_names_that_it_has_not_are_refused_by_name(folder: Path) -> None:
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match="no graph 'encoder', only decoder"):
        bundle.graph_path("encoder")
    with pytest.raises(BundleError, match=r"no file x\.npz"):
        bundle.arrays("x.npz")


def test_a_folder_that_is_none_or_holds_none(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="teso-deploy export"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match="teso-deploy export"):
        Bundle.open(tmp_path)


def test_a_bundle_is_replaced_and_nothing_else_is_left(folder: Path, tiny_recipe: Recipe) -> None:
    write_bundle(folder, tiny_recipe, "another graph")
    assert Bundle.open(folder).graph_path("decoder").read_bytes() == empty_graph("another graph")
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_files_of_the_user_in_a_bundle_are_named_and_kept(folder: Path, tiny_recipe: Recipe) -> None:
    graph = (folder / "decoder.onnx").read_bytes()
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("keep me")
    for check in (KIND.check_target, lambda out: write_bundle(out, tiny_recipe, "another graph")):
        with pytest.raises(OutputError, match=r"notes/mine\.txt"):
            check(folder)
    assert (folder / "notes" / "mine.txt").read_text() == "keep me"
    assert Bundle.open(folder).graph_path("decoder").read_bytes() == graph
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_an_empty_folder_and_missing_parents_are_taken(tmp_path: Path, tiny_recipe: Recipe) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "not" / "yet" / "there"):
        write_bundle(out, tiny_recipe)
        Bundle.open(out)


def test_a_link_to_a_bundle_stays_a_link(folder: Path, tiny_recipe: Recipe) -> None:
    link = folder.parent / "current"
    link.symlink_to(folder)
    write_bundle(link, tiny_recipe, "newer")
    assert link.is_symlink()
    assert Bundle.open(folder).graph_path("decoder").read_bytes() == empty_graph("newer")


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "not json", '{"name": "some other program\'s"}'])
def test_anything_that_is_no_bundle_is_refused_and_kept(
    tmp_path: Path, tiny_recipe: Recipe, manifest: str | None
) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("keep me")
    if manifest is not None:
        (tmp_path / "bundle.json").write_text(manifest)
    with pytest.raises(OutputError, match="is not a bundle"):
        write_bundle(tmp_path, tiny_recipe)
    assert precious.read_text() == "keep me"


def test_a_file_and_a_place_below_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OutputError):
        KIND.check_target(file)
    with pytest.raises(OutputError):
        KIND.check_target(file / "below")


def test_a_bundle_of_before_has_windows_of_one_second() -> None:
    assert "audio" not in json.loads((Bundle.open().folder / "bundle.json").read_text())
    assert Bundle.open().manifest.audio.framing == "per_second"
