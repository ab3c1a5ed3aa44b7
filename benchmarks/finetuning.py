"""Seconds and memory of a training step on videos, at full size, on seeded noise.

    python -m benchmarks run finetuning [--device cuda] [--recipe teso-m2f-swin-b] [--steps 5] [--out FILE.json]

The foundation has random weights and is frozen. Adapters and fusion learn, as with a checkpoint. After one warm-up
step, the median is taken. Memory is the highest of the process, on a GPU that of torch's allocator.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.results_files import add_out, record
from teso_deploy.comparison.report import environment_of
from teso_deploy.models.assembly import Assembly
from teso_deploy.models.teso import build
from teso_deploy.recipe import Recipe, load_recipe
from teso_deploy.training.batches import Batch, get_mask_stride
from teso_deploy.training.finetune import FineTuning, is_adapter
from teso_deploy.training.videos import VideoBatches
from teso_deploy.types import WINDOW_SAMPLES


class NoiseBatches:
    """Replaces a data set: noise, a box in each frame, and one cue that sounds."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __len__(self) -> int:
        return 1000

    def make(self, numbers: Sequence[int], rng: np.random.Generator) -> Batch:
        """Make a batch, as :meth:`VideoBatches.make` does."""
        count, (height, width), text = len(numbers), self.recipe.image.sizes[0], self.recipe.text
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
        assert self.recipe.train is not None
        stride = get_mask_stride(self.recipe.train)
        rows, columns = height // stride, width // stride
        masks = torch.zeros(count, 1, rows, columns)
        masks[:, :, rows // 4 : rows // 2, columns // 4 : columns // 2] = 1
        valid = torch.zeros(count, text.max_cues, dtype=torch.bool)
        valid[:, 0] = True
        sounds = torch.full((count, text.max_cues), -1.0)
        sounds[:, 0] = 1.0
        return Batch(
            image=torch.randn(count, 3, height, width, generator=generator),
            photograph=torch.zeros(count, 1, 1, 3, dtype=torch.uint8),
            dense_tags=torch.zeros(count, height // 4, width // 4, dtype=torch.int64),
            waveform=torch.randn(count, WINDOW_SAMPLES, generator=generator) * 0.1,
            audio_tags=torch.zeros(count, 1),
            cues=torch.randn(count, text.max_cues, text.dim, generator=generator) * valid[..., None],
            cue_valid=valid,
            cue_sounds=sounds,
            classes=torch.zeros(count, 1, dtype=torch.int64),
            masks=masks,
            extent=torch.ones(count, 2),
        )


def measure(recipe_name: str, device: str, steps: int) -> dict[str, Any]:
    """Measure one recipe on one device, and return the report."""
    recipe = load_recipe(recipe_name)
    model = build(recipe, 0)
    new = tuple(
        key for key in model.state_dict() if is_adapter(key) or (key.startswith("fusion.") and key != "fusion.queries")
    )
    batches = cast(VideoBatches, NoiseBatches(recipe))
    training = FineTuning(Assembly(model, {}, new), batches, Path(os.devnull), device=device)
    times = []
    for _ in range(1 + steps):
        before = time.perf_counter()
        training.run_step()  # it reads its losses back, so the device has finished
        times.append(time.perf_counter() - before)
    on_gpu = training.accelerator.device.type == "cuda"
    highest = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    row = {
        "name": recipe.name,
        "step_seconds": round(statistics.median(times[1:]), 3),
        "frames_per_batch": training.phase.frames_per_batch,
        "batches_per_step": training.phase.accumulation_steps,
        "highest_memory_gib": round(highest / 2**30, 2),
        "learning_parameters": learning,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    name = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "schema_version": 1,
        "device": name,
        "torch": torch.__version__,
        "rows": [row],
        "bound_by": f"Median of {steps} steps on seeded noise, with random weights.",
        "environment": environment_of(torch.get_num_threads(), libraries=("torch",)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="teso-m2f-swin-b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=5)
    add_out(parser)
    options = parser.parse_args(arguments)
    report = measure(options.recipe, options.device, options.steps)
    record(f"finetuning-{options.device}", f"A training step of {options.recipe} on videos", report, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
