"""Pictures of training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from teso_deploy.outputs import open_staged_file

PANELS = (
    ("teachers", ("picture_teacher", "sound_teacher")),
    ("masks", ("bce", "dice", "class")),
    ("sound and cues", ("cue_gate", "audio_tags", "info_nce", "dense_tags")),
    ("training batches", ("iou", "blank_rate")),
)


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Return the running mean of the values that are numbers."""
    kept = np.array(values, float)
    seen = ~np.isnan(kept)
    window = np.ones(width)
    total = np.convolve(np.where(seen, kept, 0), window, mode="same")
    return total / np.maximum(np.convolve(seen, window, mode="same"), 1)


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write the curves of a log as PNG, a panel for each of ``PANELS``."""
    if not rows:
        return
    figure = Figure(figsize=(15, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    steps = [row["step"] for row in rows]
    width = max(1, len(rows) // 100)
    for axes, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name in names:
            if any(name in row for row in rows):
                axes.plot(steps, smooth([row.get(name, math.nan) for row in rows], width), label=name, lw=1.3)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    with open_staged_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
