"""An exported model on disk: a folder whose manifest lists every file in it with its hash.

``bundle.json`` has the size and SHA-256 of each file. Opening a bundle checks them all, so that the files that run are
the exported ones. A bundle is written next to its final folder and then moved there as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from teso_deploy.array_files import Expected, read_arrays
from teso_deploy.bundle_tables import (
    OLDEST_SCHEMA_VERSION,
    SCHEMA_VERSION,
    STANDARD,
    AudioEntry,
    BundleManifest,
    CueEntry,
    EngineEntry,
    FormEntry,
    GraphEntry,
    Postprocessing,
    Preprocessing,
    TaggerEntry,
    TensorSpec,
    TextEncoderEntry,
    make_sized_name,
)
from teso_deploy.errors import BundleError, InputNotFoundError
from teso_deploy.external_data import check_graph
from teso_deploy.hub import hub_snapshot
from teso_deploy.program import Program
from teso_deploy.recipe import Recipe
from teso_deploy.resources import find_shipped_path
from teso_deploy.sealed import Kind
from teso_deploy.text import to_one_line
from teso_deploy.types import PRECISIONS, Precision

__all__ = [
    "CUE_TABLE",
    "DEFAULT_BUNDLE",
    "KIND",
    "MANIFEST",
    "REFERENCE",
    "SCHEMA_VERSION",
    "STANDARD",
    "AudioEntry",
    "Bundle",
    "BundleManifest",
    "CueEntry",
    "EngineEntry",
    "FormEntry",
    "GraphEntry",
    "Postprocessing",
    "Preprocessing",
    "TaggerEntry",
    "TensorSpec",
    "TextEncoderEntry",
    "make_sized_name",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "bundle.json"
REFERENCE = "reference.npz"
CUE_TABLE = "cues.npz"
DEFAULT_BUNDLE = "teso-nano"
KIND = Kind(MANIFEST, SCHEMA_VERSION, frozenset({"schema_version", "graphs", "files"}), "teso-deploy export",
            "export the bundle again", oldest_schema_version=OLDEST_SCHEMA_VERSION)  # fmt: skip


def find_bundle_folder(path: str | Path | None) -> Path:
    """Return the folder that :meth:`Bundle.open` opens; None: the shipped bundle's."""
    return Path(path) if path is not None else find_shipped_path(f"engines/bundles/{DEFAULT_BUNDLE}")


