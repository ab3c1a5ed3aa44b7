"""Chooses the protocol for a folder of data."""

from __future__ import annotations

from pathlib import Path

from teso_deploy.errors import InputNotFoundError
from teso_deploy.evaluation.datasets.media_folder import SPLIT_TABLE
from teso_deploy.evaluation.datasets.reading import detect_layout
from teso_deploy.evaluation.datasets.registry import LAYOUTS, load_layout
from teso_deploy.evaluation.protocols.registry import DEFAULT_PROTOCOL

#: The name of media for composed scenes, where a layout may be named.
SCENES = "scenes"


def choose_protocol(folder: Path, layout: str | None = None) -> str:
    """Return the protocol that is published for a data set.

    Args:
        folder: The data set's folder.
        layout: Its layout, or ``scenes`` for composed scenes. Default: it is detected.

    Raises:
        InputNotFoundError: The folder does not exist, or the layout is unknown.
        DataError: The folder has no known layout, or several.
    """
    if not folder.is_dir():
        raise InputNotFoundError(f"no folder {folder}: give the folder of a data set")
    if layout == SCENES or (layout is None and (folder / SPLIT_TABLE).is_file()):
        return DEFAULT_PROTOCOL
    if layout is not None and layout not in LAYOUTS:
        raise InputNotFoundError(f"unknown layout {layout!r}: name one of {SCENES}, {', '.join(LAYOUTS)}")
    return load_layout(layout or detect_layout(folder)).protocol  # type: ignore[arg-type]
