"""Training on a GPU, on scenes and on videos: the CPU's losses, and a state that can be continued on either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from teso_deploy.evaluation.datasets.reading import read_dataset
from teso_deploy.models.assembly import assemble
from teso_deploy.recipe import Recipe, TrainPhase, TrainRecipe
from teso_deploy.training.finetune import train_on_videos
from teso_deploy.training.loop import Progress, train_model
from teso_deploy.training.videos import VideoBatches
from tests.support.avs_layouts import write_avss

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_torch")]


def test_losses_on_both_devices_agree_and_a_run_goes_on_on_the_other(
    tiny_recipe: Recipe, media_folder: Path, tmp_path: Path
) -> None:
    train = TrainRecipe(
        phases=(TrainPhase(size=(32, 32), steps=4),),
        scenes_per_step=2,
        sounds_per_scene=3,
        warmup_steps=2,
        loss_points=100,
    )
    recipe = tiny_recipe.model_copy(update={"train": train})
    rng = np.random.default_rng(0)
    embeddings = {
        word: rng.standard_normal(384).astype(np.float32) / np.float32(20) for word in ("dog", "cow", "car", "speech")
    }
    totals: dict[str, list[float]] = {"cpu": [], "cuda": []}

    def keep(device: str) -> object:
        return lambda progress: totals[device].append(progress.values["total"])

    for device in totals:
        train_model(
            recipe,
            media_folder,
            tmp_path / device,
            embeddings=embeddings,
            device=device,
            on_progress=keep(device),  # type: ignore[arg-type]
            save_every_steps=2,
        )
    assert totals["cuda"][0] == pytest.approx(totals["cpu"][0], rel=1e-3)
    assert totals["cuda"] == pytest.approx(totals["cpu"], rel=0.05)

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise Stop

    with pytest.raises(Stop):
        train_model(
            recipe,
            media_folder,
            tmp_path / "both",
            embeddings=embeddings,
            device="cuda",
            on_progress=stop,
            save_every_steps=2,
        )
    assert train_model(
        recipe, media_folder, tmp_path / "both", embeddings=embeddings, device="cpu", save_every_steps=2
    ).is_file()


def test_videos_teach_the_same_on_both_devices(tiny_recipe: Recipe, tmp_path: Path) -> None:
    write_avss(tmp_path / "data", videos=2, size=64)
    head = {"kind": "semantic", "classes": ("dog", "car", "piano")}
    videos = {"epochs": 2, "frames_per_batch": 2, "accumulation_steps": 2}
    tables = {"tagger": {}, "head": head, "train": {"warmup_steps": 2, "mixed_precision": False, "videos": videos}}
    recipe = Recipe.model_validate({**tiny_recipe.model_dump(), **tables})
    rng = np.random.default_rng(0)
    words = {word: rng.standard_normal(384).astype(np.float32) / np.float32(20) for word in head["classes"]}
    batches = VideoBatches(recipe, read_dataset(tmp_path / "data", "avss", "train"), layout="avss", embeddings=words)
    totals: dict[str, list[float]] = {"cpu": [], "cuda": []}

    def keep(device: str) -> Callable[[Progress], None]:
        return lambda progress: totals[device].append(progress.values["total"])

    for device in totals:
        built = assemble(recipe, (), random_weights_seed=0)
        train_on_videos(built, batches, tmp_path / device, device=device, on_progress=keep(device))
    assert totals["cuda"][0] == pytest.approx(totals["cpu"][0], rel=1e-3)
    assert totals["cuda"] == pytest.approx(totals["cpu"], rel=0.05)