class Bundle:
    """An opened, checked bundle."""

    def __init__(self, folder: Path, manifest: BundleManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path | None = None) -> Bundle:
        """Open a bundle's folder (default: the shipped one) and check every file.

        The path may also be a model's root in the cache of the Hugging Face hub; then the folder with its files is
        opened.

        Raises:
            InputNotFoundError: There is no such folder.
            BundleError: The manifest is missing or invalid, or a file is missing, changed or outside the folder.
        """
        folder = find_bundle_folder(path)
        if not os.path.isdir(folder):  # Path.is_dir raises for a folder without permission
            raise InputNotFoundError(
                f"no bundle {to_one_line(folder)}: give the folder that `teso-deploy export` wrote"
            )
        folder = hub_snapshot(folder)
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
        encoder = cue.encoder if cue else None
        wanted |= {cue.table} if cue and cue.table else set()
        wanted |= {encoder.graph, encoder.weights, encoder.tokenizer} if encoder else set()
        if unlisted := wanted - self.manifest.files.keys() - {MANIFEST}:
            raise BundleError(
                f"{self.folder}: the manifest gives no hash of {to_one_line(sorted(unlisted)[0])}; "
                "export the bundle again"
            )
        graphs = {entry.file for entry in entries} | ({encoder.graph} if encoder else set())
        for name in sorted(graphs):
            check_graph(self.folder, name, self.manifest.files)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 1."""
        return self.manifest.classes

    @property
    def program(self) -> Program:
        """How the bundle's graphs are connected."""
        return self.manifest.program

    @property
    def recipe(self) -> Recipe:
        """The recipe that the bundle was made from."""
        try:
            return Recipe.model_validate(self.manifest.recipe)
        except ValidationError as error:
            raise BundleError(f"{self.folder}: the manifest's recipe is damaged; export the bundle again") from error

    def path(self, name: str) -> Path:
        """Return the path of one of the bundle's files.

        Raises :class:`BundleError` if the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} has no file {name}, only {', '.join(self.manifest.files)}")
        return self.folder / name

    def graph_path(self, graph: str, form: str | None = None) -> Path:
        """Return the path of a canonical graph, or of a form of it. Raises :class:`BundleError`."""
        if graph not in self.manifest.graphs:
            raise BundleError(f"{self.folder} has no graph {graph!r}, only {', '.join(self.manifest.graphs)}")
        if form is None:
            return self.folder / self.manifest.graphs[graph].file
        if form not in self.manifest.forms:
            there = ", ".join(self.manifest.forms) or "none"
            raise BundleError(
                f"{self.folder} has no form {form} (it has: {there}): export it again with that precision"
            )
        if graph not in self.manifest.forms[form]:
            raise BundleError(f"{self.folder}: form {form} lacks {graph}; export the bundle again")
        return self.folder / self.manifest.forms[form][graph].file

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The buckets (height, width). The first is the size at which the model was trained."""
        return self.manifest.preprocessing.sizes

    def form_for(self, targets: Sequence[str], precision: Precision) -> str | None:
        """Choose the form of the graphs that a backend runs.

        Args:
            targets: Runtimes whose forms the backend can run, the best first: ``onnxruntime``, ``onnx``.
            precision: Precision of the graphs.

        Returns:
            Name of the form in the manifest. None: the canonical graphs, which every backend runs in fp32.

        Raises:
            BundleError: The bundle has no form of that precision.
        """
        for target in targets:
            if (name := f"{target}-{precision}") in self.manifest.forms:
                return name
        if precision == "fp32":
            return None
        there = [p for p in PRECISIONS if any(f"{target}-{p}" in self.manifest.forms for target in targets)]
        raise BundleError(
            f"bundle {self.manifest.name} has no {precision} form for {' or '.join(targets)} (there: "
            f"{', '.join(dict.fromkeys(['fp32', *there]))}): "
            f"teso-deploy export {self.folder} --out FOLDER --precision {precision}"
        )

    def precision_of(self, graph: str, form: str | None) -> Precision:
        """Return the precision of a graph of a form; ``form`` None: the canonical graph."""
        return "fp32" if form is None else self.manifest.forms[form][graph].precision

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise :class:`BundleError` for a size (height, width) that is not a bucket."""
        if size not in self.sizes:
            there = ", ".join(f"{height}x{width}" for height, width in self.sizes)
            raise BundleError(
                f"{size[0]}x{size[1]} is not a picture size of bundle {self.manifest.name} (height x width: {there}): "
                "name one of these, or export it with --size"
            )

    def graph_at(self, graph: str, size: tuple[int, int]) -> str:
        """Return the name of a graph in the manifest at a bucket (height, width).

        Raises :class:`BundleError` for a size that is not a bucket.
        """
        self.check_size(size)
        sized = make_sized_name(graph, size)
        return sized if sized in self.manifest.graphs else graph

    def arrays(self, name: str, wanted: Mapping[str, Expected] | None = None) -> dict[str, NDArray[Any]]:
        """Read the arrays of one of the bundle's .npz files; see :func:`read_arrays`. Raises :class:`BundleError`."""
        return read_arrays(self.path(name), wanted)

    def reference(self) -> dict[str, NDArray[Any]]:
        """Read ``reference.npz``: inputs of the graphs, and PyTorch's outputs for them."""
        return self.arrays(REFERENCE)


def read_manifest(folder: Path) -> BundleManifest:
    """Read ``bundle.json`` of a folder. Raises :class:`BundleError`, which says what is wrong with it."""
    return KIND.read(folder, BundleManifest)


def write_manifest(folder: Path, manifest: BundleManifest, extra: Mapping[str, Any] | None = None) -> BundleManifest:
    """Hash every file of a staged folder and write ``bundle.json``.

    Args:
        folder: The staged folder.
        manifest: The manifest without hashes.
        extra: Figures that are added to ``measured``. Default: none.

    Returns:
        The manifest with the hashes.
    """
    files = KIND.hash_files(folder)
    manifest = manifest.model_copy(
        update={
            "schema_version": SCHEMA_VERSION,
            "files": files,
            "measured": {**manifest.measured, **dict(extra or {})},
        }
    )
    KIND.write(folder, manifest)
    return manifest
