"""From a bundle to one with other forms: of another precision, or as this version derives them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from teso_deploy.backends.onnxruntime import TARGET as ONNXRUNTIME
from teso_deploy.backends.onnxruntime import onnxruntime_factory
from teso_deploy.bundle import MANIFEST, Bundle, FormEntry, GraphEntry, staging, write_manifest
from teso_deploy.cues.table import CueTable
from teso_deploy.errors import CheckFailedError
from teso_deploy.exporting.forms import Forms, check_space
from teso_deploy.exporting.frames import video_frames
from teso_deploy.exporting.weights import WeightsFile, save_with_weights
from teso_deploy.resources import shipped_path
from teso_deploy.runtime.verify import VerifyReport, verify_bundle
from teso_deploy.types import Precision


def _canonical(source: Bundle, folder: Path) -> tuple[dict[str, GraphEntry], dict[str, WeightsFile]]:
    """The canonical graphs, with their weights alone, in another folder."""
    weights: dict[str, WeightsFile] = {}
    graphs = {}
    for key, entry in source.manifest.graphs.items():
        name = key.partition("@")[0]
        file = weights.setdefault(name, WeightsFile(folder / f"{name}.weights"))
        save_with_weights(ir.load(source.graph_path(key)), folder / entry.file, file)
        graphs[key] = entry.model_copy(update={"weights": file.path.name})
    return graphs, weights


def derive_bundle(
    source: Bundle,
    out: Path,
    precisions: Sequence[Precision] = ("fp32",),
    calibrate_on: Sequence[Path] = (),
    on_progress: Callable[[str], None] = lambda stage: None,
) -> tuple[Bundle, VerifyReport]:
    """Write ``source`` to ``out`` with the forms of ``precisions`` derived anew from its canonical graphs.

    ``out`` may be the source's own folder. ``calibrate_on``: as for :func:`export_bundle`. Weights, reference
    and cue table stay; forms of other precisions are left out. Raises :class:`OutputError`,
    :class:`PrecisionError`, :class:`CheckFailedError` (parity with the reference).
    """
    weights_bytes = sum(4 * entry.parameters for key, entry in source.manifest.graphs.items() if "@" not in key)
    check_space(weights_bytes, out, len(source.sizes), precisions)
    with staging(out) as folder:
        on_progress("canonical graphs")
        named = {source.manifest.graphs[key].file for key in source.manifest.graphs}
        named |= {entry.file for form in source.manifest.forms.values() for entry in form.values()}
        named |= {entry.weights for entry in source.manifest.graphs.values() if entry.weights}
        for name in source.manifest.files.keys() - named - {MANIFEST}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path(name), folder / name)
        graphs, weights = _canonical(source, folder)
        recipe, table = source.recipe, CueTable.open(source)
        videos = tuple(calibrate_on) or (shipped_path("export/demo/clip.mp4"),)
        writer = Forms(
            folder,
            graphs,
            weights,
            lambda: video_frames(recipe, source.sizes[0], table, videos),
            source.manifest.postprocessing.threshold,
            source.manifest.trained,
            on_progress,
        )
        forms: dict[str, dict[str, FormEntry]] = {}
        for precision in dict.fromkeys(precisions):
            forms |= writer.write(precision)
        measured = {key: value for key, value in source.manifest.measured.items() if key not in ("parity", "int8")}
        update = {"graphs": graphs, "forms": forms, "measured": measured}
        manifest = write_manifest(folder, source.manifest.model_copy(update=update))
        on_progress("parity with the reference")
        staged = Bundle.open(folder)
        ours = [form for form in forms if form.startswith(f"{ONNXRUNTIME}-")]
        parity = verify_bundle(staged, lambda form: onnxruntime_factory(None, form), ours, is_thorough=False)
        if not parity.passed:
            raise CheckFailedError(f"the forms differ from the model, nothing was written ({parity.failures[0]})")
        manifest = write_manifest(folder, manifest, {"parity": parity.graphs_as_dict(), **writer.notes})
    return Bundle(out, manifest), parity
