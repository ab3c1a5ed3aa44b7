"""From checkpoints in common formats to masks of a clip, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from teso_deploy.bundle import Bundle
from teso_deploy.models.audio import Vggish
from teso_deploy.recipe import Recipe
from tests.parity.test_beats import SIZES as BEATS_SIZES
from tests.parity.test_beats import random_file as beats_file
from tests.parity.test_clip_text import hugging_face as hugging_face_clip
from tests.parity.test_sam import SAM, hugging_face_sam
from tests.parity.test_segpref import Released, segpref_recipe
from tests.parity.test_vocabulary import small_vocabulary, write_vocabulary
from tests.support.avs_layouts import write_avss
from tests.support.clips import make_clip
from tests.support.commands import teso
from tests.support.foundations import SHALLOW, hugging_face_mask2former, randomise, small_recipe, written

CLIP_TEXT = {"vocabulary": len(small_vocabulary()), "context": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return make_clip(folder / "clip.mp4", seconds=0.5)


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    """Save a text tower of Hugging Face with its vocabulary."""
    hugging_face_clip(small_recipe(clip_text=CLIP_TEXT)).save_pretrained(folder / "text")
    write_vocabulary(folder / "text", whole=True)
    return folder / "text"


@pytest.fixture(scope="module")
def vggish(folder: Path) -> Path:
    model = Vggish(small_recipe().audio)
    randomise(model)
    torch.save(model.state_dict(), folder / "vggish.pth")
    return folder / "vggish.pth"


def exported(recipe: Recipe, out: Path, *options: object) -> dict[str, Any]:
    """Export a recipe, and return the report."""
    done = teso("export", written(recipe, out.with_suffix(".toml")), "--out", out, "--json", "-", *options)
    assert done.code == 0, done.err
    report: dict[str, Any] = json.loads(done.out)
    verified = json.loads(teso("verify", out, "--json", "-").out)
    # Test weights do not react to sound. A bundle that claims to be trained fails only the audio control.
    assert all(reason.startswith("audio control") for reason in verified["failures"])
    assert bool(verified["failures"]) == report["trained"]
    return report


def masks_of(clip: Path, bundle: Path, out: Path, *options: object) -> list[Image.Image]:
    done = teso("run", clip, "--bundle", bundle, "--masks", out, *options)
    assert done.code == 0, done.err
    masks: list[Image.Image] = []
    for path in sorted(out.glob("*.png")):
        with Image.open(path) as image:
            masks.append(image.copy())
    return masks


def test_a_foundation_with_other_classes(folder: Path, text: Path, vggish: Path, clip: Path, tmp_path: Path) -> None:
    hugging_face_mask2former(small_recipe(**SHALLOW), 6).save_pretrained(folder / "mask2former")
    recipe = small_recipe(clip_text=CLIP_TEXT, **SHALLOW)
    checkpoints = ("--checkpoint", f"visual={folder / 'mask2former'}", "--checkpoint", f"audio={vggish}")
    refusal = teso("export", written(recipe, tmp_path / "r.toml"), "--out", tmp_path / "b", *checkpoints)
    assert refusal.code == 2 and "class_predictor.weight [7, 32] for [2, 32]" in refusal.err
    report = exported(recipe, tmp_path / "b", *checkpoints, "--checkpoint", text, "--random-weights", 0)
    assert not report["trained"] and "decoder.classifier.weight" in report["random_keys"]
    provenance = Bundle.open(tmp_path / "b").manifest.provenance
    assert "visual from mask2former, audio from vggish.pth" in provenance["weights"]
    assert provenance["cue_embeddings"].startswith("CLIP text tower")
    assert masks_of(clip, tmp_path / "b", tmp_path / "masks", "--cues", "dog,cow")


def test_the_released_network_s_file_is_a_whole_model(text: Path, vggish: Path, clip: Path, tmp_path: Path) -> None:
    recipe = segpref_recipe(clip_text=CLIP_TEXT, **SHALLOW)
    torch.save(Released(recipe).state_dict(), tmp_path / "ckpt.pth")
    options = ("--checkpoint", tmp_path / "ckpt.pth", "--checkpoint", f"audio={vggish}", "--checkpoint", f"text={text}")
    report = exported(recipe, tmp_path / "b", *options)
    assert report["trained"] and not report["random_keys"]
    manifest = Bundle.open(tmp_path / "b").manifest
    assert (
        manifest.cue is not None
        and manifest.cue.padding == "none-embedding"
        and manifest.postprocessing.threshold == 0.4
    )
    assert manifest.graphs["decoder"].outputs[0].shape == ("B", 1, 40, 40)
    assert masks_of(clip, tmp_path / "b", tmp_path / "one", "--cues", "dog")
    assert masks_of(clip, tmp_path / "b", tmp_path / "none")


def test_sam_keeps_the_picture_s_shape(text: Path, clip: Path, tmp_path: Path) -> None:
    recipe = small_recipe(
        foundation="sam",
        sam=SAM | {"layers": 2},  # one layer with windows, one without
        image={"sizes": [[64, 64]], "fit": "pad"},
        adapters=("sam_encoder", "sam_decoder"),
        audio={"encoder": "beats", "dim": BEATS_SIZES["dim"]},
        beats=BEATS_SIZES,
        clip_text=CLIP_TEXT,
    )
    hugging_face_sam(recipe).save_pretrained(tmp_path / "sam")
    torch.save({"cfg": {}, "model": beats_file()}, tmp_path / "beats.pt")
    options = ("--checkpoint", tmp_path / "sam", "--checkpoint", tmp_path / "beats.pt", "--checkpoint", text)
    report = exported(recipe, tmp_path / "b", *options, "--random-weights", 1)
    assert all(key.startswith("fusion.") or "adapter" in key for key in report["random_keys"])
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.preprocessing.fit == "pad" and manifest.graphs["decoder"].inputs[1].name == "image_embeddings"
    found = masks_of(clip, tmp_path / "b", tmp_path / "masks", "--cues", "dog")
    assert {np.asarray(mask).max() for mask in found} <= {0, 1}


def test_training_on_videos_ends_in_a_bundle(text: Path, vggish: Path, clip: Path, tmp_path: Path) -> None:
    hugging_face_mask2former(small_recipe(**SHALLOW), 6).save_pretrained(tmp_path / "mask2former")
    recipe = small_recipe(clip_text=CLIP_TEXT, train={"videos": {"epochs": 1, "frames_per_batch": 2}}, **SHALLOW)
    toml = written(recipe, tmp_path / "mine.toml")
    write_avss(tmp_path / "data", videos=2, size=64)
    train = ("train", toml, "--data", tmp_path / "data", "--out", tmp_path / "run", "--layout", "avss")
    parts = ("--checkpoint", tmp_path / "mask2former", "--checkpoint", vggish, "--checkpoint", text)
    assert teso(*train[:-1], "s5").code == 2, "the layouts are those of the registry"
    refusal = teso(*train, *parts)
    assert refusal.code == 2 and "--random-weights SEED" in refusal.err
    done = teso(*train, *parts, "--random-weights", 0)
    assert done.code == 0, done.err
    weights = tmp_path / "run/model.safetensors"
    report = exported(recipe, tmp_path / "b", "--checkpoint", weights, "--checkpoint", text)
    assert report["trained"] and report["random_keys"] == []
    assert masks_of(clip, tmp_path / "b", tmp_path / "masks", "--cues", "dog,car")


def test_training_of_sam_ends_in_a_bundle(text: Path, vggish: Path, clip: Path, tmp_path: Path) -> None:
    recipe = small_recipe(
        foundation="sam",
        sam=SAM | {"layers": 2, "patch": 16},
        image={"sizes": [[64, 64]], "fit": "pad"},
        adapters=("sam_encoder", "sam_decoder"),
        clip_text=CLIP_TEXT,
        train={"videos": {"epochs": 1, "frames_per_batch": 2}},
    )
    hugging_face_sam(recipe).save_pretrained(tmp_path / "sam")
    toml = written(recipe, tmp_path / "mine.toml")
    write_avss(tmp_path / "data", videos=2, size=64)
    parts = ("--checkpoint", tmp_path / "sam", "--checkpoint", vggish, "--checkpoint", text, "--random-weights", 0)
    done = teso("train", toml, "--data", tmp_path / "data", "--out", tmp_path / "run", "--layout", "avss", *parts)
    assert done.code == 0, done.err
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 5, "ten frames, two in a step"
    options = ("--checkpoint", tmp_path / "run/model.safetensors", "--checkpoint", text)
    report = exported(recipe, tmp_path / "b", *options)
    assert report["trained"] and report["random_keys"] == []
    assert masks_of(clip, tmp_path / "b", tmp_path / "masks", "--cues", "dog,car")


def test_two_processes_share_the_frames(tiny_recipe: Recipe, tmp_path: Path) -> None:
    head = {"kind": "semantic", "classes": ["dog", "car", "piano"]}
    train = {"warmup_steps": 2, "videos": {"epochs": 2, "frames_per_batch": 2}}
    recipe = Recipe.model_validate({**tiny_recipe.model_dump(), "tagger": {}, "head": head, "train": train})
    write_avss(tmp_path / "data", videos=2, size=64)
    launched = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    toml = written(recipe, tmp_path / "mine.toml")
    command = (
        "teso_deploy",
        "train",
        toml,
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "run",
        "--random-weights",
        0,
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launched, *map(str, command), "--random-weights", "0"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6], "ten frames, four in a step, twice"
    assert done.stderr.count("weights:") == 1, "one of them speaks"


def test_a_dry_run_makes_no_weights_and_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = teso("export", "teso-m2f-swin-l", "--dry-run", "--json", "-")
    assert done.code == 0, done.err
    graphs = json.loads(done.out)["graphs"]
    assert set(graphs) == {"visual_encoder", "audio_encoder", "fusion", "decoder", "text_encoder"}
    assert graphs["visual_encoder"]["parameters"] > 200e6 and graphs["text_encoder"]["parameters"] == 354_032_640
    assert all(graph["multiply_adds"] > 0 and graph["bytes"] >= 4 * graph["parameters"] for graph in graphs.values())
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_foretells_the_export(tiny_recipe: Recipe, tiny_bundle: Path, tmp_path: Path) -> None:
    done = teso("export", written(tiny_recipe, tmp_path / "tiny.toml"), "--dry-run", "--json", "-")
    assert done.code == 0, done.err
    by_graph = json.loads(done.out)["graphs"]
    for name, graph in Bundle.open(tiny_bundle).manifest.graphs.items():
        assert (
            by_graph[name]["parameters"] == graph.parameters and by_graph[name]["multiply_adds"] == graph.multiply_adds
        )
