"""Training on videos: which weights learn, which are frozen, that it resumes, and that it reduces the loss."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import CheckpointError, DataError, InputNotFoundError, RecipeError
from teso_deploy.evaluation.datasets.reading import load_mask, read_dataset
from teso_deploy.evaluation.datasets.registry import Layout
from teso_deploy.evaluation.datasets.sounds import read_second
from teso_deploy.labels import labels_of
from teso_deploy.models import checkpoints, weight_files
from teso_deploy.models.assembly import Assembly, assemble
from teso_deploy.models.teso import build
from teso_deploy.recipe import Recipe, load_recipe
from teso_deploy.training.finetune import FineTuning, is_adapter, list_learnable, train_on_videos
from teso_deploy.training.videos import VideoBatches, list_words, read_cue_file, split_words
from tests.conftest import TINY
from tests.support.avs_layouts import write_avss, write_ms3, write_s4, write_v3

CLASSES = ("dog", "car", "piano")
VIDEOS = {"epochs": 2, "frames_per_batch": 2, "accumulation_steps": 2, "adapter_learning_rate": 1e-3}
TRAIN = {"learning_rate": 3e-3, "warmup_steps": 5, "gradient_clip": 1.0, "no_cue_rate": 0.0, "videos": VIDEOS}


SAM = {
    "embed_dim": 32, "layers": 2, "heads": 2, "mlp_dim": 40, "patch": 16, "window": 3, "global_layers": (1,), "dim": 16,
    "decoder_heads": 2, "decoder_mlp_dim": 24, "mask_tokens": 3,
}  # fmt: skip


def sam_recipe(**train: Any) -> Recipe:
    """Return the small recipe with SAM in place of Mask2Former."""
    foundation = {"foundation": "sam", "sam": SAM, "adapters": ("sam_encoder", "sam_decoder")}
    image = {"sizes": [[64, 64]], "fit": "pad"}
    return Recipe.model_validate(
        {**recipe_of("binary", **train).model_dump(by_alias=True), **foundation, "image": image}
    )


def recipe_of(kind: str = "semantic", **train: Any) -> Recipe:
    head = {"kind": kind, "classes": CLASSES if kind == "semantic" else ("sounding object",)}
    return Recipe.model_validate({**TINY, "tagger": {}, "head": head, "train": {**TRAIN, **train}})


@pytest.fixture(scope="module")
def words() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 384)).astype(np.float32)
    return dict(zip(CLASSES, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))


@pytest.fixture(scope="module")
def avss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("avss")
    write_avss(root, videos=2, size=64)
    return root


def batches_of(recipe: Recipe, root: Path, words: dict[str, NDArray[np.float32]]) -> VideoBatches:
    return VideoBatches(recipe, read_dataset(root, "avss", "train"), layout="avss", embeddings=words)


def whole(recipe: Recipe) -> Assembly:
    """Pretend that checkpoints gave everything except the adapters and the fusion."""
    model = build(recipe, 0)
    random = tuple(
        key for key in model.state_dict() if is_adapter(key) or (key.startswith("fusion.") and key != "fusion.queries")
    )
    return Assembly(model, {}, random)


def test_a_batch_is_what_the_data_set_says(avss: Path, words: dict[str, NDArray[np.float32]]) -> None:
    recipe = recipe_of(extra_cue_rate=0.0, missed_cue_rate=0.0)
    batches = batches_of(recipe, avss, words)
    assert len(batches) == 10, "two videos of five frames"
    rng = np.random.default_rng(0)
    blank = 0
    for number, (sample, frame) in enumerate(batches.frames):
        batch = batches.make([number], rng)
        path = sample.masks[frame]
        assert path is not None
        truth = load_mask(path, "avss", "semantic")
        assert (batch.masks[0].sum() > 0) == truth.any()
        blank += not truth.any()
        expected = {"dog": 17, "car": 11, "piano": 47}
        for place, index in enumerate(batch.classes[0].tolist()):
            if index >= 0:
                share = (truth == expected[CLASSES[index]]).mean()
                assert abs(float(batch.masks[0, place].mean()) - share) < 0.01
        slots = batch.cues[0].numpy()
        offered = [word for slot in slots for word, vector in words.items() if np.array_equal(slot, vector)]
        heard = {CLASSES[index] for index in batch.classes[0].tolist() if index >= 0}
        assert set(offered) == set(batches.list_cues(sample, frame)) and len(offered) == 2
        said = [float(word in heard) for word in offered]
        assert batch.cue_sounds[0, :2].tolist() == said and (batch.cue_sounds[0, 2:] == -1).all()
    assert blank == 2


def test_a_binary_head_sees_one_class(avss: Path, words: dict[str, NDArray[np.float32]]) -> None:
    batches = batches_of(recipe_of("binary"), avss, words)
    batch = batches.make(range(10), np.random.default_rng(0))
    assert batch.classes.shape == (10, 1) and set(batch.classes.flatten().tolist()) == {-1, 0}


def test_layouts_without_classes_say_less(tmp_path: Path, words: dict[str, NDArray[np.float32]]) -> None:
    write_s4(tmp_path / "one")
    write_ms3(tmp_path / "two")
    rng = np.random.default_rng(0)
    s4 = read_dataset(tmp_path / "one", "s4", "train")
    assert list_words(s4, "s4") == ["dog barking", "race car"]
    table = {word: words["dog"] for word in list_words(s4, "s4")}
    recipe = recipe_of("binary", extra_cue_rate=0.0, missed_cue_rate=0.0)
    batch = VideoBatches(recipe, s4, layout="s4", embeddings=table).make([0], rng)
    assert batch.cue_sounds[0, 0] == 1 and batch.cue_valid.sum() == 1
    ms3 = read_dataset(tmp_path / "two", "ms3", "train")
    batch = VideoBatches(recipe, ms3, layout="ms3", embeddings=words).make([0], rng)
    assert not batch.cue_valid.any(), "no cue is given"


def test_clips_are_heard_at_their_times(tmp_path: Path, words: dict[str, NDArray[np.float32]]) -> None:
    source = read_dataset(write_avss(tmp_path / "avss", videos=1), "avss", "train")[0]
    clip = tmp_path / "mine/train/a"
    (clip / "masks").mkdir(parents=True)
    shutil.copytree(source.frames[0].parent, clip / "frames")
    shutil.copy(source.audio, clip / "audio.wav")
    for number in (1, 3):
        Image.new("L", (64, 64), 255 * (number == 1)).save(clip / "masks" / f"{number}.png")
    settings = 'words = ["dog", "car"]\ntimes = [0, 1, 2, 3.4375, 4]'
    (tmp_path / "mine/clips.toml").write_text(f"[clips.a]\n{settings}\n")
    samples = read_dataset(tmp_path / "mine", "clips", "train")
    assert list_words(samples, "clips") == ["car", "dog"]
    recipe = recipe_of("binary", extra_cue_rate=0.0, missed_cue_rate=0.0)
    batch = VideoBatches(recipe, samples, layout="clips", embeddings=words).make([0, 1], np.random.default_rng(0))
    assert batch.classes.flatten().tolist() == [0, -1] and batch.cue_sounds[:, :2].tolist() == [[1, 1], [0, 0]]
    # The window of picture 3 starts 0.9375 s before it, at 2.5 s.
    assert np.array_equal(batch.waveform[1].numpy(), read_second(clip / "audio.wav", 5, 0.5))


def test_the_framing_of_the_recipe_cuts_the_sound(avss: Path, words: dict[str, NDArray[np.float32]]) -> None:
    recipe = recipe_of()
    contiguous = recipe.model_copy(update={"audio": recipe.audio.model_copy(update={"framing": "contiguous"})})
    sample = read_dataset(avss, "avss", "train")[0]
    for each, hop in ((recipe, 1.0), (contiguous, 0.96)):
        batch = batches_of(each, avss, words).make([3], np.random.default_rng(0))
        assert np.array_equal(batch.waveform[0].numpy(), read_second(sample.audio, 3, hop))


def test_a_checkpoint_keeps_its_framing(tmp_path: Path) -> None:
    recipe, path = recipe_of(), tmp_path / "m.safetensors"
    trained = recipe.model_copy(update={"audio": recipe.audio.model_copy(update={"framing": "contiguous"})})
    for metadata, framing in (({"recipe": trained.model_dump_json(by_alias=True)}, "contiguous"), (None, "per_second")):
        checkpoints.save(build(recipe, 0), path, metadata)
        assert assemble(recipe, [(None, path)]).model.recipe.audio.framing == framing


def test_the_released_cue_files(avss: Path, tmp_path: Path, words: dict[str, NDArray[np.float32]]) -> None:
    samples = read_dataset(avss, "avss", "train")
    path = tmp_path / "cues.json"
    path.write_text(json.dumps({samples[0].uid: {"f0": "dog,", "f1": "piano,None,"}}))
    cues = read_cue_file(path)
    batches = VideoBatches(recipe_of(), samples, layout="avss", embeddings=words, cue_file=cues)
    assert [batches.list_cues(samples[0], k) for k in range(3)] == [["dog"], ["piano"], []]
    assert list_words(samples, "avss", cues) == ["dog", "piano"] and split_words("old_man,") == ["old man"]
    path.write_text('["dog"]')
    with pytest.raises(DataError, match="it must be"):
        read_cue_file(path)
    with pytest.raises(InputNotFoundError):
        read_cue_file(tmp_path / "none.json")


def test_a_class_that_the_recipe_has_not(avss: Path, words: dict[str, NDArray[np.float32]]) -> None:
    recipe = recipe_of()
    less = recipe.model_copy(update={"head": recipe.head.model_copy(update={"classes": ("dog",)})})
    with pytest.raises(DataError, match="which is not a class of recipe tiny"):
        batches_of(less, avss, words).make(range(10), np.random.default_rng(0))


def test_only_what_should_move_moves(avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    recipe = recipe_of(videos={**VIDEOS, "frames_per_batch": 5})
    built = whole(recipe)
    before = {key: value.clone() for key, value in built.model.state_dict().items()}
    training = FineTuning(built, batches_of(recipe, avss, words), tmp_path, device="cpu")
    training.run_step()
    after = built.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    adapters, new = list_learnable(built.model, built.random)
    assert moved <= {*adapters, *new}
    assert "fusion.queries" not in moved and not any(key.startswith("audio_encoder.") for key in moved)
    for part in ("fusion.latents.", "fusion.sedam.", "fusion.pmqs."):
        assert any(key.startswith(part) for key in moved), part
    # An adapter's second layer is zero at first. Until it changes, the first layer has no gradient.
    assert {key for key in adapters if key.endswith(".up.bias")} <= moved
    assert "decoder.classifier.weight" in moved


def test_adapters_change_nothing_at_first() -> None:
    recipe = recipe_of()
    with_adapters, bare = build(recipe, 0), build(recipe.model_copy(update={"adapters": ()}), 1)
    bare.load_state_dict({k: v for k, v in with_adapters.state_dict().items() if not is_adapter(k)})
    image = torch.randn(1, 3, 64, 64)
    for a, b in zip(with_adapters.visual_encoder(image).keys, bare.visual_encoder(image).keys, strict=True):
        assert torch.equal(a, b)
    given = (torch.randn(1, 15_600) * 0.1, torch.randn(1, 4, 384), torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(with_adapters(image, *given)[0], bare(image, *given)[0])


def test_an_epoch_sees_every_frame(avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    recipe = recipe_of()
    training = FineTuning(whole(recipe), batches_of(recipe, avss, words), tmp_path, device="cpu")
    assert training.steps_per_epoch == 3 and training.steps == 6
    epochs = [
        [n for step in steps for part in (0, 1) for n in training.numbers(step, part)]
        for steps in ((0, 1, 2), (3, 4, 5))
    ]
    assert all(set(epoch) == set(range(10)) for epoch in epochs) and epochs[0] != epochs[1]


def test_the_gradients_of_a_step_are_the_mean_of_its_batches(
    avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    recipe = recipe_of(gradient_clip=1e9)
    training = FineTuning(whole(recipe), batches_of(recipe, avss, words), tmp_path, device="cpu")
    bias = dict(training.model.named_parameters())["decoder.classifier.bias"]
    alone = []
    for part in (0, 1):
        training._learn_from(part, is_last=True)
        assert bias.grad is not None
        alone.append(bias.grad.clone())
        training.prepared.zero_grad()
    training._learn_from(0, is_last=False)
    training._learn_from(1, is_last=True)
    assert bias.grad is not None and bias.grad.abs().max() > 0
    # Each is already divided by their number.
    torch.testing.assert_close(bias.grad, alone[0] + alone[1])


def test_each_group_has_its_rate(avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    recipe = recipe_of(videos={**VIDEOS, "adapter_learning_rate": 1e-4})
    training = FineTuning(whole(recipe), batches_of(recipe, avss, words), tmp_path, device="cpu")
    training.step = 5
    training.run_step()
    rates = sorted({group["lr"] for group in training.optimizer.param_groups})
    assert len(rates) == 2 and rates[0] == pytest.approx(rates[1] / 30) and rates[1] <= 3e-3


def test_a_broken_run_goes_on_to_the_same_weights(
    avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    recipe = recipe_of()
    straight = train_on_videos(whole(recipe), batches_of(recipe, avss, words), tmp_path / "a")

    class Broken(Exception):
        pass

    def breaks(progress: Any) -> None:
        if progress.step == 5:
            raise Broken

    with pytest.raises(Broken):
        train_on_videos(
            whole(recipe),
            batches_of(recipe, avss, words),
            tmp_path / "b",
            device="cpu",
            on_progress=breaks,
            save_every_steps=2,
        )
    again = train_on_videos(whole(recipe), batches_of(recipe, avss, words), tmp_path / "b", device="cpu")
    one, other_run = weight_files.read(straight)[0], weight_files.read(again)[0]
    assert all(torch.equal(one[key], other_run[key]) for key in one)
    lines = [json.loads(line)["step"] for line in (tmp_path / "b/log.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 7)), "ten frames, four in a step, twice"
    other = recipe_of(learning_rate=1e-5)
    with pytest.raises(CheckpointError, match="trained with another recipe"):
        train_on_videos(whole(other), batches_of(other, avss, words), tmp_path / "b")


def test_sam_learns_its_adapters_and_the_fusion(
    avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    recipe = sam_recipe(videos={**VIDEOS, "epochs": 15, "frames_per_batch": 10, "accumulation_steps": 1})
    built = whole(recipe)
    before = {key: value.clone() for key, value in built.model.state_dict().items()}
    totals: list[float] = []
    train_on_videos(
        built, batches_of(recipe, avss, words), tmp_path, on_progress=lambda p: totals.append(p.values["total"])
    )
    moved = {key for key, value in built.model.state_dict().items() if not torch.equal(before[key], value)}
    adapters, new = list_learnable(built.model, built.random)
    assert moved <= {*adapters, *new} and "fusion.queries" not in moved
    for part in ("visual_encoder.", "decoder.layers.", "decoder.final_attention."):
        assert any(key.startswith(part) for key in moved), part
    # The padding and the blank frames count too: the one mask must be blank where nothing sounds.
    assert len(totals) == 15 and np.mean(totals[-3:]) < np.mean(totals[:3]) - 0.02


@pytest.mark.parametrize(
    "recipe",
    [
        sam_recipe(),
        sam_recipe(loss_sampling="points", loss_points=300),
        recipe_of(loss_sampling="points", loss_points=300),
    ],
    ids=["sam cells", "sam points", "mask2former points"],
)
def test_a_run_goes_on_from_a_state(
    recipe: Recipe, avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    straight = train_on_videos(whole(recipe), batches_of(recipe, avss, words), tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train_on_videos(
            whole(recipe), batches_of(recipe, avss, words), tmp_path / "b", on_progress=stop, save_every_steps=2
        )
    again = train_on_videos(whole(recipe), batches_of(recipe, avss, words), tmp_path / "b")
    one, other = weight_files.read(straight)[0], weight_files.read(again)[0]
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_picture_that_is_padded_keeps_its_shape(
    avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    sample = read_dataset(avss, "avss", "train")[0]
    wide = []
    for name, path in (("frame", sample.frames[0]), ("mask", sample.masks[0])):
        assert path is not None
        with Image.open(path) as picture:
            resized = picture.resize((128, 64), Image.Resampling.NEAREST)
        wide.append(tmp_path / f"{name}.png")
        resized.save(wide[-1])
    clip = replace(sample, frames=(wide[0],), masks=(wide[1],))
    padded, stretched = (
        VideoBatches(recipe, [clip], layout="avss", embeddings=words).make([0], np.random.default_rng(0))
        for recipe in (sam_recipe(), recipe_of("binary"))
    )
    # 128 × 64 becomes 64 × 32 above 32 rows of padding: a mask of half the height at the top.
    assert not padded.image[0, :, 32:].any() and not padded.masks[0, 0, 8:].any()
    squeezed = stretched.masks[0, 0].unflatten(0, (8, 2)).mean(1)
    assert torch.allclose(padded.masks[0, 0, :8], squeezed, atol=0.2) and padded.masks.sum() > 1
    assert padded.extent.tolist() == [[1.0, 0.5]] and stretched.extent.tolist() == [[1.0, 1.0]]


def test_a_few_shots_follow_the_seen_classes(words: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    write_v3(tmp_path / "v3", size=64)
    recipe = recipe_of()
    weights = None
    layouts: tuple[Layout, Layout] = ("v3-0-shot", "v3-1-shot")
    for layout, steps in zip(layouts, (8, 4), strict=True):
        samples = read_dataset(tmp_path / "v3", layout, "train")
        batches = VideoBatches(recipe, samples, layout=layout, embeddings=words)
        built = whole(recipe) if weights is None else assemble(recipe, [(None, weights)])
        start = built.model.state_dict()["fusion.fallback_cue"].clone()
        if weights is not None:
            assert torch.equal(start, weight_files.read(weights)[0]["fusion.fallback_cue"])
        weights = train_on_videos(built, batches, tmp_path / layout)
        lines = (tmp_path / layout / "log.jsonl").read_text().splitlines()
        assert len(lines) == steps, "five frames of v1m and ten of v2; five of the shot: four in a step, twice"


def test_what_can_t_be_trained_is_said(avss: Path, words: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    plain = Recipe.model_validate({**TINY, "tagger": {}, "train": {}})
    with pytest.raises(RecipeError, match=r"add \[train\.videos\]"):
        FineTuning(whole(plain), batches_of(plain, avss, words), tmp_path, device="cpu")
    released = load_recipe("segpref")
    small = recipe_of().model_copy(update={"fusion": released.fusion})
    fine = sam_recipe()
    fine = fine.model_copy(update={"sam": fine.sam.model_copy(update={"patch": 8})})
    with pytest.raises(RecipeError, match=r"set sam\.patch = 16"):
        FineTuning(whole(fine), batches_of(fine, avss, words), tmp_path, device="cpu")
    with pytest.raises(RecipeError, match="can be exported, but not trained here"):
        FineTuning(Assembly(build(small), {}, ()), batches_of(small, avss, words), tmp_path, device="cpu")


def test_two_videos_are_learnt_by_heart(words: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    size = 128  # masks have a stride of 4: at 64 pixels the edges alone would cost five points
    write_avss(tmp_path / "data", videos=2, size=size)
    videos = {"epochs": 80, "frames_per_batch": 10, "accumulation_steps": 1, "adapter_learning_rate": 3e-3}
    recipe = recipe_of(videos=videos, missed_cue_rate=0.0, extra_cue_rate=0.0, warmup_steps=10)
    recipe = recipe.model_copy(update={"image": recipe.image.model_copy(update={"sizes": ((size, size),)})})
    built = assemble(recipe, (), random_weights_seed=0)
    batches = batches_of(recipe, tmp_path / "data", words)
    train_on_videos(built, batches, tmp_path / "run")
    model = built.model.eval()
    ious = []
    for number, (sample, frame) in enumerate(batches.frames):
        batch = batches.make([number], np.random.default_rng(0))
        with torch.no_grad():
            scores, _ = model(batch.image, batch.waveform, batch.cues, batch.cue_valid)
        labels = labels_of(scores[0].numpy(), (size, size), threshold=0.5)
        path = sample.masks[frame]
        assert path is not None
        truth = load_mask(path, "avss", "semantic")
        named = np.zeros_like(truth)
        for index, value in enumerate((17, 11, 47)):
            named[truth == value] = index + 1
        union = ((labels > 0) | (named > 0)).sum()
        ious.append(((labels == named) & (named > 0)).sum() / union if union else float(union == 0))
    assert len(ious) == 10 and np.mean(ious) > 0.95, ious
