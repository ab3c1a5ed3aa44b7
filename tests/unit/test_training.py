"""Training: each loss against its definition, resuming, the same again for the same seed."""

from __future__ import annotations

import csv
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn import functional as F

from teso_deploy.errors import CheckpointError, DataError, InputNotFoundError, RecipeError
from teso_deploy.evaluation.library import Library
from teso_deploy.models import build, checkpoints, weight_files
from teso_deploy.models.audio import LogMel
from teso_deploy.recipe import EncoderPhase, HeadRecipe, Recipe, TeacherRecipe, TrainPhase, TrainRecipe, load_recipe
from teso_deploy.training.batches import Batch, SceneBatches, coverage
from teso_deploy.training.calibration import (
    FALSE_ALARM_RATE,
    _gate_threshold,
    _tag_threshold,
    calibrate_checkpoint,
)
from teso_deploy.training.loop import (
    START_PARTS,
    Trainer,
    learning_rate,
    moving_average,
    phase_of_step,
    train_model,
)
from teso_deploy.training.losses import (
    TrainingHeads,
    encoder_losses,
    imitation,
    info_nce,
    mask_losses,
    match,
    pairwise_bce,
    pairwise_dice,
)
from teso_deploy.training.teachers import Teachers, TensorFlowLiteTeacher, load_teachers, yamnet_patches

TRAIN = {
    "encoders": {"size": [32, 32], "steps": 2, "pictures_per_step": 4, "windows_per_step": 3},
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
    batch = batches.make(0, TrainPhase(size=(64, 64), steps=1))
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
    phase = TrainPhase(size=(32, 32), steps=1)
    first, again, other = batches.make(3, phase), batches.make(3, phase), batches.make(4, phase)
    assert torch.equal(first.image, again.image) and torch.equal(first.waveform, again.waveform)
    assert torch.equal(first.cue_sounds, again.cue_sounds) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.image, other.image)


def test_truth_and_cues_of_a_batch_agree(batches: SceneBatches, embeddings: dict[str, NDArray[np.float32]]) -> None:
    words = list(batches.recipe.head.classes)
    silent = offered = 0
    for step in range(6):
        batch = batches.make(step, TrainPhase(size=(64, 64), steps=1))
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


def test_stand_ins_are_near_by_name_and_never_of_what_is_visible(
    recipe: Recipe, shapes_and_tones: Library, embeddings: dict[str, NDArray[np.float32]]
) -> None:
    assert recipe.train is not None
    train = recipe.train.model_copy(update={"stand_in_rate": 1.0})
    always = SceneBatches(recipe.model_copy(update={"train": train}), shapes_and_tones, embeddings)
    rng = np.random.default_rng(0)
    shown = [always._shown(rng, ["dog", "cow"]) for _ in range(200)]
    seen = {tuple(words) for words in shown}
    assert seen == {("dog", "cow"), ("car", "cow"), ("dog", "car")}, "a car for one of them, never for both"
    # Two pictures of each word: a stand-in in 1 / √2 of the draws.
    alone = [always._shown(rng, ["dog"])[0] for _ in range(400)]
    assert 0.63 < np.mean([word != "dog" for word in alone]) < 0.78
    near, share = always.stand_ins["dog"]
    likeness = [float(embeddings[word] @ embeddings["dog"]) for word in near]
    assert likeness == sorted(likeness, reverse=True) and share.argmax() == 0
    never = SceneBatches(recipe, shapes_and_tones, embeddings)
    assert never._shown(rng, ["dog", "cow", "car"]) == ["dog", "cow", "car"]


