"""An exported model on disk: a folder with a manifest that vouches for every file in it.

``bundle.json`` names the size and SHA-256 of each file. Opening a bundle checks them all,
so that what runs is what was exported. A bundle is written beside its place and swapped
in whole.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from teso_deploy.errors import BundleError, InputNotFoundError
from teso_deploy.recipe import Recipe
from teso_deploy.resources import shipped_path
from teso_deploy.sealed import FileEntry, Kind
from teso_deploy.types import Precision

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
REFERENCE = "reference.npz"
CUE_TABLE = "cues.npz"
DEFAULT_BUNDLE = "teso-nano"
KIND = Kind(MANIFEST, SCHEMA_VERSION, frozenset({"schema_version", "graphs", "files"}), "teso-deploy export",
            "export the bundle again")  # fmt: skip


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Table):
    """Name, ONNX element type and shape of a graph's input or output; "B" is the batch."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphEntry(_Table):
    """One graph: its file (and the one that holds its weights, where they are not inside), its tensors, its size."""

    file: str
    weights: str | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    multiply_adds: int
    nodes: int


class FormEntry(_Table):
    """A form of one graph, derived from its canonical file: for which runtime, and in which precision.

    ``shares``: of the tensors that are computed, by element type, as read back from the file.
    ``source_sha256``: of the canonical file that it was derived from.
    """

    file: str
    weights: str | None = None
    target: str
    precision: Precision
    shares: dict[str, float]
    nodes: int
    source_sha256: str


class EngineEntry(_Table):
    """An engine that travels with the bundle: its file, beside which its sidecar lies, and what it is for.

    ``architecture``: ``sm89``, or ``portable``.
    """

    file: str
    graph: str
    target: str
    precision: Precision
    architecture: str


class Preprocessing(_Table):
    """From an RGB picture of any size to ``image``: one resize, (x - mean) / std, zeros to the bucket's size."""

    sizes: tuple[tuple[int, int], ...]
    fit: Literal["stretch", "pad"] = "stretch"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["antialiased-bilinear"] = "antialiased-bilinear"
    color: Literal["rgb"] = "rgb"


class Postprocessing(_Table):
    """From ``masks`` to labels: bilinear to the source, 1 + argmax where the maximum ≥ threshold."""

    activation: Literal["probability"] = "probability"
    resize: Literal["bilinear"] = "bilinear"
    threshold: float


class TextEncoderEntry(_Table):
    """What embeds words that the cue table has not: a graph (``input_ids`` (1, L) int64 → ``cue`` (1, d_T)), its
    weights, and the tokenizer's file."""

    graph: str
    weights: str
    tokenizer: str


class CueEntry(_Table):
    """How cues are made and handed over. ``encoder``: for words beyond the table, where the bundle has one."""

    template: str
    max_cues: int
    dim: int
    padding: Literal["zeros+mask", "none-embedding"] = "zeros+mask"
    table: str | None = None
    encoder: TextEncoderEntry | None = None


class TaggerEntry(_Table):
    """What the ``tags`` of the visual encoder name, and from where on a name is offered as a cue."""

    words: tuple[str, ...]
    threshold: float


class BundleManifest(_Table):
    """The content of ``bundle.json``.

    ``graphs``: a graph that depends on the picture's size has an entry a bucket: that of the first
    under its plain name, others as ``name@HxW``. ``forms``: name of the form → graph → entry.
    ``engines``: built from them for GPUs.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    trained: bool
    recipe: dict[str, Any]
    graphs: dict[str, GraphEntry]
    forms: dict[str, dict[str, FormEntry]] = {}
    engines: tuple[EngineEntry, ...] = ()
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    classes: tuple[str, ...]
    cue: CueEntry
    tagger: TaggerEntry | None = None
    provenance: dict[str, str]
    licence: str
    measured: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}


def sized_name(graph: str, size: tuple[int, int]) -> str:
    """A graph's name in the manifest at a bucket that is not the first: ``decoder@288x512``."""
    return f"{graph}@{size[0]}x{size[1]}"


