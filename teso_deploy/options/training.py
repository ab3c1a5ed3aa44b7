"""How a model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teso_deploy.options.fields import Options, option
from teso_deploy.types import Framing


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """How a model is trained.

    Attributes:
        layout: for training on videos: the layout of the data set. Default: it is detected.
        cues_file: for training on videos: JSON with the cues of each frame.
        framing: for training on videos: the window of frame k begins at k seconds (``per_second``) or at k · 0.96 s
            (``contiguous``). Default: as the recipe says.
        device: ``cpu`` or ``cuda``. Default: ``cpu``.
        workers: for training on scenes: processes that make scenes ahead. Default: 0.
        save_every_steps: steps between saved states. Default: 100.
    """

    layout: str | None = option(
        None, "For training on videos: the layout of the data set, such as s4, ms3 or avss. Default: it is detected."
    )
    cues_file: Path | None = option(
        None, 'For training on videos: JSON with the cues of each frame, {"uid": {"f0": "guitar,"}}.'
    )
    framing: Framing | None = option(
        None,
        "For training on videos: the window of frame k begins at k s (per_second) or at k x 0.96 s (contiguous). "
        "Default: as the recipe says.",
    )
    device: str = option("cpu", "cpu or cuda.")
    workers: int = option(0, "Number of processes that make scenes in advance, for a GPU.", minimum=0)
    save_every_steps: int = option(100, "Number of steps between saved states.", minimum=1)
