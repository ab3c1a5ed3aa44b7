"""The effect of precisions below fp32 on masks and on the audio control, on unseen scenes.

    python -m benchmarks run precisions MEDIA [--bundle B] [--scenes 100] [--out benchmarks/results]

int8 is compared with fp32. A bundle without an int8 form gets one in a temporary folder, calibrated on the shipped
clip. Agreement is given over all labelled pixels together, and as mean and median over the frames that are not blank in
both.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results_files import add_out, record
from teso_deploy.backends.onnxruntime import TARGET as ONNXRUNTIME
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.report import environment_of
from teso_deploy.errors import BundleError, TesoError
from teso_deploy.evaluation.contracts import Prediction
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, read_library
from teso_deploy.evaluation.protocols.composed_scenes import SCENE_ROWS, ComposedScenes, SceneTrial, make_predictor
from teso_deploy.evaluation.scoring import score_protocol
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.types import BLANK_PIXEL_RATE, Precision

Labels = list[NDArray[np.uint8]]


def with_int8(bundle: Bundle, folder: Path) -> Bundle:
    """Return the bundle if it has an int8 form, else a copy that has one."""
    try:
        bundle.form_for((ONNXRUNTIME,), "int8")
    except BundleError:
        from teso_deploy.conversion.derive import derive_bundle

        return derive_bundle(bundle, folder / "int8", ("fp32", "int8"))[0]
    return bundle


def agreement(found: Labels, expected: Labels) -> dict[str, float | None]:
    """Compare labels.

    Returns the IoU of equal labels over all pixels together, its mean and median over frames, and the share of equal
    pixels.
    """
    inter, union, ious = 0, 0, []
    for ours, theirs in zip(found, expected, strict=True):
        either = np.count_nonzero((ours > 0) | (theirs > 0))
        same = np.count_nonzero((ours == theirs) & (ours > 0))
        inter, union = inter + int(same), union + int(either)
        if either >= BLANK_PIXEL_RATE * ours.size:
            ious.append(same / either)
    equal = float(np.mean([np.mean(ours == theirs) for ours, theirs in zip(found, expected, strict=True)]))
    return {
        "mask_iou": round(inter / union, 5) if union else 1.0,
        "mean_frame_iou": round(float(np.mean(ious)), 5) if ious else None,
        "median_frame_iou": round(float(np.median(ious)), 5) if ious else None,
        "equal_pixels": round(equal, 6),
    }


def run_row(
    pipeline: Pipeline, library: MediaLibrary, row: str, *, scenes: int, seed: int
) -> tuple[dict[str, float | None], Labels]:
    """Return the scores of one row, and the labels of each of its frames."""
    predict, labels = make_predictor(pipeline, library), Labels()

    def predict_and_keep(trial: SceneTrial) -> Prediction:
        found = predict(trial)
        labels.append(found.labels)
        return found

    composed = ComposedScenes(library, pipeline.classes, scenes, (seed,), rows=(row,))
    (score,) = score_protocol(composed, predict_and_keep)
    figures = {name: score.values[name] for name in ("miou", "blank_rate")}
    rates = [np.count_nonzero(found) / found.size for found in labels]
    return {
        **{name: None if value is None else round(value, 4) for name, value in figures.items()},
        "positive_pixel_rate": round(float(np.mean(rates)), 5),
    }, labels


def measure(bundle: Bundle, library: MediaLibrary, *, scenes: int, seed: int, threads: int) -> dict[str, Any]:
    """Measure all rows, and return the report."""
    rows: list[dict[str, Any]] = []
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    pipelines = [Pipeline.load(bundle.folder, threads=threads, precision=precision) for precision in precisions]
    for row in SCENE_ROWS:
        expected: Labels = []
        for pipeline, precision in zip(pipelines, precisions, strict=True):
            figures, labels = run_row(pipeline, library, row, scenes=scenes, seed=seed)
            expected = expected or labels
            rows.append({"row": row, "precision": precision, **figures, **agreement(labels, expected)})
    note = bundle.manifest.measured.get("int8", {})
    left_out = note.get("onnxruntime", {}).get("left_out", [])
    return {
        "schema_version": 1,
        "rows": rows,
        "bound_by": f"{scenes} scenes a row, seed {seed}; int8 calibrated on "
        f"{note.get('calibration_frames')} frames, {len(left_out)} of {note.get('products')} products "
        "left in fp32.",
        "environment": environment_of(threads, bundle, data=library.fingerprint),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, nargs="?", default=os.environ.get("TESO_AVS_DATA"))
    parser.add_argument("--bundle", type=Path, help="default: the shipped bundle")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    add_out(parser)
    options = parser.parse_args(arguments)
    if options.media is None:
        parser.error("name the folder of media, or set TESO_AVS_DATA")
    try:
        library = read_library(Path(options.media), "test")
        with tempfile.TemporaryDirectory() as folder:
            bundle = with_int8(Bundle.open(options.bundle), Path(folder))
            report = measure(bundle, library, scenes=options.scenes, seed=options.seed, threads=options.threads)
    except TesoError as error:
        print(f"precisions: {error}", file=sys.stderr)
        return error.exit_code
    name = bundle.manifest.name
    record(f"precisions-{name}-cpu", f"{name} in fp32 and int8", report, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
