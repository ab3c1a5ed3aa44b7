"""Calibration of the three thresholds that training does not set: of ξ, of the masks (τ) and of the tags.

They are chosen on scenes of training pictures with training sounds that no step used
(:func:`teso_deploy.evaluation.datasets.media_folder.read_library`, split ``calibration``). The split ``test`` is
not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from teso_deploy.errors import CheckpointError
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, read_library
from teso_deploy.evaluation.metrics import compute_iou
from teso_deploy.evaluation.protocols.composed_scenes import SceneTrial, find_testable_words, make_scene
from teso_deploy.labels import labels_of
from teso_deploy.models import build, checkpoints, weight_files
from teso_deploy.models.decoder import Memory, compute_scores
from teso_deploy.models.teso import Teso
from teso_deploy.pipeline.preprocess import normalise_picture, resize_picture
from teso_deploy.recipe import Calibration
from teso_deploy.training.loop import WEIGHTS

#: The share of sounds of invisible things that may open a gate, in each blank row separately: noise, which is easy
#: to reject, must not compensate for the voices of other things.
FALSE_ALARM_RATE = 0.05
SOUNDING_ROWS = ("one source", "two sources", "silent distractor")
BLANK_ROWS = ("white noise", "off-screen")
_MASK_THRESHOLDS = tuple(round(0.2 + 0.05 * i, 2) for i in range(13))
_TAG_THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True, slots=True)
class _Seen:
    """A trial, and the outputs of the encoders for it."""

    trial: SceneTrial
    memory: Memory
    audio: torch.Tensor
    cues: torch.Tensor
    cue_valid: torch.Tensor
    names: tuple[str, ...]
    gates: NDArray[np.float32]


def _make_trials(
    model: Teso,
    library: MediaLibrary,
    embeddings: Mapping[str, NDArray[np.float32]],
    *,
    row: str,
    scenes: int,
    seed: int,
) -> Iterator[_Seen]:
    recipe = model.recipe
    words = find_testable_words(
        library, recipe.head.classes if recipe.head.kind == "semantic" else sorted(library.sounds)
    )
    for number in range(scenes):
        for trial in make_scene(library, words, row, seed=seed, number=number):
            picture = resize_picture(trial.picture.image, recipe.image.sizes[0])
            memory = model.visual_encoder(
                torch.from_numpy(normalise_picture(picture, mean=recipe.image.mean, std=recipe.image.std))
            )
            names = tuple(dict.fromkeys(word for word in trial.picture.words if word in embeddings))
            names = names[: recipe.text.max_cues]
            cues = torch.zeros(1, recipe.text.max_cues, recipe.text.dim)
            valid = torch.zeros(1, recipe.text.max_cues, dtype=torch.bool)
            for slot, name in enumerate(names):
                cues[0, slot] = torch.from_numpy(embeddings[name])
                valid[0, slot] = True
            audio = model.audio_encoder(torch.from_numpy(trial.samples)[None])
            _, gates, _ = model.fusion.fuse(audio, cues, valid)
            yield _Seen(trial, memory, audio, cues, valid, names, gates[0, : len(names)].numpy())


def _find_gate_threshold(sounding: NDArray[np.float32], blank: Sequence[NDArray[np.float32]]) -> float:
    """Return the lowest threshold of ξ that at most ``FALSE_ALARM_RATE`` of each row's blank trials exceed.

    Args:
        sounding: ξ of each cue that sounds.
        blank: For each row, the highest ξ of each trial in which no cue sounds.
    """
    threshold = max(float(np.quantile(row, 1 - FALSE_ALARM_RATE)) for row in blank)
    # If the gates are far apart, their midpoint has the lowest risk on unseen data.
    lowest = float(sounding.min())
    return (threshold + lowest) / 2 if lowest > threshold else threshold


def _measure_miou(model: Teso, seen: _Seen, gate_threshold: float) -> list[float]:
    """Return the mean IoU of a trial's sounding words for each of ``_MASK_THRESHOLDS``."""
    head = model.recipe.head
    queries, _, _ = model.fusion.fuse(seen.audio, seen.cues, seen.cue_valid, gate_threshold=gate_threshold)
    class_logits, mask_logits = model.decoder(queries, seen.memory)
    scores = compute_scores(class_logits, mask_logits, head)[0].numpy()
    picture = seen.trial.picture
    found = []
    for threshold in _MASK_THRESHOLDS:
        labels = labels_of(scores, picture.image.shape[:2], threshold=threshold)
        ious = [
            compute_iou(
                labels == 1 + (head.classes.index(word) if head.kind == "semantic" else 0),
                picture.mask_of([word] if head.kind == "semantic" else seen.trial.heard) > 127,
            )
            for word in seen.trial.heard
        ]
        found.append(float(np.mean(ious)))
    return found


