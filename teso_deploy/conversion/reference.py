"""Reference inputs and PyTorch's outputs for them, so that parity can be checked without torch.

One picture and four sounds on it: its own with cues, the same muted, another sound, and
its own with no cue offered. The picture's tensors have a batch of 1, the rest one of 4. Of a
bucket that is not the first, what depends on the size is stored as ``masks@288x512``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teso_deploy.bundle import sized_name
from teso_deploy.conversion.pytorch_engine import module_engines, pytorch_engines
from teso_deploy.cues.table import CueTable
from teso_deploy.media.audio import read_audio
from teso_deploy.media.reader import VideoReader
from teso_deploy.models.graphs import graph_specs
from teso_deploy.models.teso import Teso
from teso_deploy.pipeline.preprocess import fitted_size, normalised, resized
from teso_deploy.program import MASKS, TESO, group_inputs, merge_tensors, run_program
from teso_deploy.recipe import Recipe
from teso_deploy.types import WINDOW_SAMPLES, ImageSize
from teso_deploy.verification.probes import ROWS, run_whole

#: Probabilities are stored in steps finer than any two implementations agree in; a quarter of the bytes are left.
MASK_STEP = 2.0**-20


def random_inputs(recipe: Recipe, size: ImageSize, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Seeded noise in the shapes of the inputs, for models that no clip means anything to."""
    rng = np.random.default_rng(seed)
    height, width = size
    waveform = rng.standard_normal((len(ROWS), WINDOW_SAMPLES)).astype(np.float32) * np.float32(0.1)
    waveform[1] = 0
    waveform[3] = waveform[0]
    cues = rng.standard_normal((len(ROWS), recipe.text.max_cues, recipe.text.dim)).astype(np.float32)
    cues /= np.linalg.norm(cues, axis=2, keepdims=True)
    valid = np.ones((len(ROWS), recipe.text.max_cues), np.bool_)
    valid[3] = False
    image = rng.standard_normal((1, 3, height, width)).astype(np.float32)
    return {"image": image, "waveform": waveform, "cues": cues * valid[..., None], "cue_valid": valid}


def clip_inputs(recipe: Recipe, size: ImageSize, table: CueTable, clip: Path) -> dict[str, NDArray[Any]]:
    """A frame of a clip at a bucket's size, its first two sounds and what is visible, as the JSON beside it says."""
    script = json.loads(clip.with_suffix(".json").read_text(encoding="utf-8"))
    spans = script["heard"]
    first, second = list(spans)[:2]
    middles = {name: sum(spans[name][0]) / 2 for name in (first, second)}
    with VideoReader(clip) as reader:
        frame = next(frame for frame in reader if frame.pts_seconds >= middles[first])
    track = read_audio(clip)
    own, other = (track.window(middles[name], "centred").samples for name in (first, second))
    cues, none = table.lookup(script["visible"]), table.none()
    picture = resized(frame.image, fitted_size(frame.image, size, recipe.image.fit))
    return {
        "image": normalised(picture, recipe.image.mean, recipe.image.std, size),
        "waveform": np.stack([own, np.zeros(WINDOW_SAMPLES, np.float32), other, own]),
        "cues": np.stack([cues.embeddings, cues.embeddings, cues.embeddings, none.embeddings]),
        "cue_valid": np.stack([cues.valid, cues.valid, cues.valid, none.valid]),
    }


def reference_outputs(model: Teso, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """PyTorch's outputs of every graph for the reference inputs, by tensor name."""
    found = run_whole(TESO, pytorch_engines(model), inputs)
    return found | {MASKS: np.rint(found[MASKS] / MASK_STEP) * MASK_STEP}


def reference_arrays(model: Teso, inputs: Callable[[ImageSize], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Everything that ``reference.npz`` holds; ``inputs`` gives those of a bucket, sounds and cues being equal."""
    first, *others = model.recipe.image.sizes
    given = inputs(first)
    arrays = given | reference_outputs(model, given)
    specs = graph_specs(model.recipe)
    of_the_picture = [
        name for stage in TESO.names if "image" in TESO.dependencies(stage) for name in specs[stage].outputs
    ]
    for size in others:
        given = inputs(size)
        at_size = given | reference_outputs(model, given)
        for name in ("image", *of_the_picture):
            arrays[sized_name(name, size)] = at_size[name]
    return arrays


@torch.no_grad()
def example_arguments(
    model: Teso, size: ImageSize, device: torch.device | None = None
) -> dict[str, tuple[torch.Tensor, ...]]:
    """Arguments of every graph, batch 2; on ``meta`` they are shapes alone."""
    noise = random_inputs(model.recipe, size)
    given = {name: torch.from_numpy(value[:2]).to(device) for name, value in noise.items()}
    given["image"] = given["image"].expand(2, -1, -1, -1).clone()
    # What no other stage takes is not run.
    taken = {source for stage in TESO.stages for source in stage.inputs}
    stages = [stage for stage in TESO.stages if stage.name in taken]
    tensors = merge_tensors(run_program(TESO, module_engines(model), group_inputs(given), stages=stages))
    return {name: tuple(tensors[tensor] for tensor in spec.inputs) for name, spec in graph_specs(model.recipe).items()}
