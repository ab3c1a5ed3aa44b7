"""Fixtures of the training tests: a recipe of a few steps, embeddings, and scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.evaluation.datasets.media_folder import MediaLibrary
from teso_deploy.recipe import Recipe, TrainRecipe

if TYPE_CHECKING:
    from teso_deploy.training.batches import SceneBatches

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


@pytest.fixture(scope="session")
def training_recipe(tiny_recipe: Recipe) -> Recipe:
    """Return the tiny recipe with two phases of three steps."""
    return tiny_recipe.model_copy(update={"train": TrainRecipe.model_validate(TRAIN)})


@pytest.fixture(scope="module")
def word_embeddings() -> dict[str, NDArray[np.float32]]:
    """Return embeddings of the three words of the media, and of one that no picture shows."""
    rng = np.random.default_rng(0)
    return {
        word: rng.standard_normal(384).astype(np.float32) / np.float32(20) for word in ("dog", "cow", "car", "speech")
    }


@pytest.fixture(scope="module")
def scene_batches(
    training_recipe: Recipe, shapes_and_tones: MediaLibrary, word_embeddings: dict[str, NDArray[np.float32]]
) -> SceneBatches:
    """Make scenes of the test's media."""
    from teso_deploy.training.batches import SceneBatches

    return SceneBatches(training_recipe, shapes_and_tones, word_embeddings)