def _tag_threshold(tags: NDArray[np.float32], visible: NDArray[np.bool_]) -> tuple[float, float]:
    """Choose the threshold with the best F2, from tags (N, K) and visible words (N, K); return both.

    F2 weights missing words more: an extra word costs little, because the gate rejects words that do not sound, but a
    missing word is never segmented.
    """

    def f2(threshold: float) -> float:
        named = tags >= threshold
        return 5 * float((named & visible).sum()) / max(1, int(named.sum() + 4 * visible.sum()))

    best = max(_TAG_THRESHOLDS, key=f2)
    return best, f2(best)


@torch.no_grad()
def calibrate(
    model: Teso,
    library: MediaLibrary,
    embeddings: Mapping[str, NDArray[np.float32]],
    *,
    scenes: int = 150,
    seed: int = 0,
) -> Calibration:
    """Choose the thresholds of a trained model.

    The threshold of ξ is chosen first, such that invisible things open a gate in at most ``FALSE_ALARM_RATE`` of the
    trials. With this threshold, τ is chosen by the best mIoU. The threshold of the tags is independent: the best F2.

    Args:
        model: The trained model.
        library: Media of the split ``calibration``.
        embeddings: Word → (d_T,).
        scenes: Number of scenes for each row. Default: 150.
        seed: Seed of the scenes. Default: 0.

    Returns:
        The thresholds, and the model's results with them.
    """
    model.eval()

    def make_trials(*rows: str) -> Iterator[_Seen]:
        return (
            seen for row in rows for seen in _make_trials(model, library, embeddings, row=row, scenes=scenes, seed=seed)
        )

    blank = [
        np.array([seen.gates.max() for seen in make_trials(row) if len(seen.names)], np.float32) for row in BLANK_ROWS
    ]
    # Make each scene twice: keeping the encoders' outputs of all scenes would take gigabytes.
    heard = np.array(
        [
            gate
            for seen in make_trials(*SOUNDING_ROWS)
            for name, gate in zip(seen.names, seen.gates, strict=True)
            if name in seen.trial.heard
        ],
        np.float32,
    )
    gate_threshold = _find_gate_threshold(heard, blank)
    tagger, words = model.visual_encoder.tagger, model.recipe.tagger.words
    ious, tags, visible = [], [], []
    for seen in make_trials(*SOUNDING_ROWS):
        ious.append(_measure_miou(model, seen, gate_threshold))
        if tagger is not None:
            tags.append(tagger(seen.memory.resized[-1])[0].numpy())
            visible.append([word in seen.trial.picture.words for word in words])
    miou = np.mean(ious, axis=0)
    tag_threshold, tag_f2 = _tag_threshold(np.array(tags), np.array(visible)) if tags else (None, None)
    return Calibration(
        gate_threshold=round(gate_threshold, 4),
        mask_threshold=_MASK_THRESHOLDS[int(miou.argmax())],
        tag_threshold=tag_threshold,
        open_rate=round(float((heard > gate_threshold).mean()), 4),
        false_alarm_rate=round(max(float((row > gate_threshold).mean()) for row in blank), 4),
        miou=round(float(miou.max()), 4),
        tag_f2=None if tag_f2 is None else round(tag_f2, 4),
        scenes=scenes,
        seed=seed,
    )


def calibrate_checkpoint(
    path: Path, data: Path, embeddings: Mapping[str, NDArray[np.float32]], *, scenes: int = 150, seed: int = 0
) -> Calibration:
    """Calibrate the model of a training checkpoint, and store the thresholds in the file.

    Args:
        path: The checkpoint that `train` wrote.
        data: The media folder.
        embeddings: Word → (d_T,).
        scenes: Number of scenes for each row. Default: 150.
        seed: Seed of the scenes. Default: 0.

    Returns:
        The thresholds, and the model's results with them.

    Raises:
        CheckpointError: The file is not from `train`, or has other content that would be lost.
        DataError: Too few sounds were excluded from training.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, but the thresholds are stored in a file: name the {WEIGHTS} in it")
    recipe = checkpoints.read_recipe(path)
    library = read_library(data, "calibration", hold_out=recipe.train.hold_out if recipe.train else ())
    model = build(recipe)
    if not weight_files.holds_nothing_but(path, model.state_dict().keys()):
        raise CheckpointError(
            f"{path} holds more than `train` writes, and that would be lost: give the {WEIGHTS} of a run"
        )
    checkpoints.load(model, path)
    calibration = calibrate(model, library, embeddings, scenes=scenes, seed=seed)
    metadata = weight_files.read_metadata(path)
    checkpoints.save(model, path, {**metadata, checkpoints.CALIBRATION: calibration.model_dump_json()})
    return calibration
