"""Export a bundle from a recipe and its weights."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from teso_deploy._version import __version__
from teso_deploy.bundle import (
    CUE_TABLE,
    KIND,
    REFERENCE,
    AudioEntry,
    Bundle,
    BundleManifest,
    CueEntry,
    GraphEntry,
    Postprocessing,
    Preprocessing,
    TaggerEntry,
    make_sized_name,
)
from teso_deploy.conversion.engines import EngineRequest
from teso_deploy.conversion.finishing import Wanted, finish
from teso_deploy.conversion.forms import Forms, check_space
from teso_deploy.conversion.frames import read_video_frames
from teso_deploy.conversion.graphs import OPSET, export_graph
from teso_deploy.conversion.plan import check_memory
from teso_deploy.conversion.reference import (
    clip_inputs,
    make_example_arguments,
    make_random_inputs,
    make_reference_arrays,
)
from teso_deploy.conversion.text_encoder import find_text_graph, write_text_encoder
from teso_deploy.conversion.vocabulary import MINILM_DIM, build_cue_table, clip_embedder, list_cue_words
from teso_deploy.conversion.weights import WeightsFile
from teso_deploy.cues.table import CueTable
from teso_deploy.errors import CheckpointError
from teso_deploy.models.assembly import WeightSource, assemble, build_text_tower
from teso_deploy.models.methods import Model, find_method
from teso_deploy.models.state_dicts import Averaging
from teso_deploy.recipe import Recipe
from teso_deploy.resources import find_shipped_path
from teso_deploy.types import ImageSize, Precision
from teso_deploy.verification.verify import VerifyReport

RANDOM_EMBEDDINGS = "random, seed 0"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The written bundle, its parity with PyTorch, and the names of the model's weights that no checkpoint contains."""

    bundle: Bundle
    parity: VerifyReport
    random: tuple[str, ...] = ()


