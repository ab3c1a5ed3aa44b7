"""AVSBench S4 (Zhou et al., ECCV 2022): one source that sounds, binary masks.

``split`` is ``train``, ``val`` or ``test``; in ``train`` only the first frame has a mask::

    Single-source/s4_meta_data.csv                      the name first; category, split
    Single-source/s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
                          gt_masks/{split}/{category}/{name}/{name}_{1..5}.png     train: only _1
                          audio_wav/{split}/{category}/{name}.wav
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from teso_deploy.evaluation.datasets import binary_masks
from teso_deploy.evaluation.datasets.contracts import DataLayout, Place

TABLE = "s4_meta_data.csv"
#: Category → the class that the same videos have in AVSBench-semantic.
CATEGORY_WORDS = {
    "ambulance_siren": "emergency car",
    "baby_laughter": "baby",
    "cap_gun_shooting": "gun",
    "cat_meowing": "cat",
    "chainsawing_trees": "saw",
    "coyote_howling": "wolf",
    "dog_barking": "dog",
    "driving_buses": "bus",
    "female_singing": "woman",
    "helicopter": "helicopter",
    "horse_clip-clop": "horse",
    "lawn_mowing": "mower",
    "lions_roaring": "lion",
    "male_speech": "man",
    "mynah_bird_singing": "bird",
    "playing_acoustic_guitar": "guitar",
    "playing_glockenspiel": "marimba",
    "playing_piano": "piano",
    "playing_tabla": "tabla",
    "playing_ukulele": "ukulele",
    "playing_violin": "violin",
    "race_car": "car",
    "typing_on_computer_keyboard": "keyboard",
}


def _place_row(folder: Path, row: Mapping[str, str]) -> Place:
    uid, category = row[""], row["category"]
    inside = Path(row["split"], category)
    return Place(
        uid,
        uid,
        "v1s",
        category,
        frames=folder / "visual_frames" / inside / uid,
        masks=folder / "gt_masks" / inside / uid,
        audio=folder / "audio_wav" / inside / f"{uid}.wav",
        first=1,
    )


LAYOUT = DataLayout(
    "s4",
    "Single-source/s4_data/visual_frames",
    ("category", "split"),
    lambda root: binary_masks.find_data(root, outer="Single-source", inner="s4_data", table=TABLE),
    lambda root, folder: binary_masks.find_table(root, folder, TABLE),
    _place_row,
    lambda path, kind: binary_masks.read_binary_mask(path, kind, "s4"),
)
