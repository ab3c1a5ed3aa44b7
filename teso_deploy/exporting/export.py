"""From a recipe and its weights to a bundle."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from teso_deploy import __version__
from teso_deploy.backends.onnxruntime import onnxruntime_factory
from teso_deploy.bundle import (
    CUE_TABLE,
    REFERENCE,
    Bundle,
    BundleManifest,
    CueEntry,
    Postprocessing,
    Preprocessing,
    TaggerEntry,
    check_target,
    staging,
    write_manifest,
)
from teso_deploy.cues.table import CueTable
from teso_deploy.errors import CheckFailedError, CheckpointError, RecipeError
from teso_deploy.exporting.graphs import OPSET, export_graph
from teso_deploy.exporting.reference import clip_inputs, random_inputs, reference_outputs
from teso_deploy.exporting.vocabulary import MINILM_DIM, build_cue_table
from teso_deploy.models import Teso, build, checkpoints
from teso_deploy.models.graphs import graph_modules, graph_specs, memory_names
from teso_deploy.recipe import Recipe
from teso_deploy.resources import shipped_path
from teso_deploy.runtime.verify import VerifyReport, verify_bundle

RANDOM_EMBEDDINGS = "random, seed 0"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how it held against PyTorch."""

    bundle: Bundle
    parity: VerifyReport


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_weights(recipe: Recipe, checkpoint: Path | None, random_weights_seed: int | None) -> tuple[Teso, str]:
    """The model, of the recipe as the checkpoint was calibrated, and where its weights are from.

    Raises :class:`CheckpointError` when neither a checkpoint nor a seed is given.
    """
    if checkpoint is not None:
        model = build(checkpoints.calibrated(recipe, checkpoint))
        checkpoints.load(model, checkpoint)
        return model, f"checkpoint {checkpoint.name}"
    if random_weights_seed is None:
        raise CheckpointError(
            f"recipe {recipe.name} needs weights: give --checkpoint FILE, or --random-weights SEED for a model "
            "that is only good for timing"
        )
    return build(recipe, random_weights_seed), f"random, seed {random_weights_seed}"


def cue_table(recipe: Recipe) -> tuple[list[str], NDArray[np.float32], str]:
    """Words, their embeddings (K, d_T) and where those are from.

    MiniLM where it fits the recipe's width; otherwise seeded unit vectors of the class
    names, which only a model with random weights has a use for. Rounded to what float16
    holds: that is how they are stored.
    """
    if recipe.text.dim == MINILM_DIM:
        words, embeddings = build_cue_table(recipe)
        source = "all-MiniLM-L6-v2"
    else:
        words = sorted({name.lower() for name in (*recipe.head.classes, *recipe.tagger.words)})
        vectors = np.random.default_rng(0).standard_normal((len(words), recipe.text.dim))
        embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        source = RANDOM_EMBEDDINGS
    return words, embeddings.astype(np.float16).astype(np.float32), source


@torch.no_grad()
def example_arguments(model: Teso) -> dict[str, tuple[torch.Tensor, ...]]:
    """Arguments of every graph, batch 2."""
    modules = graph_modules(model)
    given = {name: torch.from_numpy(value[:2]) for name, value in random_inputs(model.recipe).items()}
    image = given["image"].expand(2, -1, -1, -1).clone()
    audio = modules["audio_encoder"](given["waveform"])
    queries, _ = modules["fusion"](audio, given["cues"], given["cue_valid"])
    return {
        "visual_encoder": (image,),
        "audio_encoder": (given["waveform"],),
        "fusion": (audio, given["cues"], given["cue_valid"]),
        "decoder": (queries, *modules["visual_encoder"](image)[: len(memory_names(model.recipe))]),
    }


def export_bundle(
    recipe: Recipe,
    out: Path,
    checkpoint: Path | None = None,
    random_weights_seed: int | None = None,
    licence: str = "Apache-2.0",
    on_progress: Callable[[str], None] = lambda stage: None,
) -> ExportReport:
    """Write a bundle to ``out``, whole or not at all.

    The graphs are checked against PyTorch with ONNX Runtime before the bundle takes its
    place. Raises :class:`CheckpointError`, :class:`RecipeError` (more than one size),
    :class:`OutputError`, :class:`CheckFailedError` (parity).
    """
    if len(recipe.image.sizes) != 1:
        raise RecipeError(f"recipe {recipe.name} names {len(recipe.image.sizes)} picture sizes: name one")
    check_target(out)
    model, source = load_weights(recipe, checkpoint, random_weights_seed)
    recipe = model.recipe
    versions = {"teso-deploy": __version__, "torch": torch.__version__, "onnx": onnx.__version__}
    metadata = {"recipe": recipe.name, "weights_sha256": weights_digest(model), **versions}
    with staging(out) as folder:
        graphs = {}
        arguments, modules = example_arguments(model), graph_modules(model)
        for name, spec in graph_specs(recipe).items():
            on_progress(f"{name}: PyTorch to ONNX")
            graphs[name] = export_graph(modules[name], spec, arguments[name], folder / f"{name}.onnx", metadata)
        on_progress("cue words")
        words, embeddings, embedder = cue_table(recipe)
        np.savez_compressed(folder / CUE_TABLE, names=np.array(words), embeddings=embeddings.astype(np.float16))
        on_progress("reference outputs")
        clip = shipped_path("export/demo/clip.mp4")
        from_clip = checkpoint is not None and embedder != RANDOM_EMBEDDINGS and clip.is_file()
        table = CueTable(words, embeddings, recipe.text.max_cues)
        inputs = clip_inputs(recipe, table, clip) if from_clip else random_inputs(recipe)
        np.savez_compressed(folder / REFERENCE, allow_pickle=False, **inputs, **reference_outputs(model, inputs))
        manifest = BundleManifest(
            name=recipe.name,
            trained=checkpoint is not None,
            recipe=recipe.model_dump(mode="json", by_alias=True),
            graphs=graphs,
            preprocessing=Preprocessing(sizes=recipe.image.sizes, mean=recipe.image.mean, std=recipe.image.std),
            postprocessing=Postprocessing(threshold=recipe.head.threshold),
            classes=recipe.head.classes,
            cue=CueEntry(
                template=recipe.text.template, max_cues=recipe.text.max_cues, dim=recipe.text.dim, table=CUE_TABLE
            ),
            tagger=TaggerEntry(words=recipe.tagger.words, threshold=recipe.tagger.threshold)
            if recipe.tagger.words
            else None,
            provenance={
                "weights": source,
                "cue_embeddings": embedder,
                "reference": "the shipped clip" if from_clip else "seeded noise",
                "opset": str(OPSET),
                "python": platform.python_version(),
                **metadata,
            },
            licence=licence,
        )
        on_progress("parity with PyTorch")
        manifest = write_manifest(folder, manifest)
        # Whether it obeys the sound is `verify`'s question; here: is it the model?
        parity = verify_bundle(Bundle.open(folder), onnxruntime_factory(), with_audio_control=False)
        if not parity.passed:
            raise CheckFailedError(
                f"the graphs differ from PyTorch, nothing was written ({parity.failures[0]}); please report this"
            )
        manifest = write_manifest(folder, manifest, {"parity": parity.as_dict()["graphs"]})
    return ExportReport(Bundle(out, manifest), parity)
