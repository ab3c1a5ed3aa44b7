"""Evaluate a checkpoint without an export: a bundle in the cache that has cues and a manifest, but no graphs.

The modules of the model take the place of the graphs. Everything else that a pipeline reads from a bundle is there.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from teso_deploy._version import __version__
from teso_deploy.bundle import (
    CUE_TABLE,
    KIND,
    Bundle,
    BundleManifest,
    CueEntry,
    GraphEntry,
    TensorSpec,
    make_sized_name,
    read_manifest,
    write_manifest,
)
from teso_deploy.conversion.bundle_export import (
    RANDOM_EMBEDDINGS,
    describe_recipe,
    hash_weights,
    make_cue_table,
    write_cues,
)
from teso_deploy.conversion.plan import META, check_memory
from teso_deploy.conversion.pytorch_engine import wrap_modules
from teso_deploy.conversion.reference import make_example_arguments
from teso_deploy.errors import BundleError, CheckpointError
from teso_deploy.models.assembly import Assembly, assemble
from teso_deploy.models.checkpoints import read_recipe
from teso_deploy.models.methods import Model, build_model, find_method
from teso_deploy.models.state_dicts import Averaging
from teso_deploy.models.weight_files import read_metadata
from teso_deploy.recipe import Recipe
from teso_deploy.resources import cache_folder

#: Where the bundles are kept, by a hash of everything that decides them.
CACHE = "checkpoints"
_NAME_RECIPE = "name the recipe with --recipe, or a bundle of it with --bundle"


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A model and a bundle without graphs, which describes it."""

    bundle: Bundle
    model: Model


def open_checkpoint(
    files: Sequence[tuple[str | None, Path]],
    *,
    recipe: Recipe | None = None,
    bundle: Bundle | None = None,
    random_weights_seed: int | None = None,
    averaging: Averaging | None = None,
    on_progress: Callable[[str], None] = lambda stage: None,
) -> OpenCheckpoint:
    """Open checkpoints for a pipeline whose engines are :func:`~teso_deploy.conversion.pytorch_backend.wrap_model`.

    Args:
        files: (part or None, file) of each checkpoint.
        recipe: The recipe of the model. Default: that of ``bundle``, otherwise the recipe that the file of `train`
            names.
        bundle: A bundle of the same recipe, whose cue table is taken. Default: the words are embedded again, which
            needs the recipe's text encoder and takes minutes with CLIP's on a CPU. They are then kept in the cache.
        random_weights_seed: Seed of the weights that no file gives. Default: such weights are an error.
        averaging: Which weights to take from files with both trained and averaged ones. Default: refuse such files.
        on_progress: Called with the current stage. Default: ignored.

    Returns:
        The model, and the bundle that describes it.

    Raises:
        CheckpointError: A checkpoint can't be read, does not fit, or does not name its recipe.
        RecipeError: The model does not fit into the memory.
        OutputError: The cache can't be written.
    """
    if recipe is None and bundle is not None:
        recipe = bundle.recipe
    if recipe is None:
        recipe = _read_only_recipe(files)
    check_memory(recipe)
    on_progress("reading weights")
    built = assemble(recipe, files, random_weights_seed=random_weights_seed, averaging=averaging)
    folder = cache_folder(CACHE) / _compute_key(built, bundle)
    try:
        manifest = read_manifest(folder)
        KIND.check_files(folder, manifest.files)
    except BundleError:  # it is not there, or is damaged
        manifest = _write_folder(folder, built, bundle=bundle, seed=random_weights_seed, on_progress=on_progress)
    return OpenCheckpoint(Bundle(folder, manifest), built.model)


def _read_only_recipe(files: Sequence[tuple[str | None, Path]]) -> Recipe:
    """Return the recipe that a file of `train` names. Raises :class:`CheckpointError`."""
    if len(files) == 1 and files[0][0] in (None, "model"):
        read_metadata(files[0][1])  # a file that can't be read is another mistake
        try:
            return read_recipe(files[0][1])
        except CheckpointError as error:
            raise CheckpointError(f"{error}, or {_NAME_RECIPE}") from error
    raise CheckpointError(f"these weights do not name a recipe: {_NAME_RECIPE}")


