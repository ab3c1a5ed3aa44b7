"""AVSBench MS3 (Zhou et al., ECCV 2022): several sources that sound, binary masks.

``split`` is ``train``, ``val`` or ``test``::

    Multi-sources/ms3_meta_data.csv                     the name first; split
    Multi-sources/ms3_data/visual_frames/{name}/{name}.mp4_{1..5}.png
                           gt_masks/{split}/{name}/{name}_{1..5}.png
                           audio_wav/{split}/{name}.wav
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from teso_deploy.evaluation.datasets import binary_masks
from teso_deploy.evaluation.datasets.contracts import DataLayout, Place

TABLE = "ms3_meta_data.csv"


def _place_row(folder: Path, row: Mapping[str, str]) -> Place:
    uid, split = row[""], row["split"]
    return Place(
        uid,
        uid,
        "v1m",
        "",
        frames=folder / "visual_frames" / uid,
        masks=folder / "gt_masks" / split / uid,
        audio=folder / "audio_wav" / split / f"{uid}.wav",
        first=1,
    )


LAYOUT = DataLayout(
    "ms3",
    "Multi-sources/ms3_data/visual_frames",
    ("split",),
    lambda root: binary_masks.find_data(root, outer="Multi-sources", inner="ms3_data", table=TABLE),
    lambda root, folder: binary_masks.find_table(root, folder, TABLE),
    _place_row,
    lambda path, kind: binary_masks.read_binary_mask(path, kind, "ms3"),
)
