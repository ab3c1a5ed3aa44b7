"""Training: losses, resuming, and equal results for equal seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from teso_deploy.errors import CheckpointError, DataError, RecipeError
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary
from teso_deploy.models import build, checkpoints
from teso_deploy.recipe import EncoderPhase, HeadRecipe, Recipe, TrainPhase
from teso_deploy.training.batches import Batch, SceneBatches, compute_coverage
from teso_deploy.training.loop import (
    START_PARTS,
    Trainer,
    compute_learning_rate,
    find_phase,
    make_moving_average,
    train_model,
)
from teso_deploy.training.losses import (
    TrainingHeads,
)


def test_batches_are_the_same_for_the_same_step_and_differ_between_steps(scene_batches: SceneBatches) -> None:
    phase = TrainPhase(size=(32, 32), steps=1)
    first, again, other = scene_batches.make(3, phase), scene_batches.make(3, phase), scene_batches.make(4, phase)
    assert torch.equal(first.image, again.image) and torch.equal(first.waveform, again.waveform)
    assert torch.equal(first.cue_sounds, again.cue_sounds) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.image, other.image)


def test_truth_and_cues_of_a_batch_agree(
    scene_batches: SceneBatches, word_embeddings: dict[str, NDArray[np.float32]]
) -> None:
    words = list(scene_batches.recipe.head.classes)
    silent = offered = 0
    for step in range(6):
        batch = scene_batches.make(step, TrainPhase(size=(64, 64), steps=1))
        assert ((batch.cue_sounds >= 0) >= batch.cue_valid).all()
        for n in range(len(batch.classes)):
            heard = {words[c] for c in batch.classes[n].tolist() if c >= 0}
            for slot in batch.cue_valid[n].nonzero().flatten().tolist():
                name = next(w for w, e in word_embeddings.items() if np.array_equal(e, batch.cues[n, slot].numpy()))
                tagged = (
                    batch.audio_tags[n, scene_batches.audio_tag_of[name]] if name in scene_batches.audio_tag_of else 0
                )
                assert batch.cue_sounds[n, slot] == tagged
                offered += 1
            if not batch.waveform[n].any():
                assert not heard and not batch.audio_tags[n].any()
                silent += 1
            for t, c in enumerate(batch.classes[n].tolist()):
                assert (c >= 0) == bool(batch.masks[n, t].any())
    assert silent and offered


def test_stand_ins_are_near_by_name_and_never_of_what_is_visible(
    training_recipe: Recipe, shapes_and_tones: MediaLibrary, word_embeddings: dict[str, NDArray[np.float32]]
) -> None:
    assert training_recipe.train is not None
    train = training_recipe.train.model_copy(update={"stand_in_rate": 1.0})
    always = SceneBatches(training_recipe.model_copy(update={"train": train}), shapes_and_tones, word_embeddings)
    rng = np.random.default_rng(0)
    shown = [always._choose_shown(rng, ["dog", "cow"]) for _ in range(200)]
    seen = {tuple(words) for words in shown}
    assert seen == {("dog", "cow"), ("car", "cow"), ("dog", "car")}, "a car for one of them, never for both"
    # Two pictures of each word: a stand-in in 1 / √2 of the draws.
    alone = [always._choose_shown(rng, ["dog"])[0] for _ in range(400)]
    assert 0.63 < np.mean([word != "dog" for word in alone]) < 0.78
    near, share = always.stand_ins["dog"]
    likeness = [float(word_embeddings[word] @ word_embeddings["dog"]) for word in near]
    assert likeness == sorted(likeness, reverse=True) and share.argmax() == 0
    never = SceneBatches(training_recipe, shapes_and_tones, word_embeddings)
    assert never._choose_shown(rng, ["dog", "cow", "car"]) == ["dog", "cow", "car"]


def test_a_stand_in_is_named_as_the_cue_and_tagged_as_what_it_is(
    training_recipe: Recipe, shapes_and_tones: MediaLibrary, word_embeddings: dict[str, NDArray[np.float32]]
) -> None:
    """A red dog is offered as "cow" or "car". Class and mask follow the name, the dense tags follow the picture."""
    assert training_recipe.train is not None
    train = training_recipe.train.model_copy(
        update={"stand_in_rate": 1.0, "missed_cue_rate": 0.0, "extra_cue_rate": 0.0}
    )
    batches = SceneBatches(training_recipe.model_copy(update={"train": train}), shapes_and_tones, word_embeddings)
    others = 0
    for step in range(8):
        batch = batches.make(step, TrainPhase(size=(64, 64), steps=1))
        for n, b in ((n, n // train.sounds_per_scene) for n in range(len(batch.classes))):
            for c, mask in zip(batch.classes[n].tolist(), batch.masks[n], strict=True):
                cells = batch.dense_tags[b][mask > 0.9]
                if c >= 0 and len(cells):
                    name = training_recipe.head.classes[c]
                    shown = {training_recipe.tagger.words[tag - 1] for tag in cells.tolist() if tag}
                    others += bool(shown - {name})
    assert others > 5


def test_lessons_show_what_they_say(scene_batches: SceneBatches) -> None:
    """In the test's media a word is a colour and a tone, so every tagged word can be seen and heard."""
    phase = EncoderPhase(size=(32, 48), steps=1, pictures_per_step=12, windows_per_step=9)
    lesson, again, other = (
        scene_batches.make_lesson(0, phase),
        scene_batches.make_lesson(0, phase),
        scene_batches.make_lesson(1, phase),
    )
    assert torch.equal(lesson.image, again.image) and torch.equal(lesson.waveform, again.waveform)
    assert not torch.equal(lesson.image, other.image)
    assert lesson.image.shape == (12, 3, 32, 48) and lesson.photograph.shape == (12, 64, 96, 3)
    assert lesson.dense_tags.shape == (12, 8, 12) and set(lesson.dense_tags.unique().tolist()) == {0, 1, 2, 3}
    silent = ~lesson.audio_tags.any(dim=1)
    assert lesson.waveform[~silent].abs().amax(dim=1).min() > 0
    assert (lesson.waveform[silent].abs().amax(dim=1) < 0.5).all()