def _compute_key(built: Assembly, bundle: Bundle | None) -> str:
    digest = hashlib.sha256(f"{__version__} {hash_weights(built.model)}\n".encode())
    digest.update(built.model.recipe.model_dump_json(by_alias=True).encode())
    if bundle is not None and bundle.manifest.cue is not None and bundle.manifest.cue.table is not None:
        digest.update(bundle.manifest.files[bundle.manifest.cue.table].sha256.encode())
    elif built.text is not None:
        _add_tensors(digest, built.text.tensors)
    return digest.hexdigest()


def _add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())


def _write_folder(
    folder: Path,
    built: Assembly,
    *,
    bundle: Bundle | None,
    seed: int | None,
    on_progress: Callable[[str], None],
) -> BundleManifest:
    """Write the cue table and the manifest of a model."""
    recipe = built.model.recipe
    program = find_method(recipe).program
    with KIND.staging(folder) as staged:
        cue, embedder = None, "none"
        if program.takes("cues") and bundle is not None:
            cue, embedder = _copy_cues(bundle, staged)
        elif program.takes("cues"):
            on_progress("cue words")
            words, embeddings, embedder = make_cue_table(recipe, built.text, random_weights_seed=seed)
            cue = write_cues(staged, recipe, words=words, embeddings=embeddings)
        manifest = BundleManifest(
            **describe_recipe(recipe),
            trained=built.is_trained and embedder != RANDOM_EMBEDDINGS,
            program=program,
            graphs=_describe_modules(recipe),
            cue=cue,
            provenance={
                "weights": str(built),
                "weights_sha256": hash_weights(built.model),
                "cue_embeddings": embedder,
                "graphs": "none: this folder describes a checkpoint",
                "python": platform.python_version(),
                "teso-deploy": __version__,
            },
            licence="unknown",
        )
        return write_manifest(staged, manifest)


def _copy_cues(bundle: Bundle, folder: Path) -> tuple[CueEntry, str]:
    """Copy a bundle's cue table. Return its entry and the name of its text encoder."""
    cue = bundle.manifest.cue
    if cue is None or cue.table is None:
        raise CheckpointError(f"{bundle.folder} has no cue table, but the checkpoint's model takes cues: omit --bundle")
    shutil.copyfile(bundle.path(cue.table), folder / CUE_TABLE)
    entry = cue.model_copy(update={"table": CUE_TABLE, "encoder": None})
    return entry, bundle.manifest.provenance.get("cue_embeddings", "unknown")


@torch.no_grad()
def _describe_modules(recipe: Recipe) -> dict[str, GraphEntry]:
    """Describe the modules as graphs, by their keys in a manifest. Their files do not exist."""
    with META:
        model = build_model(recipe)
    engines, method = wrap_modules(model.to(META)), find_method(recipe)
    entries: dict[str, GraphEntry] = {}
    for size in recipe.image.sizes:
        is_first = size == recipe.image.sizes[0]
        for stage, arguments in make_example_arguments(model, size, META).items():
            if is_first or method.program.stage_of(stage).sized:
                key = stage if is_first else make_sized_name(stage, size)
                inputs = dict(zip(engines[stage].inputs, arguments, strict=True))
                entries[key] = GraphEntry(
                    file=f"{key}.onnx",
                    inputs=_describe_tensors(inputs),
                    outputs=_describe_tensors(engines[stage].run(inputs)),
                    parameters=0,
                    multiply_adds=0,
                    nodes=0,
                )
    return entries


def _describe_tensors(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype="bool" if value.dtype == torch.bool else "float", shape=("B", *value.shape[1:]))
        for name, value in tensors.items()
    )
