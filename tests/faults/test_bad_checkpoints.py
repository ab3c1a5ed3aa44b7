"""Checkpoints that do not fit: one sentence that names the key and the fix, and nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teso_deploy.errors import CheckpointError, InputNotFoundError
from teso_deploy.models import weight_files
from teso_deploy.models.assembly import assemble, recognise_checkpoint
from teso_deploy.models.audio import Vggish
from teso_deploy.recipe import Recipe
from tests.support.commands import refused, teso
from tests.support.foundations import hugging_face_mask2former, randomise, small_recipe


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Mask2Former of six classes with ``save_pretrained``."""
    folder = tmp_path_factory.mktemp("foundation")
    hugging_face_mask2former(small_recipe(), 6).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vggish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vggish") / "vggish.pth"
    model = Vggish(small_recipe().audio)
    randomise(model)
    torch.save(model.state_dict(), path)
    return path


def changed(folder: Path, out: Path, change: Any) -> Path:
    tensors = weight_files.read(folder)[0]
    save_file({key: value.contiguous() for key, value in change(tensors).items()}, out)
    return out


def six_classes() -> Recipe:
    return small_recipe(head={"kind": "semantic", "classes": tuple("abcdef")})


def test_parts_make_a_model_and_the_rest_is_listed(foundation: Path, vggish: Path) -> None:
    built = assemble(six_classes(), [("visual", foundation), (None, vggish)], random_weights_seed=0)
    assert set(built.sources) == {"visual", "audio"} and not built.is_trained
    assert all(key.startswith("fusion.") or "adapter" in key for key in built.random)
    assert "fusion.queries" not in built.random
    given = weight_files.read(vggish)[0]
    assert torch.equal(built.model.audio_encoder.features[0].weight, given["features.0.weight"])
    assert "random: adapters" in str(built)


