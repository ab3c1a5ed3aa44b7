"""The paper's figures as data: the columns and the clips of each. To add a figure, add an entry here."""

from __future__ import annotations

from dataclasses import dataclass

from teso_deploy.errors import InputNotFoundError
from teso_deploy.evaluation.conditions import NORMAL, Condition
from teso_deploy.evaluation.datasets.contracts import SUBSETS, MaskKind

_MUTED = Condition("muted")


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureColumn:
    """What a figure shows of each bundle, beside the picture and the truth.

    Attributes:
        heading: What is special about it; empty for the model's masks as they are.
        condition: The sound.
        has_cues: Whether cues are offered. Columns without cues are omitted for a method without text.
        is_heat_map: Whether it shows the probability of what sounds, instead of masks.
    """

    heading: str = ""
    condition: Condition = NORMAL
    has_cues: bool = True
    is_heat_map: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureEntry:
    """A figure.

    Attributes:
        name: Its number in the paper.
        title: The line above the sheet.
        columns: The columns of each bundle.
        kind: Which masks are drawn: all in one colour, or each class in its own.
        subsets: The subsets of avss that are shown by default. Other layouts have one only.
        clips: How many clips are shown by default.
    """

    name: str
    title: str
    columns: tuple[FigureColumn, ...]
    kind: MaskKind = "binary"
    subsets: tuple[str, ...] = SUBSETS
    clips: int = 8


FIGURES = {
    entry.name: entry
    for entry in (
        FigureEntry(
            name="4", title="Masks of one and of several sources", columns=(FigureColumn(),), subsets=("v1m", "v1s")
        ),
        FigureEntry(
            name="B6", title="More masks of several sources", columns=(FigureColumn(),), subsets=("v1m",), clips=16
        ),
        FigureEntry(
            name="B7", title="Masks with classes", columns=(FigureColumn(),), kind="semantic", subsets=SUBSETS, clips=16
        ),
        FigureEntry(
            name="J8",
            title="Masks with the clip's sound, muted and with noise in place of the sound",
            columns=(
                FigureColumn(heading="with sound"),
                FigureColumn(heading="muted", condition=_MUTED),
                FigureColumn(heading="noise 10 dBW", condition=Condition("noise", 10.0, "dBW")),
            ),
            subsets=("v1m",),
        ),
        FigureEntry(
            name="J9",
            title="Probability of what sounds, with and without cues and sound",
            columns=(
                FigureColumn(heading="with sound", is_heat_map=True),
                FigureColumn(heading="muted", condition=_MUTED, is_heat_map=True),
                FigureColumn(heading="no cues", has_cues=False, is_heat_map=True),
                FigureColumn(heading="no cues, muted", condition=_MUTED, has_cues=False, is_heat_map=True),
            ),
            subsets=("v1m",),
        ),
    )
}


def find_figure(name: str) -> FigureEntry:
    """Return a figure. Raises :class:`InputNotFoundError` for an unknown name."""
    if name not in FIGURES:
        raise InputNotFoundError(f"unknown figure {name!r}: name one of {', '.join(FIGURES)}")
    return FIGURES[name]
