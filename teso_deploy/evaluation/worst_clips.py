"""The clips on which a model is worst, as a contact sheet: picture, truth, prediction and the prediction when muted."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from teso_deploy.evaluation.clip_trials import ClipTrial
from teso_deploy.evaluation.conditions import NORMAL
from teso_deploy.evaluation.contact_sheet import SheetRow, draw_labels, draw_mask, save_sheet
from teso_deploy.evaluation.contracts import Prediction, Predictor
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.metrics import compute_iou
from teso_deploy.evaluation.prediction_files import SEMANTIC
from teso_deploy.evaluation.protocols.registry import OpenProtocol


class WorstClips:
    """Finds the clips with the lowest mIoU, in constant memory.

    Args:
        count: How many clips to keep.
    """

    def __init__(self, count: int = 12) -> None:
        self._count = count
        self._heap: list[tuple[float, str]] = []  # the best of the worst first: scores are negated

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Look at the scores of a clip in one condition. Only those of its own sound count."""
        miou = _get_miou(line)
        if line["condition"] != NORMAL.name or miou is None:
            return
        push = heapq.heappush if len(self._heap) < self._count else heapq.heappushpop
        push(self._heap, (-miou, line["clip"]))

    @property
    def clips(self) -> list[tuple[str, float]]:
        """Name and mIoU of the clips, the worst first."""
        return [(name, -negated) for negated, name in sorted(self._heap, reverse=True)]


def _get_miou(line: Mapping[str, Any]) -> float | None:
    """Return the mIoU of a clip. With classes it is the mean over those that occur in the clip.

    The published mean over 71 classes would put clips with few classes first, however good their masks are.
    """
    if ious := line.get("class_ious"):
        return float(np.mean([total / frames for total, frames in ious.values()]))
    miou: float | None = line["values"].get("miou")
    return miou


def draw_worst_clips(
    protocol: OpenProtocol, predict: Predictor[ClipTrial], worst: WorstClips, *, path: Path, title: str = ""
) -> None:
    """Write a contact sheet with the worst frame of each clip. The protocol ``avss`` gives each class its colour.

    Args:
        protocol: The protocol on clips.
        predict: The model.
        worst: The clips.
        path: A .png or .jpg file.
        title: A line above everything.

    Raises:
        OutputError: The file can't be written.
    """
    scores, has_classes = dict(worst.clips), protocol.name == SEMANTIC
    draw = draw_labels if has_classes else draw_mask
    drawn: set[int] = set()
    samples = {sample.name: sample for sample in protocol.samples() if sample.name in scores}
    rows = []
    for name, miou in worst.clips:
        trials = [trial for trial in protocol.trials(samples[name]) if trial.condition == NORMAL.name]
        answers = ((trial, predict(trial)) for trial in trials)
        trial, prediction = min(answers, key=lambda answer: _measure(*answer, has_classes=has_classes))
        silent = replace(trial, samples=np.zeros_like(trial.samples), condition="muted", is_negative=True)
        masks = {
            "truth": trial.truth,
            "prediction": prediction.labels,
            "muted": predict(silent).labels,
        }
        drawn.update(*(np.unique(labels).tolist() for labels in masks.values()))
        words = f" ({', '.join(trial.words)})" if trial.words else ""
        pictures = [("picture", trial.image), *((text, draw(trial.image, mask)) for text, mask in masks.items())]
        rows.append(SheetRow(f"{name}{words}, frame {trial.frame + 1}: mIoU of the clip {miou:.3f}", pictures))
    names = list_avss_classes() if has_classes else ()
    save_sheet(path, rows, title=title, legend={k: names[k - 1] for k in sorted(drawn) if k} if has_classes else None)


def _measure(trial: ClipTrial, prediction: Prediction, *, has_classes: bool) -> float:
    """Return the IoU of a frame, or the mean over the classes that are predicted or true; 1 if both are blank."""
    predicted, truth = prediction.labels, trial.truth
    classes = np.unique(np.append(predicted, truth))
    if not has_classes or not classes.any():
        return compute_iou(predicted > 0, truth > 0)
    return float(np.mean([compute_iou(predicted == k, truth == k) for k in classes if k]))