def test_what_no_file_gives_needs_a_seed(foundation: Path, vggish: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fusion\.sedam \(\d+\).*--random-weights SEED"):
        assemble(six_classes(), [(None, foundation), (None, vggish)])
    with pytest.raises(CheckpointError, match=r"visual_encoder\.swin \(\d+\)"):
        assemble(six_classes(), ())


def test_other_classes_need_a_new_head(foundation: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other classes.*class_predictor\.weight \[7, 32\] for \[2, 32\]"):
        assemble(small_recipe(), [(None, foundation)])
    built = assemble(small_recipe(), [(None, foundation)], random_weights_seed=0)
    assert {"decoder.classifier.weight", "decoder.classifier.bias"} <= set(built.random)


def test_another_size_is_said(foundation: Path) -> None:
    larger = small_recipe(swin={"embed_dim": 16}, head=six_classes().head.model_dump())
    with pytest.raises(CheckpointError, match=r"it has swin\.embed_dim 8 \(recipe: 16\), as in .* \[8, 3, 4, 4\] for"):
        assemble(larger, [(None, foundation)], random_weights_seed=0)
    deeper = small_recipe(swin={"depths": [1, 2, 3, 1]}, head=six_classes().head.model_dump())
    with pytest.raises(CheckpointError, match=r"swin\.depths \(1, 2, 2, 1\) .* as in model\..*, missing; use a recipe"):
        assemble(deeper, [(None, foundation)], random_weights_seed=0)


def test_missing_and_unexpected_keys_are_named(foundation: Path, tmp_path: Path) -> None:
    lost = "model.pixel_level_module.decoder.mask_projection.bias"
    less = changed(foundation, tmp_path / "less.safetensors", lambda t: {k: v for k, v in t.items() if k != lost})
    with pytest.raises(CheckpointError, match=rf"1 missing \({lost}\)"):
        assemble(six_classes(), [(None, less)], random_weights_seed=0)
    more = changed(foundation, tmp_path / "more.safetensors", lambda t: {**t, "model.extra.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 unexpected \(model\.extra\.weight\)"):
        assemble(six_classes(), [(None, more)], random_weights_seed=0)


def test_a_file_of_another_part(foundation: Path, vggish: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is torchvggish, not a visual checkpoint: give it as audio="):
        recognise_checkpoint(vggish, "visual")
    with pytest.raises(CheckpointError, match="both are visual"):
        assemble(six_classes(), [(None, foundation), (None, foundation)], random_weights_seed=0)
    save_file({"layers.0.weight": torch.ones(2)}, tmp_path / "what.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is a checkpoint of an unknown kind \(its first keys: layers\.0\.weight\)"
    ):
        recognise_checkpoint(tmp_path / "what.safetensors")


def test_shards_are_joined(foundation: Path, tmp_path: Path) -> None:
    tensors = weight_files.read(foundation)[0]
    keys = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, part in halves.items():
        save_file({key: tensors[key].contiguous() for key in part}, tmp_path / name)
    index = {"weight_map": {key: name for name, part in halves.items() for key in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    joined = weight_files.read(tmp_path)[0]
    assert joined.keys() == tensors.keys() and all(torch.equal(joined[key], tensors[key]) for key in keys)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(CheckpointError, match="outside of the folder"):
        weight_files.read(tmp_path)


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": torch.ones(1), "extra": _Code()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"is refused: it holds \w+\.mkdir, and loading that may run code"):
        weight_files.read(tmp_path / "bad.pth")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "noise.pth", "empty.pth", "numbers.pth"])
def test_broken_files(name: str, foundation: Path, vggish: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    match name:
        case "cut.pth":
            path.write_bytes(vggish.read_bytes()[:4000])
        case "cut.safetensors":
            path.write_bytes((foundation / "model.safetensors").read_bytes()[:4000])
        case "noise.pth":
            path.write_bytes(os.urandom(200))
        case "empty.pth":
            path.touch()
        case _:
            torch.save({"epoch": 3, "scores": [1, 2]}, path)
    with pytest.raises(CheckpointError, match=r"truncated|is refused|holds no state_dict|is empty"):
        weight_files.read(path)


def test_noise_that_begins_with_any_opcode(tmp_path: Path) -> None:
    path, noise = tmp_path / "noise.pth", np.random.default_rng(0).bytes(200)
    for opcode in range(256):
        path.write_bytes(bytes([opcode]) + noise)
        with pytest.raises(CheckpointError, match=r"truncated|is refused"):
            weight_files.read(path)


def test_where_training_codes_put_the_weights(vggish: Path, tmp_path: Path) -> None:
    tensors = weight_files.read(vggish)[0]
    for number, content in enumerate(
        (
            {"epoch": 3, "state_dict": tensors},
            {"model": {f"module.{key}": value for key, value in tensors.items()}, "optimizer": {}},
        )
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        assert weight_files.read(tmp_path / f"{number}.pth")[0].keys() == tensors.keys()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        weight_files.read(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        weight_files.read(tmp_path)


def test_the_command_line(foundation: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export = ("export", "teso-m2f-swin-b", "--out", bundle)
    usage = teso(*export, "--checkpoint", f"picture={foundation}")
    assert usage.code == 2 and "unknown part 'picture'" in usage.err
    assert teso("export", "teso-m2f-swin-b").code == 2, "a folder or a dry run"
    refused(*export, "--checkpoint", f"visual={tmp_path / 'none.pth'}", names="no checkpoint")
    usage = teso(*export, "--weights", "ema")
    assert usage.code == 2 and "needs --checkpoint, from which it chooses weights" in usage.err
    tensors = weight_files.read(foundation)[0]
    torch.save({"model": tensors, "model_ema": tensors | {"extra.weight": torch.ones(1)}}, tmp_path / "both.pth")
    refused(*export, "--checkpoint", f"visual={tmp_path / 'both.pth'}", names='"model_ema"): choose with --weights raw')
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\nextends = "teso-nano"\n[fusion]\nlatent = 3\n')
    refused(
        "export", recipe, "--out", bundle, names="fusion.latent is not a field of a recipe: did you mean 'latents'?"
    )
    recipe.write_text('name = "mine"\nextends = "mine.toml"\n')
    refused("export", recipe, "--out", bundle, names="which is a circle")
    assert not bundle.exists()
