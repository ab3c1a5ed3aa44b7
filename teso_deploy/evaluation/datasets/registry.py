"""Every layout of a public data set, as data. To add one, write a module in this package and an entry here."""

from __future__ import annotations

from typing import Literal, get_args

from teso_deploy.evaluation.datasets.contracts import DataLayout
from teso_deploy.named_objects import load_object

Layout = Literal["s4", "ms3", "avss"]

_HERE = "teso_deploy.evaluation.datasets"
#: Layout → "module:object"; the object is a :class:`DataLayout`.
LAYOUTS: dict[Layout, str] = {name: f"{_HERE}.{name}:LAYOUT" for name in get_args(Layout)}


def load_layout(name: Layout) -> DataLayout:
    """Import a layout."""
    layout: DataLayout = load_object(LAYOUTS[name])
    return layout
