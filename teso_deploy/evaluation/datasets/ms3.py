"""AVSBench MS3 (Zhou et al., ECCV 2022): several sources that sound, binary masks.

``split`` is ``train``, ``val`` or ``test``::

    Multi-sources/ms3_meta_data.csv                     the name first; split
    Multi-sources/ms3_data/visual_frames/{name}/{name}.mp4_{1..5}.png
                           gt_masks/{split}/{name}/{name}_{1..5}.png
                           audio_wav/{split}/{name}.wav
"""

from __future__ import annotations

from pathlib import Path

from teso_deploy.evaluation.datasets import binary_masks
from teso_deploy.evaluation.datasets.contracts import DataLayout, DataRow, VideoSample
from teso_deploy.evaluation.datasets.published import Place, list_table_rows, read_numbered_sample

TABLE = "ms3_meta_data.csv"
#: Subset, split → how many videos are published.
PUBLISHED = {("v1m", "train"): 296, ("v1m", "val"): 64, ("v1m", "test"): 64}


def _read_row(folder: Path, row: DataRow) -> VideoSample:
    place = Place(
        frames=folder / "visual_frames" / row.uid,
        masks=folder / "gt_masks" / row.split / row.uid,
        audio=folder / "audio_wav" / row.split / f"{row.uid}.wav",
        first=1,
    )
    return read_numbered_sample(row, place)


LAYOUT = DataLayout(
    "ms3",
    "Multi-sources/ms3_data/visual_frames",
    lambda root: binary_masks.find_data(root, outer="Multi-sources", inner="ms3_data", table=TABLE),
    lambda root, folder: list_table_rows(
        binary_masks.find_table(root, folder, TABLE), ("split",), uid="", subset="v1m"
    ),
    _read_row,
    lambda path, kind: binary_masks.read_binary_mask(path, kind, "ms3"),
    ("v1m",),
    columns=("video_id", "split"),
    published=PUBLISHED,
)
