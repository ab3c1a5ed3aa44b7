"""Teachers answer for lessons, or are refused in a sentence."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.models import build
from teso_deploy.models.audio import LogMel
from teso_deploy.recipe import EncoderPhase, Recipe, TeacherRecipe, load_recipe
from teso_deploy.training.batches import SceneBatches
from teso_deploy.training.losses import (
    TrainingHeads,
    compute_encoder_losses,
)
from teso_deploy.training.teachers import Teachers, TensorFlowLiteTeacher, compute_yamnet_patches, load_teachers


def test_teachers_answer_for_a_lesson_and_the_heads_learn_from_them(
    training_recipe: Recipe, scene_batches: SceneBatches
) -> None:
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
    lesson = teachers.answer(scene_batches.make_lesson(0, phase))
    assert [tuple(x.shape) for x in lesson.picture_features] == [(6, 3, 8, 8), (6, 3, 4, 4), (6, 3, 2, 2)]
    assert [tuple(x.shape) for x in lesson.sound_features] == [(5, 2, 1, 1)]

    taught = TeacherRecipe(file="", tensors=())
    train = scene_batches.train.model_copy(update={"picture_teacher": taught, "sound_teacher": taught})
    model = build(training_recipe, 0).train()
    picture_dims, sound_dims = teachers.channels
    heads = TrainingHeads(
        training_recipe, audio_words=len(scene_batches.audio_words), picture_dims=picture_dims, sound_dims=sound_dims
    )
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=3e-3)
    history = []
    for _ in range(60):
        losses, _, _ = compute_encoder_losses(model, heads, lesson, train=train)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert set(history[0]) == {"dense_tags", "audio_tags", "picture_teacher", "sound_teacher"}
    for name in history[0]:
        assert history[-1][name] < 0.8 * history[0][name], name


def test_a_teacher_that_is_not_there_or_another_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(InputNotFoundError, match="no teacher"):
        TensorFlowLiteTeacher(tmp_path / "t.tflite", ["x"])
    (tmp_path / "t.tflite").write_bytes(b"not a network at all")
    with pytest.raises(DataError, match="not a TensorFlow Lite file"):
        TensorFlowLiteTeacher(tmp_path / "t.tflite", ["x"])


def test_the_shared_teachers_see_and_hear() -> None:
    """With the real media: the feature maps that the recipe names, at any size, and YAMNet's class for silence."""
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
    (heard,) = scores(compute_yamnet_patches(torch.zeros(1, 15_600), LogMel()))
    with (data / "weights/yamnet_class_map.csv").open() as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    assert names[int(heard.flatten().argmax())] == "Silence"
