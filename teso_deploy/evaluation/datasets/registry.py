"""Every layout of a data set of videos, as data. To add one, write a module in this package and an entry here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.contracts import DataLayout
from teso_deploy.named_objects import load_object

Layout = Literal[
    "s4", "ms3", "avss", "clips",
    "v3-0-shot", "v3-1-shot", "v3-3-shot", "v3-5-shot",
    "robust-silence", "robust-noise", "robust-off-screen",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """An entry of the registry.

    Attributes:
        layout: "module:object"; the object is a :class:`DataLayout`.
        summary: What the data set is, as one phrase.
    """

    layout: str
    summary: str


_HERE = "teso_deploy.evaluation.datasets"
LAYOUTS: dict[Layout, LayoutEntry] = {
    "s4": LayoutEntry(f"{_HERE}.s4:LAYOUT", "AVSBench-object, one source (V1S)"),
    "ms3": LayoutEntry(f"{_HERE}.ms3:LAYOUT", "AVSBench-object, several sources (V1M)"),
    "avss": LayoutEntry(f"{_HERE}.avss:LAYOUT", "AVSBench-semantic: v1s, v1m and v2 with classes"),
    "clips": LayoutEntry(f"{_HERE}.clips:LAYOUT", "any folder of clips or videos with masks"),
    "v3-0-shot": LayoutEntry(f"{_HERE}.v3:ZERO_SHOT", "AVS-V3, unseen classes"),
    "v3-1-shot": LayoutEntry(f"{_HERE}.v3:ONE_SHOT", "AVS-V3, one clip of each unseen class"),
    "v3-3-shot": LayoutEntry(f"{_HERE}.v3:THREE_SHOTS", "AVS-V3, three clips of each unseen class"),
    "v3-5-shot": LayoutEntry(f"{_HERE}.v3:FIVE_SHOTS", "AVS-V3, five clips of each unseen class"),
    "robust-silence": LayoutEntry(f"{_HERE}.robust:SILENCE", "AVSBench-Robust, silence"),
    "robust-noise": LayoutEntry(f"{_HERE}.robust:NOISE", "AVSBench-Robust, noise"),
    "robust-off-screen": LayoutEntry(f"{_HERE}.robust:OFF_SCREEN", "AVSBench-Robust, sounds of other things"),
}


def load_layout(name: Layout) -> DataLayout:
    """Import a layout."""
    layout: DataLayout = load_object(LAYOUTS[name].layout)
    return layout


def find_layout(name: str) -> Layout:
    """Return the layout of this name. Raises :class:`DataError` for an unknown name."""
    for layout in LAYOUTS:
        if layout == name:
            return layout
    raise DataError(f"unknown layout {name!r}: name one of {', '.join(LAYOUTS)}")
