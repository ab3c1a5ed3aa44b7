"""A method is added by one module and one entry of the registry: export, verify, run, and a form in int8."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from teso_deploy.architectures import METHODS, MethodEntry
from teso_deploy.bundle import Bundle
from teso_deploy.errors import RecipeError
from teso_deploy.models import checkpoints
from teso_deploy.models.methods import build_model
from teso_deploy.models.teso import build
from teso_deploy.recipe import load_recipe, parse_recipe
from tests.support.clips import make_clip
from tests.support.commands import refused, teso

MODULE = '''
import torch
from torch import nn

from teso_deploy.models.methods import GraphSpec, Model
from teso_deploy.program import Program, Stage


class Ear(nn.Module):
    """The loudness of three windows in 16 bands."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 8)

    def forward(self, waveform):
        bands = waveform.unflatten(2, (16, -1)).abs().mean(dim=3)
        return self.layer(bands.flatten(1))


class Decoder(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(8, classes)

    def forward(self, loudness, *maps):
        weights = self.layer(loudness)[:, :, None, None]
        return torch.sigmoid(weights * maps[0] + maps[1])


class Eye(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 4, stride=4)
        self.mix = nn.Sequential(nn.Conv2d(32, 128, 1), nn.ReLU(), nn.Conv2d(128, 32, 1))
        self.near, self.far = nn.Conv2d(32, 1, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, image):
        features = torch.relu(self.mix(torch.relu(self.conv(image))))
        return self.near(features), self.far(features)


class Listener(Model):
    def __init__(self, recipe):
        super().__init__(recipe)
        self.eye, self.ear, self.decoder = Eye(), Ear(), Decoder(len(recipe.head.classes))


class Method:
    program = Program(
        stages=(
            Stage(name="eye", inputs=("image",), sized=True, quantizable=True),
            Stage(name="ear", inputs=("audio_window",)),
            Stage(name="decoder", inputs=("ear", "eye"), sized=True),
        ),
        past_windows=2,
    )

    def build(self, recipe):
        return Listener(recipe)

    def list_graph_specs(self, recipe):
        return {
            "eye": GraphSpec(("image",), ("near", "far")),
            "ear": GraphSpec(("waveform",), ("loudness",)),
            "decoder": GraphSpec(("loudness", "near", "far"), ("masks",)),
        }

    def get_graph_modules(self, model):
        return {"eye": model.eye, "ear": model.ear, "decoder": model.decoder}


METHOD = Method()
'''
RECIPE = """
name = "listener"
method = "listener"
[image]
sizes = [[64, 64], [64, 96]]
[head]
kind = "binary"
classes = ["sounding object"]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sys.modules.pop("listener_method", None)
    (tmp_path / "listener_method.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "listener", MethodEntry("listener_method:METHOD", "Listener"))
    path = tmp_path / "listener.toml"
    path.write_text(RECIPE)
    return path


def test_an_added_method_is_exported_verified_and_run(recipe: Path, tmp_path: Path) -> None:
    planned = teso("export", recipe, "--dry-run", "--json", "-")
    assert planned.code == 0, planned.err
    assert set(json.loads(planned.out)["graphs"]) == {"eye", "ear", "decoder"}
    folder = tmp_path / "bundle"
    done = teso("export", recipe, "--out", folder, "--random-weights", 0, "--precision", "int8")
    assert done.code == 0, done.err
    bundle = Bundle.open(folder)
    assert bundle.program.names == ("eye", "ear", "decoder") and bundle.program.past_windows == 2
    assert bundle.manifest.cue is None and bundle.manifest.tagger is None
    assert set(bundle.manifest.graphs) == {"eye", "eye@64x96", "ear", "decoder", "decoder@64x96"}
    shares = bundle.manifest.forms["onnxruntime-int8"]
    assert shares["eye"].precision == "int8" and shares["decoder"].precision == "fp32"
    done = teso("verify", folder, "--threads", 1)
    assert done.code == 0, done.err
    clip = make_clip(tmp_path / "clip.mp4", seconds=1.0)
    done = teso("run", clip, "--bundle", folder, "--masks", tmp_path / "masks", "--json", "-", "--threads", 1)
    assert done.code == 0, done.err
    assert set(json.loads(done.out)["graph_runs"]) == {"eye", "ear", "decoder"}
    again = teso("export", folder, "--out", tmp_path / "derived")
    assert again.code == 0, again.err
    refused("export", folder, "--out", tmp_path / "d", "--text-encoder", names="without cues: omit --text-encoder")


def test_its_checkpoint_is_read(recipe: Path, tmp_path: Path) -> None:
    model = build_model(load_recipe(recipe), 1)
    weights = tmp_path / "model.safetensors"
    checkpoints.save(model, weights, {"recipe": model.recipe.model_dump_json(by_alias=True)})
    folder = tmp_path / "bundle"
    done = teso("export", recipe, "--out", folder, "--checkpoint", weights)
    assert done.code == 0, done.err
    assert Bundle.open(folder).manifest.trained
    assert teso("verify", folder, "--checkpoint", weights, "--threads", 1).code in (0, 1)


def test_another_method_is_not_trained_here(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="only TeSO can be trained here"):
        build(load_recipe(recipe))


def test_a_seed_gives_the_same_weights(recipe: Path) -> None:
    first, second = (build_model(load_recipe(recipe), 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_recipe_with_an_unknown_method_lists_those_that_there_are() -> None:
    with pytest.raises(RecipeError, match="choose one of teso"):
        parse_recipe('name = "a"\nmethod = "whistle"')