def test_coverage_is_the_share_of_each_cell() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :2] = 255
    assert compute_coverage(mask).tolist() == [[0.5, 0.0], [0.0, 0.0]]


def test_phases_and_learning_rate(training_recipe: Recipe) -> None:
    train = training_recipe.train
    assert train is not None
    assert [find_phase(train, step).size[0] for step in range(6)] == [32, 32, 32, 64, 64, 64]
    with pytest.raises(RecipeError):
        find_phase(train, 6)
    rates = [compute_learning_rate(1e-3, warmup_steps=2, step=step, steps=6) for step in range(7)]
    assert rates[1] == 1e-3 and rates[0] < rates[1] > rates[3] > rates[6] > 0


def test_a_broken_run_goes_on_to_the_same_weights(
    training_recipe: Recipe, media_folder: Path, tmp_path: Path, word_embeddings: dict[str, NDArray[np.float32]]
) -> None:
    class Stop(Exception):
        pass

    def stop_at_five(progress: object) -> None:
        if progress.step == 5:  # type: ignore[attr-defined]
            raise Stop

    whole = train_model(
        training_recipe, media_folder, tmp_path / "whole", embeddings=word_embeddings, save_every_steps=2
    )
    with pytest.raises(Stop):
        train_model(
            training_recipe,
            media_folder,
            tmp_path / "broken",
            embeddings=word_embeddings,
            on_progress=stop_at_five,
            save_every_steps=2,
        )
    assert json.loads((tmp_path / "broken" / "log.jsonl").read_text().splitlines()[-1])["step"] <= 5
    resumed = train_model(
        training_recipe, media_folder, tmp_path / "broken", embeddings=word_embeddings, save_every_steps=2
    )
    one, two = load_file(whole), load_file(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 8
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 5_000
    model = build(training_recipe)
    assert checkpoints.load(model, whole).is_complete

    other = training_recipe.model_copy(update={"summary": "another"})
    with pytest.raises(CheckpointError, match="another recipe"):
        train_model(other, media_folder, tmp_path / "broken", embeddings=word_embeddings)


def test_lessons_made_ahead_are_the_same(scene_batches: SceneBatches, tmp_path: Path) -> None:
    trainer = Trainer(scene_batches.recipe, scene_batches, tmp_path, device=torch.device("cpu"))
    trainer.step = 1  # the last of the two steps of the encoders' phase
    ahead, here = list(trainer.lessons(workers=2)), list(trainer.lessons())
    assert [isinstance(lesson, Batch) for lesson in ahead] == [False] + 6 * [True]
    for one, other in zip(ahead, here, strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.waveform, other.waveform)


def test_encoders_of_another_run_are_a_start(
    training_recipe: Recipe, media_folder: Path, tmp_path: Path, word_embeddings: dict[str, NDArray[np.float32]]
) -> None:
    source = build(training_recipe, 7)
    checkpoints.save(source, tmp_path / "start.safetensors")
    ablated = training_recipe.model_copy(
        update={"fusion": training_recipe.fusion.model_copy(update={"without": ("sedam",)})}
    )
    steps: list[int] = []
    weights = train_model(
        ablated, media_folder, tmp_path / "run", embeddings=word_embeddings, on_progress=lambda p: steps.append(p.step),
        start=tmp_path / "start.safetensors",
    )  # fmt: skip
    assert steps == [3, 4, 5, 6, 7, 8], "the encoders' own phase is left out"
    began, ended = source.state_dict(), load_file(weights)
    fresh = build(ablated, ablated.train.seed if ablated.train else 0).state_dict()

    def moved(key: str, since: dict[str, torch.Tensor]) -> float:
        return float((ended[key] - since[key]).abs().max())

    for key in ("visual_encoder.swin.patch.weight", "audio_encoder.features.0.weight"):
        assert moved(key, began) < 0.1 * moved(key, fresh)
    narrow = training_recipe.model_copy(update={"swin": training_recipe.swin.model_copy(update={"embed_dim": 16})})
    with pytest.raises(CheckpointError, match="does not fit the recipe"):
        train_model(
            narrow, media_folder, tmp_path / "other", embeddings=word_embeddings, start=tmp_path / "start.safetensors"
        )


def test_parts_to_start_with(training_recipe: Recipe, scene_batches: SceneBatches, tmp_path: Path) -> None:
    source = build(training_recipe, 7)
    checkpoints.save(source, tmp_path / "start.safetensors")
    trainer = Trainer(training_recipe, scene_batches, tmp_path / "run", device=torch.device("cpu"))
    fresh = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.start_from(tmp_path / "start.safetensors", (*START_PARTS, "decoder"))
    for weights in (trainer.model.state_dict(), trainer.average.module.state_dict()):
        for key, value in weights.items():
            assert torch.equal(value, (fresh if key.startswith("fusion.") else source.state_dict())[key]), key


def test_the_average_does_not_drag_its_beginnings_along() -> None:
    update, one = make_moving_average(0.999), torch.ones(1)
    average = torch.zeros(1)
    for count in range(1, 300):
        average = update(average, one, count)
    assert average > 0.999
    assert float(update(torch.zeros(1), one, 100_000)) == pytest.approx(0.001)


def test_a_class_without_sounds_is_named_before_training_starts(
    training_recipe: Recipe, shapes_and_tones: MediaLibrary, word_embeddings: dict[str, NDArray[np.float32]]
) -> None:
    head = training_recipe.head.model_copy(update={"classes": ("dog", "cow", "car", "speech")})
    with pytest.raises(DataError, match="'speech' has no train pictures, or no sounds"):
        SceneBatches(training_recipe.model_copy(update={"head": head}), shapes_and_tones, word_embeddings)


def test_a_binary_head_learns_everything_that_sounds_as_one_class(
    training_recipe: Recipe, shapes_and_tones: MediaLibrary, word_embeddings: dict[str, NDArray[np.float32]]
) -> None:
    binary = training_recipe.model_copy(update={"head": HeadRecipe(kind="binary")})
    batch = SceneBatches(binary, shapes_and_tones, word_embeddings).make(0, TrainPhase(size=(32, 32), steps=1))
    assert set(batch.classes.unique().tolist()) == {-1, 0} and batch.masks[batch.classes >= 0].any()


def test_a_recipe_without_training_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[train\]"):
        train_model(tiny_recipe, tmp_path, tmp_path, embeddings={})


def test_training_learns(
    training_recipe: Recipe, shapes_and_tones: MediaLibrary, word_embeddings: dict[str, NDArray[np.float32]]
) -> None:
    """Thirty steps on one fixed batch halve the loss: gradients reach every part."""
    from teso_deploy.training.losses import compute_training_losses

    batches = SceneBatches(training_recipe, shapes_and_tones, word_embeddings)
    batch, train = batches.make(0, TrainPhase(size=(32, 32), steps=1)), batches.train
    model = build(training_recipe, 0).train()
    heads = TrainingHeads(training_recipe, audio_words=len(batches.audio_words))
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=3e-3)
    totals = []
    for step in range(30):
        losses, _ = compute_training_losses(
            model, heads, batch, train=train, generator=torch.Generator().manual_seed(step)
        )
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
    with pytest.raises(CheckpointError, match="is text, not weights"):
        checkpoints.load(build(tiny_recipe), path)


def test_batch_norm_only_where_the_recipe_asks_for_it(tiny_recipe: Recipe) -> None:
    audio = tiny_recipe.audio.model_copy(update={"batch_norm": True})
    for chosen, count in ((tiny_recipe, 0), (tiny_recipe.model_copy(update={"audio": audio}), 6 + 2)):
        norms = [layer for layer in build(chosen).modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
        assert len(norms) == count
