"""Reference inputs and PyTorch's outputs for them, so that parity can be checked without torch.

There is one picture with four sounds: its own with cues, silence with the same cues, another sound, and its own without
cues. The picture's tensors have a batch of 1, the others a batch of 4. For a bucket after the first, tensors that
depend on the size are stored under names like ``masks@288x512``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teso_deploy.bundle import make_sized_name
from teso_deploy.conversion.pytorch_engine import make_pytorch_engines, wrap_modules
from teso_deploy.cues.table import CueTable
from teso_deploy.media.audio import read_audio
from teso_deploy.media.reader import VideoReader
from teso_deploy.models.methods import Model, find_method
from teso_deploy.pipeline.preprocess import compute_fitted_size, normalise_picture, resize_picture
from teso_deploy.program import MASKS, group_inputs, merge_tensors, run_program, select_inputs
from teso_deploy.recipe import Recipe
from teso_deploy.types import WINDOW_SAMPLES, ImageSize
from teso_deploy.verification.probes import ROWS, run_whole

#: The step in which probabilities are stored. It is smaller than the difference of any two implementations, and reduces
#: the file to a quarter.
MASK_STEP = 2.0**-20


def make_random_inputs(recipe: Recipe, size: ImageSize, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Make seeded noise in the shapes of the inputs, for untrained models.

    Args:
        recipe: The recipe, for the shapes.
        size: Height and width of the picture.
        seed: Seed of the noise. Default: 0.

    Returns:
        Input name → array.
    """
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
    tensors = {"image": image, "waveform": waveform, "cues": cues * valid[..., None], "cue_valid": valid}
    return select_inputs(find_method(recipe).program, tensors)


def clip_inputs(recipe: Recipe, size: ImageSize, *, table: CueTable, clip: Path) -> dict[str, NDArray[Any]]:
    """Make the reference inputs from a clip: a frame, its first two sounds, and its visible cues.

    Args:
        recipe: The recipe.
        size: Height and width of the picture.
        table: The cue table.
        clip: The video. The JSON beside it lists when sounds are heard and what is visible.

    Returns:
        Input name → array.
    """
    script = json.loads(clip.with_suffix(".json").read_text(encoding="utf-8"))
    spans = script["heard"]
    first, second = list(spans)[:2]
    middles = {name: sum(spans[name][0]) / 2 for name in (first, second)}
    with VideoReader(clip) as reader:
        frame = next(frame for frame in reader if frame.pts_seconds >= middles[first])
    track = read_audio(clip)
    own, other = (track.window(middles[name], "centred").samples for name in (first, second))
    cues, none = table.lookup(script["visible"][: table.max_cues]), table.none()
    picture = resize_picture(frame.image, compute_fitted_size(frame.image, size, recipe.image.fit))
    tensors = {
        "image": normalise_picture(picture, mean=recipe.image.mean, std=recipe.image.std, bucket=size),
        "waveform": np.stack([own, np.zeros(WINDOW_SAMPLES, np.float32), other, own]),
        "cues": np.stack([cues.embeddings, cues.embeddings, cues.embeddings, none.embeddings]),
        "cue_valid": np.stack([cues.valid, cues.valid, cues.valid, none.valid]),
    }
    return select_inputs(find_method(recipe).program, tensors)


def compute_reference_outputs(model: Model, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Compute PyTorch's outputs of every graph for the reference inputs, by tensor name."""
    found = run_whole(find_method(model.recipe).program, make_pytorch_engines(model), inputs)
    return found | {MASKS: np.rint(found[MASKS] / MASK_STEP) * MASK_STEP}


def make_reference_arrays(
    model: Model, inputs: Callable[[ImageSize], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Compute everything that ``reference.npz`` contains.

    ``inputs`` returns the inputs of a bucket; their sounds and cues are equal for all buckets.
    """
    first, *others = model.recipe.image.sizes
    given = inputs(first)
    arrays = given | compute_reference_outputs(model, given)
    method = find_method(model.recipe)
    specs, program = method.list_graph_specs(model.recipe), method.program
    of_the_picture = [
        name for stage in program.names if "image" in program.dependencies(stage) for name in specs[stage].outputs
    ]
    for size in others:
        given = inputs(size)
        at_size = given | compute_reference_outputs(model, given)
        for name in ("image", *of_the_picture):
            if name in at_size:
                arrays[make_sized_name(name, size)] = at_size[name]
    return arrays


@torch.no_grad()
def make_example_arguments(
    model: Model, size: ImageSize, device: torch.device | None = None
) -> dict[str, tuple[torch.Tensor, ...]]:
    """Make example arguments of every graph, with batch 2.

    Args:
        model: The model.
        size: Height and width of the picture.
        device: The device of the arguments; on ``meta`` they have shapes but no data. Default: the CPU.

    Returns:
        Graph name → arguments in order.
    """
    noise = make_random_inputs(model.recipe, size)
    given = {name: torch.from_numpy(value[:2]).to(device) for name, value in noise.items()}
    if "image" in given:
        given["image"] = given["image"].expand(2, *given["image"].shape[1:]).clone()
    method = find_method(model.recipe)
    program, specs = method.program, method.list_graph_specs(model.recipe)
    # Skip stages whose outputs no other stage uses.
    taken = {source for stage in program.stages for source in stage.inputs}
    stages = [stage for stage in program.stages if stage.name in taken]
    tensors = merge_tensors(run_program(program, wrap_modules(model), group_inputs(given), stages=stages))
    return {name: tuple(tensors[tensor] for tensor in spec.inputs) for name, spec in specs.items()}
