"""Every layout of a data set of videos, as data. To add one, write a module in this package and an entry here."""

from __future__ import annotations

from typing import Literal

from teso_deploy.evaluation.datasets.contracts import DataLayout
from teso_deploy.named_objects import load_object

Layout = Literal[
    "s4", "ms3", "avss", "clips",
    "v3-0-shot", "v3-1-shot", "v3-3-shot", "v3-5-shot",
    "robust-silence", "robust-noise", "robust-off-screen",
]  # fmt: skip

_HERE = "teso_deploy.evaluation.datasets"
#: Layout → "module:object"; the object is a :class:`DataLayout`.
LAYOUTS: dict[Layout, str] = {
    "s4": f"{_HERE}.s4:LAYOUT",
    "ms3": f"{_HERE}.ms3:LAYOUT",
    "avss": f"{_HERE}.avss:LAYOUT",
    "clips": f"{_HERE}.clips:LAYOUT",
    "v3-0-shot": f"{_HERE}.v3:ZERO_SHOT",
    "v3-1-shot": f"{_HERE}.v3:ONE_SHOT",
    "v3-3-shot": f"{_HERE}.v3:THREE_SHOTS",
    "v3-5-shot": f"{_HERE}.v3:FIVE_SHOTS",
    "robust-silence": f"{_HERE}.robust:SILENCE",
    "robust-noise": f"{_HERE}.robust:NOISE",
    "robust-off-screen": f"{_HERE}.robust:OFF_SCREEN",
}


def load_layout(name: Layout) -> DataLayout:
    """Import a layout."""
    layout: DataLayout = load_object(LAYOUTS[name])
    return layout


def find_layout(name: str) -> Layout | None:
    """Return the layout of this name; None if there is none."""
    return next((layout for layout in LAYOUTS if layout == name), None)