class Bundle:
    """An opened, checked bundle."""

    def __init__(self, folder: Path, manifest: BundleManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path | None = None) -> Bundle:
        """Open a bundle's folder (default: the shipped one) and check every file.

        Raises :class:`InputNotFoundError` (no such folder), :class:`BundleError` (no or
        another manifest, a file that is missing, changed or outside the folder).
        """
        folder = Path(path) if path is not None else shipped_path(f"engines/bundles/{DEFAULT_BUNDLE}")
        if not folder.is_dir():
            raise InputNotFoundError(f"no bundle {folder}: give the folder that `teso-deploy export` wrote")
        bundle = cls(folder, read_manifest(folder))
        bundle._check_files()
        return bundle

    def _check_files(self) -> None:
        KIND.check_files(self.folder, self.manifest.files)
        entries: list[GraphEntry | FormEntry] = [*self.manifest.graphs.values()]
        entries += [entry for form in self.manifest.forms.values() for entry in form.values()]
        wanted = {MANIFEST, REFERENCE} | {entry.file for entry in entries}
        wanted |= {entry.weights for entry in entries if entry.weights}
        wanted |= {entry.file for entry in self.manifest.engines}
        cue = self.manifest.cue
        wanted |= {cue.table} if cue.table else set()
        wanted |= {cue.encoder.graph, cue.encoder.weights, cue.encoder.tokenizer} if cue.encoder else set()
        if unlisted := wanted - self.manifest.files.keys() - {MANIFEST}:
            raise BundleError(
                f"{self.folder}: the manifest gives no hash of {sorted(unlisted)[0]}; export the bundle again"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 1."""
        return self.manifest.classes

    @property
    def recipe(self) -> Recipe:
        """The recipe that the bundle was made from."""
        try:
            return Recipe.model_validate(self.manifest.recipe)
        except ValidationError as error:
            raise BundleError(f"{self.folder}: the manifest's recipe is damaged; export the bundle again") from error

    def path(self, name: str) -> Path:
        """Path of one of the bundle's files; :class:`BundleError` when the manifest has none of that name."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} has no file {name}, only {', '.join(self.manifest.files)}")
        return self.folder / name

    def graph_path(self, graph: str, form: str | None = None) -> Path:
        """Path of a canonical graph, or of a form of it. Raises :class:`BundleError`."""
        if graph not in self.manifest.graphs:
            raise BundleError(f"{self.folder} has no graph {graph!r}, only {', '.join(self.manifest.graphs)}")
        if form is None:
            return self.folder / self.manifest.graphs[graph].file
        if form not in self.manifest.forms:
            there = ", ".join(self.manifest.forms) or "none"
            raise BundleError(f"{self.folder} has no form {form} (there: {there}): export it again with that precision")
        if graph not in self.manifest.forms[form]:
            raise BundleError(f"{self.folder}: form {form} lacks {graph}; export the bundle again")
        return self.folder / self.manifest.forms[form][graph].file

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The buckets (height, width); the first is what the model was trained at."""
        return self.manifest.preprocessing.sizes

    def graph_at(self, graph: str, size: tuple[int, int]) -> str:
        """The name under which the manifest has a graph at a bucket (height, width).

        Raises :class:`BundleError` for a size that is no bucket.
        """
        if size not in self.sizes:
            there = ", ".join(f"{height}x{width}" for height, width in self.sizes)
            raise BundleError(
                f"{size[0]}x{size[1]} is no picture size of bundle {self.manifest.name} (height x width: {there}): "
                "name one of these, or export it with --size"
            )
        sized = sized_name(graph, size)
        return sized if sized in self.manifest.graphs else graph

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Everything in one of the bundle's .npz files; pickled objects are refused."""
        try:
            with np.load(self.path(name), allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"{self.folder}: {name} holds no plain arrays ({error}); export the bundle again"
            ) from error

    def reference(self) -> dict[str, NDArray[Any]]:
        """``reference.npz``: what inputs and outputs of the graphs were in PyTorch."""
        return self.arrays(REFERENCE)


def read_manifest(folder: Path) -> BundleManifest:
    """``bundle.json`` of a folder; :class:`BundleError` names what is wrong with it."""
    return KIND.read(folder, BundleManifest)


def write_manifest(folder: Path, manifest: BundleManifest, extra: Mapping[str, Any] | None = None) -> BundleManifest:
    """Hash every file of a staged folder and write ``bundle.json``; ``extra`` goes to ``measured``."""
    files = KIND.hashed(folder)
    manifest = manifest.model_copy(update={"files": files, "measured": {**manifest.measured, **dict(extra or {})}})
    KIND.write(folder, manifest)
    return manifest
