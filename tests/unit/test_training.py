"""Training: each loss against its definition, resuming, the same again for the same seed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn import functional as F

from teso_deploy.errors import CheckpointError, RecipeError
from teso_deploy.evaluation.library import Library
from teso_deploy.models import build, checkpoints
from teso_deploy.recipe import Recipe, TrainRecipe
from teso_deploy.training.batches import SceneBatches, coverage
from teso_deploy.training.loop import learning_rate, size_of_step, train_model
from teso_deploy.training.losses import info_nce, mask_losses, match, pairwise_bce, pairwise_dice

TRAIN = {
    "phases": [{"size": [32, 32], "steps": 3}, {"size": [64, 64], "steps": 3}],
    "scenes_per_step": 2,
    "sounds_per_scene": 3,
    "warmup_steps": 2,
    "loss_points": 100,
    "audio_tags": 1.0,
    "dense_tags": 1.0,
}


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.model_copy(update={"train": TrainRecipe.model_validate(TRAIN)})


@pytest.fixture(scope="module")
def embeddings() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {
        word: rng.standard_normal(384).astype(np.float32) / np.float32(20) for word in ("dog", "cow", "car", "speech")
    }


@pytest.fixture(scope="module")
def batches(recipe: Recipe, shapes_and_tones: Library, embeddings: dict[str, NDArray[np.float32]]) -> SceneBatches:
    return SceneBatches(recipe, shapes_and_tones, embeddings)


def test_pairwise_costs() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 10), (torch.rand(2, 4, 10) > 0.5).float()
    bce, dice = pairwise_bce(logits, targets), pairwise_dice(logits, targets)
    for n, q, t in itertools.product(range(2), range(3), range(4)):
        assert bce[n, q, t] == pytest.approx(
            F.binary_cross_entropy_with_logits(logits[n, q], targets[n, t]).item(), abs=1e-5
        )
        share = logits[n, q].sigmoid()
        expected = 1 - (2 * (share * targets[n, t]).sum() + 1) / (share.sum() + targets[n, t].sum() + 1)
        assert dice[n, q, t] == pytest.approx(expected.item(), abs=1e-5)


def test_matching_is_the_cheapest_assignment() -> None:
    cost = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=torch.bool)
    chosen = match(cost, present)
    for n in range(5):
        targets = present[n].nonzero().flatten().tolist()
        assert (chosen[n][~present[n]] == -1).all()
        ours = sum(float(cost[n, chosen[n, t], t]) for t in targets)
        best = min(
            sum(float(cost[n, q, t]) for q, t in zip(queries, targets, strict=True))
            for queries in itertools.permutations(range(4), len(targets))
        )
        assert ours == pytest.approx(best)


def test_info_nce_is_least_for_orthogonal_latents() -> None:
    same, orthogonal = torch.ones(2, 4, 8), torch.eye(8)[:4].expand(2, 4, 8)
    assert info_nce(same, 0.1).item() == pytest.approx(np.log(4), abs=1e-5)
    assert info_nce(orthogonal, 0.1) < 1e-3
    unit = F.normalize(torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    cosine = np.exp(unit[0].double().numpy() @ unit[0].double().numpy().T / 0.5)
    expected = -np.log(np.diag(cosine) / cosine.sum(axis=1)).mean()
    assert info_nce(unit * 3, 0.5).item() == pytest.approx(expected, abs=1e-5)


def test_a_perfect_prediction_costs_nothing_and_a_blank_one_does(batches: SceneBatches) -> None:
    train = batches.train.model_copy(update={"loss_points": 10_000})
    batch = batches.make(0, (64, 64))
    rows, queries, classes = len(batch.classes), 6, 3
    class_logits = torch.full((rows, queries, classes + 1), -20.0)
    class_logits[..., -1] = 20.0
    mask_logits = torch.full((rows, queries, *batch.masks.shape[2:]), -20.0)
    blank = mask_losses(class_logits, mask_logits, batch, train, torch.Generator())
    for n, t in (batch.classes >= 0).nonzero().tolist():
        class_logits[n, 5 - t] = -20.0
        class_logits[n, 5 - t, batch.classes[n, t]] = 20.0
        mask_logits[n, 5 - t] = (batch.masks[n, t].round() * 2 - 1) * 20
    batch.masks.copy_(batch.masks.round())
    right = mask_losses(class_logits, mask_logits, batch, train, torch.Generator())
    assert all(right[name] < 0.2 for name in ("bce", "dice", "class"))
    assert all(blank[name] > 1 for name in ("dice", "class"))


def test_batches_are_the_same_for_the_same_step_and_differ_between_steps(batches: SceneBatches) -> None:
    first, again, other = batches.make(3, (32, 32)), batches.make(3, (32, 32)), batches.make(4, (32, 32))
    assert torch.equal(first.image, again.image) and torch.equal(first.waveform, again.waveform)
    assert torch.equal(first.cue_sounds, again.cue_sounds) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.image, other.image)


def test_truth_and_cues_of_a_batch_agree(batches: SceneBatches, embeddings: dict[str, NDArray[np.float32]]) -> None:
    words = list(batches.recipe.head.classes)
    silent = offered = 0
    for step in range(6):
        batch = batches.make(step, (64, 64))
        assert ((batch.cue_sounds >= 0) >= batch.cue_valid).all()
        for n in range(len(batch.classes)):
            heard = {words[c] for c in batch.classes[n].tolist() if c >= 0}
            for slot in batch.cue_valid[n].nonzero().flatten().tolist():
                name = next(w for w, e in embeddings.items() if np.array_equal(e, batch.cues[n, slot].numpy()))
                tagged = batch.audio_tags[n, batches.audio_tag_of[name]] if name in batches.audio_tag_of else 0
                assert batch.cue_sounds[n, slot] == tagged
                offered += 1
            if not batch.waveform[n].any():
                assert not heard and not batch.audio_tags[n].any()
                silent += 1
            for t, c in enumerate(batch.classes[n].tolist()):
                assert (c >= 0) == bool(batch.masks[n, t].any())
    assert silent and offered


def test_coverage_is_the_share_of_each_cell() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :2] = 255
    assert coverage(mask).tolist() == [[0.5, 0.0], [0.0, 0.0]]


def test_phases_and_learning_rate(recipe: Recipe) -> None:
    train = recipe.train
    assert train is not None
    assert [size_of_step(train, step)[0] for step in range(6)] == [32, 32, 32, 64, 64, 64]
    with pytest.raises(RecipeError):
        size_of_step(train, 6)
    rates = [learning_rate(train, step, 6) for step in range(7)]
    assert rates[1] == train.learning_rate and rates[0] < rates[1] > rates[3] > rates[6] > 0


def test_a_broken_run_goes_on_to_the_same_weights(
    recipe: Recipe, media_folder: Path, tmp_path: Path, embeddings: dict[str, NDArray[np.float32]]
) -> None:
    class Stop(Exception):
        pass

    def stop_at_four(progress: object) -> None:
        if progress.step == 4:  # type: ignore[attr-defined]
            raise Stop

    whole = train_model(recipe, media_folder, tmp_path / "whole", embeddings, save_every_steps=2)
    with pytest.raises(Stop):
        train_model(recipe, media_folder, tmp_path / "broken", embeddings, on_progress=stop_at_four, save_every_steps=2)
    assert json.loads((tmp_path / "broken" / "log.jsonl").read_text().splitlines()[-1])["step"] <= 4
    resumed = train_model(recipe, media_folder, tmp_path / "broken", embeddings, save_every_steps=2)
    one, two = load_file(whole), load_file(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 6
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 5_000
    model = build(recipe)
    assert checkpoints.load(model, whole).is_complete

    other = recipe.model_copy(update={"summary": "another"})
    with pytest.raises(CheckpointError, match="another recipe"):
        train_model(other, media_folder, tmp_path / "broken", embeddings)


def test_a_recipe_without_training_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[train\]"):
        train_model(tiny_recipe, tmp_path, tmp_path, {})


def test_training_learns(recipe: Recipe, shapes_and_tones: Library, embeddings: dict[str, NDArray[np.float32]]) -> None:
    """Thirty steps on one fixed batch halve the loss: gradients reach every part."""
    from teso_deploy.training.losses import TagHeads, training_losses

    batches = SceneBatches(recipe, shapes_and_tones, embeddings)
    batch, train = batches.make(0, (32, 32)), batches.train
    model = build(recipe, 0).train()
    heads = TagHeads(recipe.audio.dim, len(batches.audio_words), 16, len(batches.visible_words))
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=3e-3)
    totals = []
    for step in range(30):
        losses, _, _ = training_losses(model, heads, batch, train, torch.Generator().manual_seed(step))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            dead = [name for name, p in model.named_parameters() if p.grad is None]
            assert not dead, f"no gradient reaches {dead}"
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]


def test_checkpoints_name_the_keys_that_do_not_fit(tiny_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    checkpoints.save(build(tiny_recipe, 0), path)
    narrow = tiny_recipe.model_copy(update={"fusion": tiny_recipe.fusion.model_copy(update={"latents": 5})})
    with pytest.raises(CheckpointError, match=r"fusion\.latents\.latents \[3, 16\] for \[5, 16\]"):
        checkpoints.load(build(narrow), path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors"):
        checkpoints.load(build(tiny_recipe), path)