def test_a_stand_in_is_named_as_the_cue_and_tagged_as_what_it_is(
    recipe: Recipe, shapes_and_tones: Library, embeddings: dict[str, NDArray[np.float32]]
) -> None:
    """A red dog goes as "cow" or "car": class and mask follow the name, the dense tags the picture."""
    assert recipe.train is not None
    train = recipe.train.model_copy(update={"stand_in_rate": 1.0, "missed_cue_rate": 0.0, "extra_cue_rate": 0.0})
    batches = SceneBatches(recipe.model_copy(update={"train": train}), shapes_and_tones, embeddings)
    others = 0
    for step in range(8):
        batch = batches.make(step, TrainPhase(size=(64, 64), steps=1))
        for n, b in ((n, n // train.sounds_per_scene) for n in range(len(batch.classes))):
            for c, mask in zip(batch.classes[n].tolist(), batch.masks[n], strict=True):
                cells = batch.dense_tags[b][mask > 0.9]
                if c >= 0 and len(cells):
                    name = recipe.head.classes[c]
                    shown = {recipe.tagger.words[tag - 1] for tag in cells.tolist() if tag}
                    others += bool(shown - {name})
    assert others > 5


def test_lessons_show_what_they_say(batches: SceneBatches) -> None:
    """In the test's media a word is a colour and a tone: what is tagged can be seen and heard."""
    phase = EncoderPhase(size=(32, 48), steps=1, pictures_per_step=12, windows_per_step=9)
    lesson, again, other = batches.make_lesson(0, phase), batches.make_lesson(0, phase), batches.make_lesson(1, phase)
    assert torch.equal(lesson.image, again.image) and torch.equal(lesson.waveform, again.waveform)
    assert not torch.equal(lesson.image, other.image)
    assert lesson.image.shape == (12, 3, 32, 48) and lesson.photograph.shape == (12, 64, 96, 3)
    assert lesson.dense_tags.shape == (12, 8, 12) and set(lesson.dense_tags.unique().tolist()) == {0, 1, 2, 3}
    silent = ~lesson.audio_tags.any(dim=1)
    assert lesson.waveform[~silent].abs().amax(dim=1).min() > 0
    assert (lesson.waveform[silent].abs().amax(dim=1) < 0.5).all()


def test_teachers_answer_for_a_lesson_and_the_heads_learn_from_them(recipe: Recipe, batches: SceneBatches) -> None:
    class MeanColour:
        channels = (3, 3, 3)

        def __call__(self, inputs: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
            images = torch.from_numpy(inputs).permute(0, 3, 1, 2).float()
            return tuple(F.avg_pool2d(images, stride) for stride in (8, 16, 32))

    class Loudness:
        channels = (2,)

        def __call__(self, inputs: NDArray[np.float32]) -> tuple[torch.Tensor, ...]:
            assert inputs.shape == (1, 96, 64)
            return (torch.tensor([[[[inputs.mean()]], [[inputs.max()]]]]),)

    teachers = Teachers(MeanColour(), Loudness(), LogMel())
    phase = EncoderPhase(size=(32, 32), steps=1, pictures_per_step=6, windows_per_step=5)
    lesson = teachers.answer(batches.make_lesson(0, phase))
    assert [tuple(x.shape) for x in lesson.picture_features] == [(6, 3, 8, 8), (6, 3, 4, 4), (6, 3, 2, 2)]
    assert [tuple(x.shape) for x in lesson.sound_features] == [(5, 2, 1, 1)]

    taught = TeacherRecipe(file="", tensors=())
    train = batches.train.model_copy(update={"picture_teacher": taught, "sound_teacher": taught})
    model = build(recipe, 0).train()
    heads = TrainingHeads(recipe, len(batches.audio_words), *teachers.channels)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=3e-3)
    history = []
    for _ in range(60):
        losses, _, _ = encoder_losses(model, heads, lesson, train)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert set(history[0]) == {"dense_tags", "audio_tags", "picture_teacher", "sound_teacher"}
    for name in history[0]:
        assert history[-1][name] < 0.8 * history[0][name], name


def test_imitation_knows_a_copy_and_ignores_what_all_have_in_common() -> None:
    target = torch.randn(6, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    standardised = (target - target.mean((0, 2, 3), keepdim=True)) / target.std((0, 2, 3), keepdim=True)
    assert imitation(standardised * 3, target + 100).item() == pytest.approx(0, abs=1e-3)
    assert imitation(-standardised, target).item() == pytest.approx(2, abs=1e-3)


def test_a_teacher_that_is_not_there_or_another_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(InputNotFoundError, match="no teacher"):
        TensorFlowLiteTeacher(tmp_path / "t.tflite", ["x"])
    (tmp_path / "t.tflite").write_bytes(b"not a network at all")
    with pytest.raises(DataError, match="not a TensorFlow Lite file"):
        TensorFlowLiteTeacher(tmp_path / "t.tflite", ["x"])


def test_the_shared_teachers_see_and_hear() -> None:
    """With the media at hand: the feature maps that the recipe names, at any size; what YAMNet calls silence."""
    data = Path(os.environ.get("TESO_AVS_DATA", ""))
    train = load_recipe("teso-nano").train
    assert train is not None and train.picture_teacher is not None
    if not (data / train.picture_teacher.file).is_file():
        pytest.skip("no media folder with teachers")
    teachers = load_teachers(train, data)
    assert (
        teachers.picture is not None and teachers.sound is not None and teachers.channels == ((32, 96, 1280), (1024,))
    )
    for size in ((2, 224, 224), (1, 96, 128)):
        maps = teachers.picture(np.zeros((*size, 3), np.uint8))
        expected = [(size[0], c, size[1] // s, size[2] // s) for c, s in ((32, 8), (96, 16), (1280, 32))]
        assert [tuple(x.shape) for x in maps] == expected
    with pytest.raises(DataError, match="no tensor"):
        TensorFlowLiteTeacher(data / train.picture_teacher.file, ["no such layer"])
    assert train.sound_teacher is not None
    scores = TensorFlowLiteTeacher(data / train.sound_teacher.file, ["final_output"])
    (heard,) = scores(yamnet_patches(torch.zeros(1, 15_600), LogMel()))
    names = [row["display_name"] for row in csv.DictReader((data / "weights/yamnet_class_map.csv").open())]
    assert names[int(heard.flatten().argmax())] == "Silence"


def test_coverage_is_the_share_of_each_cell() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :2] = 255
    assert coverage(mask).tolist() == [[0.5, 0.0], [0.0, 0.0]]


def test_phases_and_learning_rate(recipe: Recipe) -> None:
    train = recipe.train
    assert train is not None
    assert [phase_of_step(train, step).size[0] for step in range(6)] == [32, 32, 32, 64, 64, 64]
    with pytest.raises(RecipeError):
        phase_of_step(train, 6)
    rates = [learning_rate(1e-3, 2, step, 6) for step in range(7)]
    assert rates[1] == 1e-3 and rates[0] < rates[1] > rates[3] > rates[6] > 0


def test_a_broken_run_goes_on_to_the_same_weights(
    recipe: Recipe, media_folder: Path, tmp_path: Path, embeddings: dict[str, NDArray[np.float32]]
) -> None:
    class Stop(Exception):
        pass

    def stop_at_five(progress: object) -> None:
        if progress.step == 5:  # type: ignore[attr-defined]
            raise Stop

    whole = train_model(recipe, media_folder, tmp_path / "whole", embeddings, save_every_steps=2)
    with pytest.raises(Stop):
        train_model(recipe, media_folder, tmp_path / "broken", embeddings, on_progress=stop_at_five, save_every_steps=2)
    assert json.loads((tmp_path / "broken" / "log.jsonl").read_text().splitlines()[-1])["step"] <= 5
    resumed = train_model(recipe, media_folder, tmp_path / "broken", embeddings, save_every_steps=2)
    one, two = load_file(whole), load_file(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 8
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 5_000
    model = build(recipe)
    assert checkpoints.load(model, whole).is_complete

    other = recipe.model_copy(update={"summary": "another"})
    with pytest.raises(CheckpointError, match="another recipe"):
        train_model(other, media_folder, tmp_path / "broken", embeddings)


def test_lessons_made_ahead_are_the_same(batches: SceneBatches, tmp_path: Path) -> None:
    trainer = Trainer(batches.recipe, batches, tmp_path, torch.device("cpu"))
    trainer.step = 1  # the last of the encoders' own two
    ahead, here = list(trainer.lessons(workers=2)), list(trainer.lessons())
    assert [isinstance(lesson, Batch) for lesson in ahead] == [False] + 6 * [True]
    for one, other in zip(ahead, here, strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.waveform, other.waveform)


def test_encoders_of_another_run_are_a_start(
    recipe: Recipe, media_folder: Path, tmp_path: Path, embeddings: dict[str, NDArray[np.float32]]
) -> None:
    source = build(recipe, 7)
    checkpoints.save(source, tmp_path / "start.safetensors")
    ablated = recipe.model_copy(update={"fusion": recipe.fusion.model_copy(update={"without": ("sedam",)})})
    steps: list[int] = []
    weights = train_model(
        ablated, media_folder, tmp_path / "run", embeddings, on_progress=lambda p: steps.append(p.step),
        start=tmp_path / "start.safetensors",
    )  # fmt: skip
    assert steps == [3, 4, 5, 6, 7, 8], "the encoders' own phase is left out"
    began, ended = source.state_dict(), load_file(weights)
    fresh = build(ablated, ablated.train.seed if ablated.train else 0).state_dict()

    def moved(key: str, since: dict[str, torch.Tensor]) -> float:
        return float((ended[key] - since[key]).abs().max())

    for key in ("visual_encoder.swin.patch.weight", "audio_encoder.features.0.weight"):
        assert moved(key, began) < 0.1 * moved(key, fresh)
    narrow = recipe.model_copy(update={"swin": recipe.swin.model_copy(update={"embed_dim": 16})})
    with pytest.raises(CheckpointError, match="does not fit the recipe"):
        train_model(narrow, media_folder, tmp_path / "other", embeddings, start=tmp_path / "start.safetensors")


def test_parts_to_start_with(recipe: Recipe, batches: SceneBatches, tmp_path: Path) -> None:
    source = build(recipe, 7)
    checkpoints.save(source, tmp_path / "start.safetensors")
    trainer = Trainer(recipe, batches, tmp_path / "run", torch.device("cpu"))
    fresh = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.start_from(tmp_path / "start.safetensors", (*START_PARTS, "decoder"))
    for weights in (trainer.model.state_dict(), trainer.average.module.state_dict()):
        for key, value in weights.items():
            assert torch.equal(value, (fresh if key.startswith("fusion.") else source.state_dict())[key]), key


def test_the_average_does_not_drag_its_beginnings_along() -> None:
    update, one = moving_average(0.999), torch.ones(1)
    average = torch.zeros(1)
    for count in range(1, 300):
        average = update(average, one, count)
    assert average > 0.999
    assert float(update(torch.zeros(1), one, 100_000)) == pytest.approx(0.001)


def test_a_class_without_sounds_is_named_before_training_starts(
    recipe: Recipe, shapes_and_tones: Library, embeddings: dict[str, NDArray[np.float32]]
) -> None:
    head = recipe.head.model_copy(update={"classes": ("dog", "cow", "car", "speech")})
    with pytest.raises(DataError, match="'speech' has no train pictures, or no sounds"):
        SceneBatches(recipe.model_copy(update={"head": head}), shapes_and_tones, embeddings)


def test_a_binary_head_learns_everything_that_sounds_as_one_class(
    recipe: Recipe, shapes_and_tones: Library, embeddings: dict[str, NDArray[np.float32]]
) -> None:
    binary = recipe.model_copy(update={"head": HeadRecipe(kind="binary")})
    batch = SceneBatches(binary, shapes_and_tones, embeddings).make(0, TrainPhase(size=(32, 32), steps=1))
    assert set(batch.classes.unique().tolist()) == {-1, 0} and batch.masks[batch.classes >= 0].any()


def test_a_recipe_without_training_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[train\]"):
        train_model(tiny_recipe, tmp_path, tmp_path, {})


def test_training_learns(recipe: Recipe, shapes_and_tones: Library, embeddings: dict[str, NDArray[np.float32]]) -> None:
    """Thirty steps on one fixed batch halve the loss: gradients reach every part."""
    from teso_deploy.training.losses import training_losses

    batches = SceneBatches(recipe, shapes_and_tones, embeddings)
    batch, train = batches.make(0, TrainPhase(size=(32, 32), steps=1)), batches.train
    model = build(recipe, 0).train()
    heads = TrainingHeads(recipe, len(batches.audio_words))
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


def test_batch_norm_only_where_the_recipe_asks_for_it(tiny_recipe: Recipe) -> None:
    audio = tiny_recipe.audio.model_copy(update={"batch_norm": True})
    for chosen, count in ((tiny_recipe, 0), (tiny_recipe.model_copy(update={"audio": audio}), 6 + 2)):
        norms = [layer for layer in build(chosen).modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
        assert len(norms) == count


def test_calibration_is_kept_in_the_checkpoint_and_shifts_the_gate(
    recipe: Recipe, calibration_folder: Path, embeddings: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    path, model = tmp_path / "m.safetensors", build(recipe, 0)
    checkpoints.save(model, path, {"recipe": recipe.model_dump_json(by_alias=True), "step": "6"})
    found = calibrate_checkpoint(path, calibration_folder, embeddings, scenes=12)
    assert 0 <= found.false_alarm_rate <= FALSE_ALARM_RATE + 1 / 12
    assert 0 <= found.open_rate <= 1 and 0 <= found.miou <= 1 and found.tag_threshold is not None
    assert weight_files.read(path)[1]["step"] == "6", "what the file said before is still there"
    chosen = checkpoints.calibrated(recipe, path)
    assert chosen.head.threshold == found.mask_threshold and chosen.tagger.threshold == found.tag_threshold
    assert chosen.fusion.gate_threshold == found.gate_threshold
    shifted = build(chosen)
    checkpoints.load(shifted, path)
    cues = torch.from_numpy(np.stack([embeddings["dog"], embeddings["cow"]])).repeat(1, 2, 1)
    valid = torch.tensor([[True, True, False, False]])
    audio = torch.randn(1, recipe.audio.dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw, moved = model.fusion(audio, cues, valid)[1], shifted.fusion(audio, cues, valid)[1]
        trained = shifted.fusion.fuse(audio, cues, valid)[1]
    assert torch.allclose(moved[:, :2], raw[:, :2] - found.gate_threshold) and not moved[:, 2:].any()
    assert torch.equal(trained, raw), "training knows nothing of the threshold"


def test_thresholds_are_where_they_should_be() -> None:
    blank = np.arange(100, dtype=np.float32)
    rows, highest = [blank - 500, blank], np.quantile(blank, 0.95)
    assert _gate_threshold(np.array([50.0, 200.0]), rows) == pytest.approx(highest)
    assert _gate_threshold(np.array([150.0, 200.0]), rows) == pytest.approx((highest + 150) / 2)
    tags = np.array([[0.9, 0.2], [0.8, 0.35], [0.3, 0.6]])
    visible = np.array([[True, False], [True, False], [False, True]])
    assert _tag_threshold(tags, visible) == (0.4, 1.0)
    tags = np.array([[0.9, 0.3], [0.3, 0.3], [0.3, 0.1]])
    visible = np.array([[True, False], [True, False], [False, False]])
    threshold, f2 = _tag_threshold(tags, visible)
    assert threshold == 0.15 and f2 == pytest.approx(10 / 13), "three words too many for one not missed"


def test_a_checkpoint_without_or_with_a_broken_calibration(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    checkpoints.save(build(recipe, 0), path)
    assert checkpoints.calibrated(recipe, path) == recipe
    with pytest.raises(CheckpointError, match="of which recipe"):
        checkpoints.recipe_of(path)
    checkpoints.save(build(recipe, 0), path, {checkpoints.CALIBRATION: "{}"})
    with pytest.raises(CheckpointError, match="calibrate again"):
        checkpoints.calibrated(recipe, path)
