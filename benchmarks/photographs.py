"""Natural photographs with their own recordings: is the sounding object found, and nothing found in silence?

    python -m benchmarks run photographs FOLDER [--bundle BUNDLE] [--out DIR] [--sheet FILE.png]

FOLDER holds ``WORD.webp`` (or ``.jpg``, ``.png``), ``WORD_mask.png`` and ``WORD.ogg`` (or ``.wav``). The bundle is
offered the photograph's word as its cue. Windows of each recording are taken in hops of 0.24 s. A window counts if the
recording is audible for at least 0.3 s of it. Writes ``photographs-<bundle>.json`` and ``.md``. The sheet shows each
photograph with its own sound, muted, and with the other sounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.results_files import add_out, record
from teso_deploy.comparison.report import environment_of
from teso_deploy.evaluation.datasets.media_folder import SLICE_SAMPLES, read_recording
from teso_deploy.evaluation.metrics import compute_iou
from teso_deploy.evaluation.scenes import HEARD_SECONDS
from teso_deploy.media.overlay import Overlay
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES, Frame, Segmentation

HOP_SLICES = 12
LEVEL_DBFS = -20.0


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph.

    ``image``: (H, W, 3) uint8. ``mask``: (H, W) bool. ``windows``: (N, 15600), from its recording.
    """

    word: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    windows: NDArray[np.float32]


def heard_windows(path: Path) -> NDArray[np.float32]:
    """Cut windows from a recording at hops of 0.24 s in which it is audible for 0.3 s.

    The recording is scaled so that its audible part has -20 dBFS RMS.
    """
    recording = read_recording(path)
    loud = recording.samples[np.repeat(recording.heard, SLICE_SAMPLES).nonzero()]
    samples = recording.samples * np.float32(10 ** (LEVEL_DBFS / 20) / np.sqrt((loud.astype(np.float64) ** 2).mean()))
    samples = samples.clip(-1, 1)
    samples = np.pad(samples.clip(-1, 1), (0, WINDOW_SAMPLES))
    length = WINDOW_SAMPLES // SLICE_SAMPLES
    starts = [
        start
        for start in range(0, len(recording.heard), HOP_SLICES)
        if recording.heard[start : start + length].sum() >= HEARD_SECONDS * SAMPLE_RATE_HZ / SLICE_SAMPLES
    ]
    return np.stack([samples[start * SLICE_SAMPLES :][:WINDOW_SAMPLES] for start in starts])


def read_photographs(folder: Path) -> list[Photograph]:
    """Read every photograph of a folder that has a mask and a recording."""
    found = []
    for mask in sorted(folder.glob("*_mask.png")):
        word = mask.name.removesuffix("_mask.png")
        images = [path for path in sorted(folder.glob(f"{word}.*")) if path.suffix in (".webp", ".jpg", ".png")]
        sounds = [path for path in sorted(folder.glob(f"{word}.*")) if path.suffix in (".ogg", ".wav")]
        if images and sounds:
            truth = Image.open(mask).convert("L")
            image = Image.open(images[0]).convert("RGB").resize(truth.size, Image.Resampling.BILINEAR)
            found.append(Photograph(word, np.asarray(image), np.asarray(truth) > 127, heard_windows(sounds[0])))
    return found


def measure(pipeline: Pipeline, photographs: list[Photograph]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """Measure all photographs. Return the report, and a row of pictures for each."""
    rows, pictures = [], []
    for photograph in photographs:

        def segmented(window: NDArray[np.float32], of: Photograph = photograph) -> Segmentation:
            return pipeline.segment(of.image, window, [of.word])

        label = 1 + pipeline.classes.index(photograph.word)
        own = [segmented(window) for window in photograph.windows]
        ious = [compute_iou(found.labels == label, photograph.mask) for found in own]
        muted = segmented(np.zeros(WINDOW_SAMPLES, np.float32))
        others = [segmented(window) for other in photographs if other is not photograph for window in other.windows]
        rows.append(
            {
                "name": photograph.word,
                "windows": len(own),
                "own sound, IoU": round(float(np.mean(ious)), 3),
                "own sound, best IoU": round(max(ious), 3),
                "own sound, blank": round(float(np.mean([found.is_blank for found in own])), 3),
                "muted, blank": float(muted.is_blank),
                "others' sounds, blank": round(float(np.mean([found.is_blank for found in others])), 3),
            }
        )
        overlay = Overlay(pipeline.classes, None, 1.0)
        frame = Frame(photograph.image, pts_seconds=0.0)
        middling = own[int(np.argsort(ious)[len(ious) // 2])]
        shown = [
            overlay.draw(frame, found)[: frame.image.shape[0]] for found in (middling, muted, others[0], others[-1])
        ]
        side = [Image.fromarray(picture).resize((320, 240), Image.Resampling.BILINEAR) for picture in shown]
        pictures.append(np.concatenate([np.asarray(picture) for picture in side], axis=1))
    report = {
        "schema_version": 1,
        "bound_by": "every window of each recording in which it is heard for 0.3 s, 0.24 s apart; cue: the name",
        "rows": rows,
        "environment": environment_of(2, pipeline.bundle),
    }
    return report, pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path)
    add_out(parser)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args(arguments)
    photographs = read_photographs(options.folder)
    if not photographs:
        parser.error(f"{options.folder} has no WORD_mask.png with a photograph and a recording of that name")
    pipeline = Pipeline.load(options.bundle, threads=2)
    report, pictures = measure(pipeline, photographs)
    name = f"photographs-{pipeline.bundle.manifest.name}"
    record(name, "natural photographs, their own recordings", report, out=options.out)
    if options.sheet is not None:
        Image.fromarray(np.concatenate(pictures)).save(options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
