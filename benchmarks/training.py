"""Seconds of a training step on composed scenes of a media folder.

    python -m benchmarks run training --data MEDIA [--device cuda] [--recipe teso-nano] [--out FILE.json]

For every picture size of the recipe: three warm-up steps, then the median of ``--steps``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_files import add_out, record
from teso_deploy.comparison.report import environment_of
from teso_deploy.evaluation.datasets.media_folder import read_library
from teso_deploy.recipe import load_recipe
from teso_deploy.training.batches import SceneBatches
from teso_deploy.training.loop import Trainer
from teso_deploy.training.teachers import load_teachers

WARM_UP_STEPS = 3


def measure(recipe_name: str, data: Path, *, device: str, steps: int) -> dict[str, Any]:
    """Time steps whose scenes, teachers included, are made in the same process, and return the report.

    The time of a step does not depend on the meaning of the cue words, so their embeddings are random.
    """
    recipe = load_recipe(recipe_name)
    assert recipe.train is not None
    library = read_library(data, "train", hold_out=recipe.train.hold_out)
    teachers = load_teachers(recipe.train, data)
    rng = np.random.default_rng(0)
    words = {*library.pictures, *library.sounds}
    embeddings = {
        word: rng.standard_normal(recipe.text.dim).astype(np.float32) / np.float32(20) for word in sorted(words)
    }
    rows = []
    for phase in recipe.train.phases:
        train = recipe.train.model_copy(update={"phases": (phase,), "encoders": None})
        alone = recipe.model_copy(update={"train": train})
        trainer = Trainer(
            alone,
            SceneBatches(alone, library, embeddings),
            Path(os.devnull),
            device=torch.device(device),
            teachers=teachers,
        )
        times, composing = [], []
        for step in range(WARM_UP_STEPS + steps):
            before = time.perf_counter()
            trainer.lesson(step)
            between = time.perf_counter()
            trainer.run_step()  # it reads its losses back, so the device has finished
            composing.append(between - before)
            times.append(time.perf_counter() - between)
        rows.append(
            {
                "name": f"{phase.size[0]}x{phase.size[1]}",
                "step_seconds": round(statistics.median(times[WARM_UP_STEPS:]), 4),
                "of_which_composing_seconds": round(statistics.median(composing[WARM_UP_STEPS:]), 4),
                "scenes_per_step": recipe.train.scenes_per_step,
                "sounds_per_scene": recipe.train.sounds_per_scene,
            }
        )
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "schema_version": 1,
        "recipe": recipe.name,
        "device": name,
        "torch": torch.__version__,
        "rows": rows,
        "bound_by": f"Medians of {steps} steps; the scenes are composed in the same process.",
        "environment": environment_of(torch.get_num_threads(), libraries=("torch",)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("TESO_AVS_DATA"), required="TESO_AVS_DATA" not in os.environ
    )
    parser.add_argument("--recipe", default="teso-nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    add_out(parser)
    options = parser.parse_args(arguments)
    report = measure(options.recipe, Path(options.data), device=options.device, steps=options.steps)
    record(f"training-{options.device}", f"A training step of {report['recipe']}", report, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