def hash_weights(model: torch.nn.Module) -> str:
    """Compute the SHA-256 over names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def make_cue_table(
    recipe: Recipe, text: WeightSource | None, *, random_weights_seed: int | None, nouns: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.float32], str]:
    """Make the words of the cue table and their embeddings, by the recipe's text encoder.

    The embeddings are rounded to float16, because that is how they are stored.

    Args:
        recipe: The recipe. Its text encoder is MiniLM or CLIP's text tower.
        text: The checkpoint of CLIP's text tower; None if there is none.
        random_weights_seed: If it is set and the tower is missing, seeded unit vectors take the place of the
            embeddings. Only a model with random weights can use them.
        nouns: Words of the table besides those of the recipe. Default: the shipped nouns.

    Returns:
        The words, their embeddings (K, d_T) float32, and the name of the encoder.

    Raises:
        CheckpointError: The recipe needs CLIP's text tower, and there is neither a tower nor a seed.
    """
    if text is not None:
        tower = build_text_tower(text, recipe)
        words, embeddings = build_cue_table(recipe, nouns, embed=clip_embedder(tower, recipe, text.beside))
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
        words = list_cue_words(recipe, nouns)
        vectors = np.random.default_rng(0).standard_normal((len(words), recipe.text.dim))
        embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        source = RANDOM_EMBEDDINGS
    return words, embeddings.astype(np.float16).astype(np.float32), source


def _write_graphs(
    model: Model, weights: Mapping[str, WeightsFile], *, metadata: dict[str, str], report: Progress
) -> dict[str, GraphEntry]:
    """Write the canonical graphs and return them by their key in the manifest.

    The buckets of a graph share its weights.
    """
    recipe, method = model.recipe, find_method(model.recipe)
    specs, modules = method.list_graph_specs(recipe), method.get_graph_modules(model)
    graphs: dict[str, GraphEntry] = {}
    for size in recipe.image.sizes:
        is_first = size == recipe.image.sizes[0]
        arguments = make_example_arguments(model, size)
        for name, spec in specs.items():
            if not (is_first or method.program.stage_of(name).sized):
                continue
            key = name if is_first else make_sized_name(name, size)
            report(f"{key}: PyTorch to ONNX")
            path = weights[name].path.with_name(f"{key}.onnx")
            graphs[key] = export_graph(
                modules[name], spec, arguments[name], path=path, metadata=metadata, weights=weights[name]
            )
    return graphs


def write_cues(folder: Path, recipe: Recipe, *, words: Sequence[str], embeddings: NDArray[np.float32]) -> CueEntry:
    """Write a cue table.

    Args:
        folder: The bundle's folder.
        recipe: The recipe, for the number of cues and their template.
        words: The words.
        embeddings: (K, d_T), stored as float16.

    Returns:
        The entry in the manifest.
    """
    np.savez_compressed(folder / CUE_TABLE, names=np.array(words), embeddings=embeddings.astype(np.float16))
    return CueEntry(
        template=recipe.text.template,
        max_cues=recipe.text.max_cues,
        dim=recipe.text.dim,
        padding=recipe.text.padding,
        words=recipe.text.words,
        table=CUE_TABLE,
    )


def export_bundle(
    recipe: Recipe,
    out: Path,
    checkpoints: Path | Sequence[tuple[str | None, Path]] | None = None,
    *,
    random_weights_seed: int | None = None,
    licence: str = "Apache-2.0",
    on_progress: Progress = lambda stage: None,
    precisions: Sequence[Precision] = ("fp32",),
    calibrate_on: Sequence[Path] = (),
    engines: Sequence[EngineRequest] = (),
    text_encoder: bool = False,
    averaging: Averaging | None = None,
) -> ExportReport:
    """Write a bundle, completely or not at all.

    ONNX Runtime checks all graphs against PyTorch before the bundle is put in place.

    Args:
        recipe: The recipe of the model.
        out: The bundle's folder.
        checkpoints: A file, or several as (part or None, file). Weights that they lack need ``random_weights_seed``.
            Default: none.
        random_weights_seed: Seed of the weights that no checkpoint contains. Default: such weights are an error.
        licence: Licence of the weights, as an SPDX identifier. Default: Apache-2.0.
        on_progress: Called with the current stage. Default: ignored.
        precisions: Precisions of the forms that are derived from the canonical graphs. Default: fp32.
        calibrate_on: Videos whose frames and sounds set the ranges of int8. Default: the shipped clip.
        engines: Engines to build from the graphs, in the same precisions. Default: none.
        text_encoder: Whether the bundle contains the encoder of the cue words, for words that are not in its table.
            Default: no.
        averaging: Which weights to take from files with both trained and averaged ones. Default: refuse such files.

    Returns:
        The bundle, its parity with PyTorch, and the names of the model's weights that no checkpoint contains.

    Raises:
        CheckpointError: A checkpoint can't be read, or weights are missing.
        OutputError: The bundle can't be written.
        PrecisionError: A graph can't be computed in a requested precision.
        CheckFailedError: A form differs from PyTorch.
        RecipeError: The text encoder does not fit the recipe (:func:`find_text_graph`).
        MissingExtraError: A package is not installed.
    """
    KIND.check_target(out)
    files = [(None, checkpoints)] if isinstance(checkpoints, Path) else list(checkpoints or ())
    check_memory(recipe)
    on_progress("reading weights")
    built = assemble(recipe, files, random_weights_seed=random_weights_seed, averaging=averaging)
    model = built.model
    recipe = model.recipe
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    check_space(weights, out, sizes=len(recipe.image.sizes), precisions=precisions)
    program = find_method(recipe).program
    encoder = find_text_graph(recipe, built.text) if text_encoder else None
    takes_cues = program.takes("cues")
    if takes_cues:
        on_progress("cue words")
        words, embeddings, embedder = make_cue_table(recipe, built.text, random_weights_seed=random_weights_seed)
        pads = recipe.text.padding == "none-embedding"
        table = CueTable(words, embeddings, max_cues=recipe.text.max_cues, pads=pads)
    else:
        words, embeddings, embedder = [], np.zeros((0, 0), np.float32), "none"
        table = CueTable(words, embeddings, max_cues=0)
    is_trained = built.is_trained and embedder != RANDOM_EMBEDDINGS
    versions = {"teso-deploy": __version__, "torch": torch.__version__, "onnx": onnx.__version__}
    metadata = {"recipe": recipe.name, "weights_sha256": hash_weights(model), **versions}
    clip = find_shipped_path("export/demo/clip.mp4")
    with KIND.staging(out) as folder:
        weights = {name: WeightsFile(folder / f"{name}.weights") for name in program.names}
        graphs = _write_graphs(model, weights, metadata=metadata, report=on_progress)
        cue = write_cues(folder, recipe, words=words, embeddings=embeddings) if takes_cues else None
        if cue is not None and encoder is not None:
            on_progress("text encoder")
            written = write_text_encoder(folder, encoder, recipe, table=table, metadata=versions)
            cue = cue.model_copy(update={"encoder": written})
        on_progress("reference outputs")
        from_clip = is_trained and clip.is_file()

        def inputs(size: ImageSize) -> dict[str, NDArray[Any]]:
            return clip_inputs(recipe, size, table=table, clip=clip) if from_clip else make_random_inputs(recipe, size)

        np.savez_compressed(folder / REFERENCE, allow_pickle=False, **make_reference_arrays(model, inputs))
        videos = calibrate_on or (clip,)
        entries = describe_recipe(recipe)
        preprocessing = entries["preprocessing"]
        writer = Forms(
            folder,
            program,
            graphs,
            weights,
            lambda: read_video_frames(program, preprocessing, table, videos=videos),
            recipe.head.threshold,
            is_trained,
            on_progress,
        )
        wanted = Wanted(precisions, engines)
        forms = wanted.write_forms(writer)
        manifest = BundleManifest(
            **entries,
            trained=is_trained,
            program=program,
            graphs=graphs,
            forms=forms,
            cue=cue,
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
        manifest, parity = finish(folder, manifest, writer=writer, wanted=wanted, on_progress=on_progress)
    return ExportReport(Bundle(out, manifest), parity, built.random)


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the entries of a bundle's manifest that depend on the recipe alone."""
    has_tagger = bool(recipe.tagger.words)
    return {
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "preprocessing": Preprocessing(
            sizes=recipe.image.sizes, fit=recipe.image.fit, mean=recipe.image.mean, std=recipe.image.std
        ),
        "audio": AudioEntry(framing=recipe.audio.framing),
        "postprocessing": Postprocessing(threshold=recipe.head.threshold),
        "classes": recipe.head.classes,
        "tagger": TaggerEntry(words=recipe.tagger.words, threshold=recipe.tagger.threshold) if has_tagger else None,
    }
