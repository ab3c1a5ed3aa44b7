"""Thresholds are found, stored in the checkpoint, and used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from teso_deploy.errors import CheckpointError
from teso_deploy.models import build, checkpoints, weight_files
from teso_deploy.recipe import Recipe
from teso_deploy.training.calibration import (
    FALSE_ALARM_RATE,
    _find_gate_threshold,
    _tag_threshold,
    calibrate_checkpoint,
)


def test_calibration_is_kept_in_the_checkpoint_and_shifts_the_gate(
    training_recipe: Recipe, calibration_folder: Path, word_embeddings: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    path, model = tmp_path / "m.safetensors", build(training_recipe, 0)
    checkpoints.save(model, path, {"recipe": training_recipe.model_dump_json(by_alias=True), "step": "6"})
    found = calibrate_checkpoint(path, calibration_folder, word_embeddings, scenes=12)
    assert 0 <= found.false_alarm_rate <= FALSE_ALARM_RATE + 1 / 12
    assert 0 <= found.open_rate <= 1 and 0 <= found.miou <= 1 and found.tag_threshold is not None
    assert weight_files.read(path)[1]["step"] == "6", "what the file said before is still there"
    chosen = checkpoints.apply_calibration(training_recipe, path)
    assert chosen.head.threshold == found.mask_threshold and chosen.tagger.threshold == found.tag_threshold
    assert chosen.fusion.gate_threshold == found.gate_threshold
    shifted = build(chosen)
    checkpoints.load(shifted, path)
    cues = torch.from_numpy(np.stack([word_embeddings["dog"], word_embeddings["cow"]])).repeat(1, 2, 1)
    valid = torch.tensor([[True, True, False, False]])
    audio = torch.randn(1, training_recipe.audio.dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw, moved = model.fusion(audio, cues, valid)[1], shifted.fusion(audio, cues, valid)[1]
        trained = shifted.fusion.fuse(audio, cues, valid)[1]
    assert torch.allclose(moved[:, :2], raw[:, :2] - found.gate_threshold) and not moved[:, 2:].any()
    assert torch.equal(trained, raw), "training knows nothing of the threshold"


def test_thresholds_are_where_they_should_be() -> None:
    blank = np.arange(100, dtype=np.float32)
    rows, highest = [blank - 500, blank], np.quantile(blank, 0.95)
    assert _find_gate_threshold(np.array([50.0, 200.0]), rows) == pytest.approx(highest)
    assert _find_gate_threshold(np.array([150.0, 200.0]), rows) == pytest.approx((highest + 150) / 2)
    tags = np.array([[0.9, 0.2], [0.8, 0.35], [0.3, 0.6]])
    visible = np.array([[True, False], [True, False], [False, True]])
    assert _tag_threshold(tags, visible) == (0.4, 1.0)
    tags = np.array([[0.9, 0.3], [0.3, 0.3], [0.3, 0.1]])
    visible = np.array([[True, False], [True, False], [False, False]])
    threshold, f2 = _tag_threshold(tags, visible)
    assert threshold == 0.15 and f2 == pytest.approx(10 / 13), "three words too many for one not missed"


def test_a_checkpoint_without_or_with_a_broken_calibration(training_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    checkpoints.save(build(training_recipe, 0), path)
    assert checkpoints.apply_calibration(training_recipe, path) == training_recipe
    with pytest.raises(CheckpointError, match="does not name its recipe"):
        checkpoints.read_recipe(path)
    checkpoints.save(build(training_recipe, 0), path, {checkpoints.CALIBRATION: "{}"})
    with pytest.raises(CheckpointError, match="calibrate again"):
        checkpoints.apply_calibration(training_recipe, path)


def test_a_file_that_would_lose_something_is_not_calibrated(
    training_recipe: Recipe, calibration_folder: Path, word_embeddings: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    path, tensors = tmp_path / "m.safetensors", build(training_recipe, 0).state_dict()
    both = {**tensors, **{f"ema.{key}": value + 0 for key, value in tensors.items()}}
    save_file(both, path, {"recipe": training_recipe.model_dump_json(by_alias=True)})
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="holds more than `train` writes"):
        calibrate_checkpoint(path, calibration_folder, word_embeddings)
    with pytest.raises(CheckpointError, match="is a folder"):
        calibrate_checkpoint(tmp_path, calibration_folder, word_embeddings)
    assert path.read_bytes() == before
