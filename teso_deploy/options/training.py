"""How a model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teso_deploy.options.fields import Options, option


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """How a model is trained.

    Attributes:
        layout: for training on videos: ``s4``, ``ms3`` or ``avss``. Default: the one that the folder has.
        cues_file: for training on videos: JSON with the cues of each frame.
        device: ``cpu`` or ``cuda``. Default: ``cpu``.
        workers: for training on scenes: processes that make scenes ahead. Default: 0.
        save_every_steps: steps between saved states. Default: 100.
    """

    layout: str | None = option(
        None, "For a data set of videos: s4, ms3 or avss; default: the layout that the folder has."
    )
    cues_file: Path | None = option(
        None, 'For training on videos: JSON with the cues of each frame, {"uid": {"f0": "guitar,"}}.'
    )
    device: str = option("cpu", "cpu or cuda.")
    workers: int = option(0, "Number of processes that make scenes in advance, for a GPU.", minimum=0)
    save_every_steps: int = option(100, "Number of steps between saved states.", minimum=1)
