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
from teso_deploy.evaluation.contact_sheet import SheetRow, draw_mask, save_sheet
from teso_deploy.evaluation.contracts import Prediction, Predictor
from teso_deploy.evaluation.metrics import compute_iou
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
        miou = line["values"].get("unbiased_miou", line["values"].get("miou"))
        if line["condition"] != NORMAL.name or miou is None:
            return
        push = heapq.heappush if len(self._heap) < self._count else heapq.heappushpop
        push(self._heap, (-miou, line["clip"]))

    @property
    def clips(self) -> list[tuple[str, float]]:
        """Name and mIoU of the clips, the worst first."""
        return [(name, -negated) for negated, name in sorted(self._heap, reverse=True)]


def draw_worst_clips(
    protocol: OpenProtocol, predict: Predictor[ClipTrial], worst: WorstClips, *, path: Path, title: str = ""
) -> None:
    """Write a contact sheet with the worst frame of each clip.

    Args:
        protocol: The protocol on clips.
        predict: The model.
        worst: The clips.
        path: A .png or .jpg file.
        title: A line above everything.

    Raises:
        OutputError: The file can't be written.
    """
    scores = dict(worst.clips)
    samples = {sample.name: sample for sample in protocol.samples() if sample.name in scores}
    rows = []
    for name, miou in worst.clips:
        trials = [trial for trial in protocol.trials(samples[name]) if trial.condition == NORMAL.name]
        trial, prediction = min(((trial, predict(trial)) for trial in trials), key=_measure)
        silent = replace(trial, samples=np.zeros_like(trial.samples), condition="muted", is_negative=True)
        pictures = {
            "picture": trial.image,
            "truth": draw_mask(trial.image, trial.truth),
            "prediction": draw_mask(trial.image, prediction.labels),
            "muted": draw_mask(trial.image, predict(silent).labels),
        }
        words = f" ({', '.join(trial.words)})" if trial.words else ""
        rows.append(SheetRow(f"{name}{words}, second {trial.frame}: mIoU of the clip {miou:.3f}", [*pictures.items()]))
    save_sheet(path, rows, title=title)


def _measure(answer: tuple[ClipTrial, Prediction]) -> float:
    trial, prediction = answer
    return compute_iou(prediction.labels > 0, trial.truth > 0)
