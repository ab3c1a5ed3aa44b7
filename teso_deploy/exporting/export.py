"""From a recipe and its weights to a bundle."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
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
from teso_deploy.exporting.reference import clip_inputs, example_arguments, random_inputs, reference_outputs
from teso_deploy.exporting.vocabulary import MINILM_DIM, build_cue_table, clip_embedder, cue_words
from teso_deploy.models.assembly import Source, assemble, text_tower
from teso_deploy.models.graphs import graph_modules, graph_specs
from teso_deploy.recipe import Recipe
from teso_deploy.resources import shipped_path
from teso_deploy.runtime.verify import VerifyReport, verify_bundle

RANDOM_EMBEDDINGS = "random, seed 0"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, how it held against PyTorch, and our keys that no checkpoint gave."""

    bundle: Bundle
    parity: VerifyReport
    random: tuple[str, ...] = ()


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cue_table(
    recipe: Recipe, text: Source | None, random_weights_seed: int | None, nouns: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.float32], str]:
    """Words (those of the recipe and ``nouns``), their embeddings (K, d_T) and where those are from.

    By the recipe's text encoder: MiniLM, or CLIP's text tower of a checkpoint. Seeded unit vectors
    stand in for a tower that was not given; only a model with random weights has a use for them.
    Rounded to what float16 holds: that is how they are stored. Raises :class:`CheckpointError`
    when there is neither a tower nor a seed.
    """
    if text is not None:
        tower = text_tower(text, recipe)
        words, embeddings = build_cue_table(recipe, nouns, embed=clip_embedder(tower, recipe, text.path))
        source = f"CLIP text tower, {text.path.name}"
    elif recipe.text.encoder == "minilm" and recipe.text.dim == MINILM_DIM:
        words, embeddings = build_cue_table(recipe, nouns)
        source = "all-MiniLM-L6-v2"
    elif random_weights_seed is None:
        raise CheckpointError(
            f"recipe {recipe.name} embeds its cues with CLIP's text tower: give --checkpoint text=FILE (ImageBind, "
            "OpenCLIP or Hugging Face), or --random-weights SEED for cues that mean nothing"
        )
    else:
        words = cue_words(recipe, nouns)
        vectors = np.random.default_rng(0).standard_normal((len(words), recipe.text.dim))
        embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        source = RANDOM_EMBEDDINGS
    return words, embeddings.astype(np.float16).astype(np.float32), source


def export_bundle(
    recipe: Recipe,
    out: Path,
    checkpoints: Path | Sequence[tuple[str | None, Path]] | None = None,
    random_weights_seed: int | None = None,
    licence: str = "Apache-2.0",
    on_progress: Callable[[str], None] = lambda stage: None,
) -> ExportReport:
    """Write a bundle to ``out``, whole or not at all.

    ``checkpoints``: a file, or (part or None, file) of several; what they don't give needs
    ``random_weights_seed``. The graphs are checked against PyTorch with ONNX Runtime before the bundle takes its
    place. Raises :class:`CheckpointError`, :class:`RecipeError` (more than one size),
    :class:`OutputError`, :class:`CheckFailedError` (parity).
    """
    if len(recipe.image.sizes) != 1:
        raise RecipeError(f"recipe {recipe.name} names {len(recipe.image.sizes)} picture sizes: name one")
    check_target(out)
    files = [(None, checkpoints)] if isinstance(checkpoints, Path) else list(checkpoints or ())
    on_progress("reading weights")
    built = assemble(recipe, files, random_weights_seed)
    model = built.model
    recipe = model.recipe
    on_progress("cue words")
    words, embeddings, embedder = cue_table(recipe, built.text, random_weights_seed)
    is_trained = built.is_trained and embedder != RANDOM_EMBEDDINGS
    versions = {"teso-deploy": __version__, "torch": torch.__version__, "onnx": onnx.__version__}
    metadata = {"recipe": recipe.name, "weights_sha256": weights_digest(model), **versions}
    with staging(out) as folder:
        graphs = {}
        arguments, modules = example_arguments(model), graph_modules(model)
        for name, spec in graph_specs(recipe).items():
            on_progress(f"{name}: PyTorch to ONNX")
            graphs[name] = export_graph(modules[name], spec, arguments[name], folder / f"{name}.onnx", metadata)
        np.savez_compressed(folder / CUE_TABLE, names=np.array(words), embeddings=embeddings.astype(np.float16))
        on_progress("reference outputs")
        clip = shipped_path("export/demo/clip.mp4")
        table = CueTable(words, embeddings, recipe.text.max_cues, recipe.text.padding == "none-embedding")
        from_clip = is_trained and clip.is_file()
        inputs = clip_inputs(recipe, table, clip) if from_clip else random_inputs(recipe)
        np.savez_compressed(folder / REFERENCE, allow_pickle=False, **inputs, **reference_outputs(model, inputs))
        manifest = BundleManifest(
            name=recipe.name,
            trained=is_trained,
            recipe=recipe.model_dump(mode="json", by_alias=True),
            graphs=graphs,
            preprocessing=Preprocessing(
                sizes=recipe.image.sizes, fit=recipe.image.fit, mean=recipe.image.mean, std=recipe.image.std
            ),
            postprocessing=Postprocessing(threshold=recipe.head.threshold),
            classes=recipe.head.classes,
            cue=CueEntry(
                template=recipe.text.template,
                max_cues=recipe.text.max_cues,
                dim=recipe.text.dim,
                padding=recipe.text.padding,
                table=CUE_TABLE,
            ),
            tagger=TaggerEntry(words=recipe.tagger.words, threshold=recipe.tagger.threshold)
            if recipe.tagger.words
            else None,
            provenance={
                "weights": str(built),
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
    return ExportReport(Bundle(out, manifest), parity, built.random)
