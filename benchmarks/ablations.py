"""The contribution of each part of TeSO: the same model without it, trained and scored in the same way.

    python -m benchmarks run ablations --data MEDIA --start FILE.safetensors --work DIR [--steps 1500] [--scenes 100]

Every variant begins with the encoders and the decoder of a trained model and a random fusion. All learn from the same
scenes at 112 × 112. An interrupted run continues: what DIR already holds is not computed again. Writes
``results/ablations-<recipe>.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results_files import add_out, record
from teso_deploy.backends.onnxruntime import make_onnxruntime_factory
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.report import environment_of
from teso_deploy.conversion.bundle_export import export_bundle
from teso_deploy.conversion.vocabulary import build_cue_table, read_shipped_nouns
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, label_words, read_library
from teso_deploy.evaluation.protocols.composed_scenes import ComposedScenes, make_predictor
from teso_deploy.evaluation.scoring import score_protocol
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.recipe import Recipe, TrainPhase, load_recipe
from teso_deploy.training.loop import START_PARTS, train_model

SIZE = (112, 112)
#: Name → parts of the fusion that are removed.
VARIANTS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "without SeDAM": ("sedam",),
    "without PMQS": ("pmqs",),
    "without dynamic mask": ("dynamic_mask",),
    "without InfoNCE": (),
    "without text": ("text",),
    "without audio": ("audio",),
}

#: The meaning of a row. If something sounds, it says how well that is found. If nothing sounds, it says how often a
#: mask appears.
FIGURE = {
    "one source": ("miou",), "two sources": ("miou", "binary_miou"), "silent distractor": ("miou",),
    "muted": ("blank_rate",), "white noise": ("blank_rate",), "off-screen": ("blank_rate",),
    "swapped": ("follows_rate",),
}  # fmt: skip
NAMES = {"miou": "mIoU", "binary_miou": "names aside", "blank_rate": "blank", "follows_rate": "follows"}


def make_variant(
    recipe: Recipe,
    name: str,
    *,
    steps: int,
    without: Sequence[str] = (),
    train: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """Return the recipe of a variant, which is trained on scenes of one picture size.

    Args:
        recipe: The whole recipe.
        name: Name of the variant.
        steps: Steps of the training.
        without: Parts of the fusion to remove. Default: none.
        train: Values of ``[train]`` that differ. Default: none.
    """
    assert recipe.train is not None
    phase = TrainPhase(size=SIZE, steps=steps, scale=recipe.train.phases[0].scale)
    alone = {"phases": (phase,), "encoders": None, "picture_teacher": None, "sound_teacher": None}
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-{name.replace(' ', '-').lower()}",
            "image": recipe.image.model_copy(update={"sizes": (SIZE,)}),
            "fusion": recipe.fusion.model_copy(update={"without": tuple(without)}),
            "train": recipe.train.model_copy(update=alone | dict(train)),
        }
    )


def train_variant(
    recipe: Recipe,
    folder: Path,
    *,
    data: Path,
    start: Path,
    embeddings: Mapping[str, NDArray[np.float32]],
    save_every_steps: int = 100,
) -> Pipeline:
    """Train and export a variant, unless its bundle is in the folder. Return its pipeline.

    Args:
        recipe: The recipe of the variant.
        folder: The folder of its training and its bundle. An interrupted training continues.
        data: The media folder.
        start: Checkpoint of the encoders and of the decoder.
        embeddings: Word → (d_T,).
        save_every_steps: Steps between two saved states. Default: 100.
    """
    if not (folder / "bundle").is_dir():
        print(f"{recipe.name}: training", flush=True)
        weights = train_model(
            recipe,
            data,
            folder,
            embeddings=embeddings,
            start=start,
            start_parts=(*START_PARTS, "decoder"),
            save_every_steps=save_every_steps,
        )
        export_bundle(recipe, folder / "bundle", weights)
    return Pipeline(Bundle.open(folder / "bundle"), make_onnxruntime_factory())


def embed_all_words(recipe: Recipe, data: Path) -> dict[str, NDArray[np.float32]]:
    """Embed the shipped nouns and all labels of a media folder."""
    words, embeddings = build_cue_table(recipe, sorted({*read_shipped_nouns(), *label_words(data)}))
    return dict(zip(words, embeddings, strict=True))


def score_scenes(
    pipeline: Pipeline, library: MediaLibrary, *, scenes: int, seeds: int
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """Score a model on composed scenes. The cues are the names of all visible objects.

    Args:
        pipeline: The model.
        library: The media of the scenes.
        scenes: Scenes of a row and seed.
        seeds: Seeds of the scenes.

    Returns:
        The figures by name, and all scores.
    """
    composed = ComposedScenes(library, pipeline.classes, scenes, range(seeds))
    scores = score_protocol(composed, make_predictor(pipeline, library))
    figures = {
        f"{score.group} ({NAMES[figure]})": score.values[figure] for score in scores for figure in FIGURE[score.group]
    }
    return figures, [composed.report_score(score) for score in scores]


def measure(
    recipe: Recipe, *, data: Path, start: Path, work: Path, steps: int, scenes: int, seeds: int
) -> dict[str, Any]:
    """Train, export and score every variant, and return the report."""
    table = embed_all_words(recipe, data)
    library = read_library(data, "test")
    rows, details = [], []
    for name, without in VARIANTS.items():
        train = {"info_nce": 0.0} if name == "without InfoNCE" else {}
        chosen = make_variant(recipe, name, steps=steps, without=without, train=train)
        pipeline = train_variant(chosen, work / chosen.name, data=data, start=start, embeddings=table)
        figures, scores = score_scenes(pipeline, library, scenes=scenes, seeds=seeds)
        details.append({"name": name, "rows": scores})
        rows.append({"name": name, **figures})
        print(rows[-1], flush=True)
    return {
        "schema_version": 1,
        "bound_by": f"{steps} steps at {SIZE[0]} × {SIZE[1]} each; {seeds} seeds of {scenes} scenes a row; "
        f"{library.fingerprint}",
        "rows": rows,
        "scores": details,
        "environment": environment_of(torch.get_num_threads(), pipeline.bundle),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("TESO_AVS_DATA"))
    parser.add_argument("--start", type=Path, required=True, help="checkpoint of the whole recipe")
    parser.add_argument("--work", type=Path, required=True, help="folder for the trained variants")
    parser.add_argument("--recipe", default="teso-nano")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    add_out(parser)
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("name a media folder: --data or TESO_AVS_DATA")
    recipe = load_recipe(options.recipe)
    report = measure(
        recipe,
        data=Path(options.data),
        start=options.start,
        work=options.work,
        steps=options.steps,
        scenes=options.scenes,
        seeds=options.seeds,
    )
    record(f"ablations-{recipe.name}", f"{recipe.name}, part by part", report, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
