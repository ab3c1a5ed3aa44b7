"""The contribution of InfoNCE without temperature (paper, eq. 10): the same trainings with it and without, by seed.

    python -m benchmarks run infonce --data MEDIA --work DIR [--steps 300] [--seeds 3] [--start FILE.safetensors]

Each training begins with the encoders and the decoder of the shipped model (or of a checkpoint), and a random fusion.
Both arms of a seed have the same initial weights and the same scenes at 112 × 112. Their models are scored on the same
scenes. The number of steps is fixed before anything is scored. An interrupted run continues. Writes
``results/infonce-<recipe>.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks.ablations import SIZE, embed_all_words, make_variant, score_scenes, train_variant
from benchmarks.results_files import add_out, record
from benchmarks.shipped_weights import read_bundle_weights, restore_batch_norms
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.report import environment_of
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, read_library
from teso_deploy.models import build, checkpoints
from teso_deploy.models.fusion import Fusion
from teso_deploy.models.teso import Teso
from teso_deploy.outputs import as_json, write_text
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.recipe import EncoderPhase, Recipe, load_recipe
from teso_deploy.training.batches import SceneBatches
from teso_deploy.training.loop import START_PARTS, WEIGHTS
from teso_deploy.training.losses import compute_info_nce

#: Name of the arm → weight of InfoNCE. Its temperature is 1 in both.
ARMS = {"with InfoNCE": 1.0, "without InfoNCE": 0.0}
TEMPERATURE = 1.0
#: The term is reported at the temperature of the paper (none, so 1), and at that of the shipped model's training.
TEMPERATURES = (0.1, 1.0)
WINDOWS = 256
#: The columns of the page. The report has all numbers.
COLUMNS = (
    "one source (mIoU)",
    "two sources (mIoU)",
    "silent distractor (mIoU)",
    "muted (blank)",
    "white noise (blank)",
    "off-screen (blank)",
)


def make_windows(recipe: Recipe, library: MediaLibrary, embeddings: Mapping[str, NDArray[np.float32]]) -> torch.Tensor:
    """Compose the audio windows (N, 15600) on which InfoNCE and the batch norms are measured."""
    phase = EncoderPhase(size=(32, 32), steps=1, pictures_per_step=1, windows_per_step=WINDOWS)
    return SceneBatches(recipe, library, embeddings).make_lesson(0, phase).waveform


def write_start(recipe: Recipe, path: Path, windows: torch.Tensor) -> Path:
    """Write a checkpoint with the encoders and the decoder of the shipped model. Keep one that is there."""
    if not path.is_file():
        model = build(recipe, 0)
        model.load_state_dict(read_bundle_weights(Bundle.open(), (*START_PARTS, "decoder")), strict=False)
        restore_batch_norms(model.audio_encoder, windows)
        checkpoints.save(model, path)
    return path


def measure_term(model: Teso, windows: torch.Tensor) -> dict[str, float]:
    """Compute the InfoNCE term, with weight 1, on some windows at each temperature."""
    assert isinstance(model.fusion, Fusion)
    with torch.no_grad():
        latents = model.fusion.latents(model.audio_encoder(windows)).float()
    return {str(temperature): compute_info_nce(latents, temperature).item() for temperature in TEMPERATURES}


def measure_terms(recipe: Recipe, folder: Path, *, start: Path, windows: torch.Tensor) -> dict[str, dict[str, float]]:
    """Compute the InfoNCE term before and after a training."""
    assert recipe.train is not None
    model = build(recipe, recipe.train.seed)
    checkpoints.load(model, start, parts=tuple(f"{part}." for part in (*START_PARTS, "decoder")))
    terms = {"start": measure_term(model, windows)}
    checkpoints.load(model, folder / WEIGHTS)
    return terms | {"end": measure_term(model, windows)}


def compare(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """Compare the arms in one figure.

    The trainings are paired by seed. The interval of the mean difference is Student's, at 95 %.

    Args:
        rows: A row for each training: arm, seed and figures.
        column: The figure.
    """
    by_arm = {arm: [row[column] for row in rows if row["arm"] == arm] for arm in ARMS}
    first, second = by_arm.values()
    differences = [one - other for one, other in zip(first, second, strict=True)]
    difference, half = statistics.mean(differences), math.nan
    if len(differences) > 1:
        error = statistics.stdev(differences) / len(differences) ** 0.5
        half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    found: dict[str, Any] = {"name": column}
    for arm, values in by_arm.items():
        found[arm] = round(statistics.mean(values), 4)
        found[f"{arm}, spread"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
    interval = None if math.isnan(half) else [round(difference - half, 4), round(difference + half, 4)]
    return found | {"difference": round(difference, 4), "interval_95": interval}


def run_training(
    recipe: Recipe,
    folder: Path,
    *,
    data: Path,
    start: Path,
    embeddings: Mapping[str, NDArray[np.float32]],
    windows: torch.Tensor,
    scenes: int,
    scene_seeds: int,
) -> dict[str, Any]:
    """Train and score one model, or read its scores.

    Args:
        recipe: The recipe of the variant.
        folder: The folder of its training.
        data: The media folder.
        start: Checkpoint of the encoders and of the decoder.
        embeddings: Word → (d_T,).
        windows: Audio windows (N, 15600) for the InfoNCE term.
        scenes: Scenes of a row and seed.
        scene_seeds: Seeds of the scenes.
    """
    path = folder / f"scores-{scenes}-{scene_seeds}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    pipeline: Pipeline = train_variant(
        recipe, folder, data=data, start=start, embeddings=embeddings, save_every_steps=10
    )
    figures, scores = score_scenes(pipeline, read_library(data, "test"), scenes=scenes, seeds=scene_seeds)
    terms = measure_terms(recipe, folder, start=start, windows=windows)
    found = {"figures": figures, "scores": scores, "info_nce": terms}
    write_text(path, as_json(found))
    return found


def measure(
    recipe: Recipe, *, data: Path, work: Path, start: Path | None, steps: int, seeds: int, scenes: int, scene_seeds: int
) -> dict[str, Any]:
    """Train and score both arms for every seed, and return the report."""
    assert recipe.train is not None
    embeddings = embed_all_words(recipe, data)
    windows = make_windows(recipe, read_library(data, "train", hold_out=recipe.train.hold_out), embeddings)
    begin = start or write_start(recipe, work / "start.safetensors", windows)
    runs = []
    for seed in range(seeds):
        for arm, weight in ARMS.items():
            values = {"seed": seed, "info_nce": weight, "info_nce_temperature": TEMPERATURE}
            variant = make_variant(recipe, f"{arm} seed {seed}", steps=steps, train=values)
            found = run_training(
                variant,
                work / f"{variant.name}-{steps}",
                data=data,
                start=begin,
                embeddings=embeddings,
                windows=windows,
                scenes=scenes,
                scene_seeds=scene_seeds,
            )
            runs.append({"arm": arm, "seed": seed, **found["figures"], **found})
            print({"arm": arm, "seed": seed, **found["figures"], **found["info_nce"]}, flush=True)
    return {
        "schema_version": 1,
        "rows": [compare(runs, column) for column in COLUMNS],
        "runs": runs,
        "bound_by": f"{steps} steps at {SIZE[0]} × {SIZE[1]} in each of {seeds} trainings an arm, paired by seed; "
        f"{scene_seeds} seeds of {scenes} scenes a row; {read_library(data, 'test').fingerprint}",
        "environment": environment_of(torch.get_num_threads(), libraries=("torch",)),
    }


def write_page(recipe: str, report: Mapping[str, Any]) -> str:
    """Write the report as a page."""
    lines = [f"# InfoNCE without temperature, on and off, in {recipe}", ""]
    lines += ["| figure | with | without | difference | 95 % interval |", "|---|---|---|---|---|"]
    with_arm, without_arm = ARMS
    for row in report["rows"]:
        arms = [f"{row[arm]} ± {row[f'{arm}, spread']}" for arm in (with_arm, without_arm)]
        interval = "" if row["interval_95"] is None else "{} … {}".format(*row["interval_95"])
        lines.append(f"| {row['name']} | {' | '.join(arms)} | {row['difference']:+} | {interval} |")
    lines += [
        "",
        "± is the standard deviation over the seeds. The interval is Student's, of the paired differences.",
        "",
    ]
    lines += ["The InfoNCE term itself, with weight 1, on audio windows (mean over the seeds):", ""]
    lines += ["| arm | temperature | at the start | at the end |", "|---|---|---|---|"]
    for arm in ARMS:
        for temperature in map(str, TEMPERATURES):
            values = [
                statistics.mean(run["info_nce"][moment][temperature] for run in report["runs"] if run["arm"] == arm)
                for moment in ("start", "end")
            ]
            lines.append(f"| {arm} | {temperature} | {values[0]:.4f} | {values[1]:.4f} |")
    lines += ["", report["bound_by"], ""]
    lines += [f"- {name}: {value}" for name, value in report["environment"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("TESO_AVS_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--start", type=Path, help="checkpoint of the recipe; default: the shipped model's weights")
    parser.add_argument("--recipe", default="teso-nano")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm")
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--scene-seeds", type=int, default=3)
    add_out(parser)
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("name a media folder: --data or TESO_AVS_DATA")
    recipe = load_recipe(options.recipe)
    report = measure(
        recipe,
        data=Path(options.data),
        work=options.work,
        start=options.start,
        steps=options.steps,
        seeds=options.seeds,
        scenes=options.scenes,
        scene_seeds=options.scene_seeds,
    )
    page = write_page(recipe.name, report)
    record(f"infonce-{recipe.name}", "", report, out=options.out, page=page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
