"""`teso-deploy eval --checkpoint`: a checkpoint is scored by PyTorch, without an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teso_deploy.bundle import Bundle
from teso_deploy.conversion import checkpoint_bundle
from teso_deploy.conversion.bundle_export import make_cue_table
from teso_deploy.conversion.checkpoint_bundle import open_checkpoint
from teso_deploy.conversion.pytorch_backend import wrap_model
from teso_deploy.models.checkpoints import save
from teso_deploy.models.methods import build_model
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.recipe import Recipe
from tests.support.avs_layouts import write_avss
from tests.support.commands import refused, teso
from tests.support.foundations import written

OPTIONS = ("--protocol", "avsbench", "--cues", "labels", "--threads", 1)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/teso-deploy/checkpoints"


@pytest.fixture(scope="module")
def avss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avss(tmp_path_factory.mktemp("avss"), videos=2)


@pytest.fixture
def checkpoint(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    """The weights of ``tiny_bundle``, as `train` writes them."""
    path = tmp_path / "model.safetensors"
    save(build_model(tiny_recipe, 0), path, {"recipe": tiny_recipe.model_dump_json(by_alias=True)})
    return path


def evaluate(*arguments: object) -> dict[str, Any]:
    done = teso("eval", *arguments, *OPTIONS, "--json", "-")
    assert done.code == 0, done.err
    report: dict[str, Any] = json.loads(done.out)
    return report


def test_it_scores_as_its_exported_bundle(avss: Path, checkpoint: Path, tiny_bundle: Path, cache: Path) -> None:
    found = evaluate(avss, "--checkpoint", checkpoint)
    exported = evaluate(avss, "--bundle", tiny_bundle)
    assert found["backend"] == "pytorch" and found["weights_sha256"] == exported["weights_sha256"]
    for row, expected in zip(found["rows"], exported["rows"], strict=True):
        for name in ("miou", "f_score", "blank_rate"):
            assert row["values"][name] == pytest.approx(expected["values"][name], abs=1e-3)
    (folder,) = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "cues.npz"]


def test_its_pipeline_gives_the_bundle_s_scores(checkpoint: Path, tiny_bundle: Path) -> None:
    found = open_checkpoint([(None, checkpoint)])
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    sound = np.random.default_rng(1).standard_normal(15_600).astype(np.float32) * 0.1
    ours = Pipeline(found.bundle, wrap_model(found.model)).segment(image, sound, "dog,cow").scores
    theirs = Pipeline.load(tiny_bundle, threads=1).segment(image, sound, "dog,cow").scores
    assert ours is not None and theirs is not None
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    manifest = Bundle.open(tiny_bundle).manifest
    for name in ("classes", "preprocessing", "postprocessing", "tagger", "audio", "program", "trained", "name"):
        if name != "trained":  # the bundle's weights came from a seed, these from a file
            assert getattr(found.bundle.manifest, name) == getattr(manifest, name)
    for graph, entry in found.bundle.manifest.graphs.items():
        for ours_of, theirs_of in zip(entry.outputs, manifest.graphs[graph].outputs, strict=True):
            assert (ours_of.name, ours_of.shape[1:]) == (theirs_of.name, theirs_of.shape[1:])


def test_words_are_embedded_once(checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_checkpoint([(None, checkpoint)])
    calls: list[Recipe] = []

    def embed(recipe: Recipe, *arguments: Any, **named: Any) -> Any:
        calls.append(recipe)
        return make_cue_table(recipe, *arguments, **named)

    monkeypatch.setattr(checkpoint_bundle, "make_cue_table", embed)
    assert open_checkpoint([(None, checkpoint)]).bundle.folder == first.bundle.folder and not calls
    (first.bundle.folder / "cues.npz").write_bytes(b"damaged")
    open_checkpoint([(None, checkpoint)])
    assert len(calls) == 1 and len(list(cache.iterdir())) == 1


def test_a_bundle_gives_recipe_and_cues(checkpoint: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(checkpoint_bundle, "make_cue_table")
    found = open_checkpoint([(None, checkpoint)], bundle=Bundle.open(tiny_bundle)).bundle
    assert found.manifest.files["cues.npz"] == Bundle.open(tiny_bundle).manifest.files["cues.npz"]


def test_random_weights_need_a_recipe(avss: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = written(tiny_recipe, tmp_path / "tiny.toml")
    report = evaluate(avss, "--recipe", recipe, "--random-weights", 0, "--out", tmp_path / "out")
    assert report["bundle"] == "tiny"
    assert evaluate(avss, "--recipe", recipe, "--random-weights", 0, "--out", tmp_path / "out") == report
    other = teso("eval", avss, "--recipe", recipe, "--random-weights", 1, "--out", tmp_path / "out", *OPTIONS)
    assert other.code == 2 and "--overwrite" in other.err
    refused("eval", avss, "--random-weights", 0, *OPTIONS, names="name the recipe with --recipe")


def test_bad_combinations_are_refused(avss: Path, checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    def fails(*arguments: object, names: str) -> None:
        done = teso("eval", avss, *arguments, *OPTIONS)
        assert done.code == 2 and names in " ".join(done.err.split()), done.err

    fails("--recipe", "teso-nano", names="needs --checkpoint")
    fails("--checkpoint", checkpoint, "--backend", "cpu", names="PyTorch runs a checkpoint")
    fails("--checkpoint", checkpoint, "--precision", "fp16", names="PyTorch runs a checkpoint")
    fails("--checkpoint", checkpoint, "--recipe", "segpref", "--bundle", tiny_bundle, names="exclude each other")
    fails("--checkpoint", tmp_path / "nothing", names="no checkpoint")
    fails("--checkpoint", checkpoint, "--recipe", "teso-m2f-swin-t", names="does not fit the recipe")
    save(build_model(Bundle.open(tiny_bundle).recipe, 0), tmp_path / "nameless.safetensors")
    fails("--checkpoint", tmp_path / "nameless.safetensors", names="name the recipe with --recipe")
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    damaged = teso("eval", avss, "--checkpoint", tmp_path / "damaged.safetensors", *OPTIONS)
    assert damaged.code == 2 and "--recipe" not in damaged.err
    fails("--checkpoint", checkpoint, "--json", checkpoint, names="is also an input")
