"""A folder of masks: numbered PNGs, and ``masks.json``, which says that we wrote the folder and may replace it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from teso_deploy.media.numbered_folder import NumberedFolder
from teso_deploy.media.overlay import make_palette

MARKER = "masks.json"
SCHEMA_VERSION = 1
_FOLDER = NumberedFolder(
    what="masks",
    marker=MARKER,
    keys=frozenset({"schema_version", "classes", "input", "bundle"}),
    pattern=r"\d{6,}\.png",
)
check_mask_folder = _FOLDER.check
open_staged_mask_folder = _FOLDER.open_staged
open_mask_folder = _FOLDER.open_growing


def describe_masks(classes: Sequence[str], source: str, bundle: str) -> dict[str, Any]:
    """Return the content of ``masks.json``.

    Args:
        classes: Names of the labels from 1.
        source: The file or stream that was segmented, without credentials.
        bundle: Name of the bundle.
    """
    colors = make_palette()
    return {
        "schema_version": SCHEMA_VERSION,
        "classes": [
            {"id": number, "name": name, "color": "#" + colors[number].tobytes().hex()}
            for number, name in enumerate(classes, 1)
        ],
        "input": source,
        "bundle": bundle,
    }
