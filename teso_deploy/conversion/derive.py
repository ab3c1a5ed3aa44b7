"""Derive a bundle from another: with forms of other precisions, or with the forms of this version."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from teso_deploy.bundle import KIND, MANIFEST, Bundle, GraphEntry
from teso_deploy.conversion.engines import FOLDER as ENGINES
from teso_deploy.conversion.engines import EngineRequest
from teso_deploy.conversion.finishing import Wanted, finish
from teso_deploy.conversion.forms import Forms, check_space
from teso_deploy.conversion.frames import read_video_frames
from teso_deploy.conversion.text_encoder import find_text_graph, write_text_encoder
from teso_deploy.conversion.weights import WeightsFile, save_with_weights
from teso_deploy.cues.table import CueTable
from teso_deploy.resources import find_shipped_path
from teso_deploy.types import Precision
from teso_deploy.verification.verify import VerifyReport


def _copy_canonical(source: Bundle, folder: Path) -> tuple[dict[str, GraphEntry], dict[str, WeightsFile]]:
    """Copy the canonical graphs and their own weights to another folder."""
    weights: dict[str, WeightsFile] = {}
    graphs = {}
    for key, entry in source.manifest.graphs.items():
        name = key.partition("@")[0]
        file = weights.setdefault(name, WeightsFile(folder / f"{name}.weights"))
        save_with_weights(ir.load(source.graph_path(key)), folder / entry.file, file)
        graphs[key] = entry.model_copy(update={"weights": file.name})
    return graphs, weights


def derive_bundle(
    source: Bundle,
    out: Path,
    precisions: Sequence[Precision] = ("fp32",),
    *,
    calibrate_on: Sequence[Path] = (),
    engines: Sequence[EngineRequest] = (),
    on_progress: Callable[[str], None] = lambda stage: None,
    text_encoder: bool = False,
) -> tuple[Bundle, VerifyReport]:
    """Write a bundle again, with new forms derived from its canonical graphs.

    Weights, reference and cue table stay. Forms of other precisions and the source's engines are omitted.

    Args:
        source: The bundle.
        out: The folder of the new bundle, which may be the source's own.
        precisions: Precisions of the forms. Default: fp32.
        calibrate_on: Videos whose frames and sounds set the ranges of int8. Default: the shipped clip.
        engines: Engines to build. Default: none.
        on_progress: Called with the current stage. Default: ignored.
        text_encoder: Whether MiniLM is added to the bundle, for words that are not in its table. Default: no.

    Returns:
        The new bundle and its parity with the reference.

    Raises:
        RecipeError: The cues are CLIP's, so MiniLM can't be added.
        OutputError: The bundle can't be written.
        PrecisionError: A graph can't be computed in a requested precision.
        CheckFailedError: A form differs from the reference.
    """
    encoder = find_text_graph(source.recipe, None) if text_encoder else None
    weights_bytes = sum(4 * entry.parameters for key, entry in source.manifest.graphs.items() if "@" not in key)
    check_space(weights_bytes, out, sizes=len(source.sizes), precisions=precisions)
    with KIND.staging(out) as folder:
        on_progress("canonical graphs")
        named = {source.manifest.graphs[key].file for key in source.manifest.graphs}
        named |= {entry.file for form in source.manifest.forms.values() for entry in form.values()}
        named |= {entry.weights for entry in source.manifest.graphs.values() if entry.weights}
        named |= {name for name in source.manifest.files if name.startswith(f"{ENGINES}/")}
        for name in source.manifest.files.keys() - named - {MANIFEST}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path(name), folder / name)
        graphs, weights = _copy_canonical(source, folder)
        table = CueTable.open(source)
        videos = tuple(calibrate_on) or (find_shipped_path("export/demo/clip.mp4"),)
        writer = Forms(
            folder,
            source.program,
            graphs,
            weights,
            lambda: read_video_frames(source.program, source.manifest.preprocessing, table, videos=videos),
            source.manifest.postprocessing.threshold,
            source.manifest.trained,
            on_progress,
        )
        wanted = Wanted(precisions, engines)
        forms = wanted.write_forms(writer)
        measured = {key: value for key, value in source.manifest.measured.items() if key not in ("parity", "int8")}
        update = {"graphs": graphs, "forms": forms, "engines": (), "measured": measured}
        if encoder is not None and (cue := source.manifest.cue) is not None:
            on_progress("text encoder")
            entry = write_text_encoder(folder, encoder, source.recipe, table=table)
            update["cue"] = cue.model_copy(update={"encoder": entry})
        manifest = source.manifest.model_copy(update=update)
        manifest, parity = finish(folder, manifest, writer=writer, wanted=wanted, on_progress=on_progress)
    return Bundle(out, manifest), parity
