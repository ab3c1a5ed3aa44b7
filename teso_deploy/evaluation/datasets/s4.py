"""AVSBench S4 (Zhou et al., ECCV 2022): one source that sounds, binary masks.

``split`` is ``train``, ``val`` or ``test``; in ``train`` only the first frame has a mask::

    Single-source/s4_meta_data.csv                      the name first; category, split
    Single-source/s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
                          gt_masks/{split}/{category}/{name}/{name}_{1..5}.png     train: only _1
                          audio_wav/{split}/{category}/{name}.wav
"""

from __future__ import annotations

from pathlib import Path

from teso_deploy.evaluation.datasets import binary_masks
from teso_deploy.evaluation.datasets.contracts import DataLayout, DataRow, VideoSample
from teso_deploy.evaluation.datasets.published import Place, list_table_rows, read_numbered_sample

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


#: Subset, split → how many videos are published.
PUBLISHED = {("v1s", "train"): 3452, ("v1s", "val"): 740, ("v1s", "test"): 740}


def split_category(category: str) -> tuple[str, ...]:
    """Return the class of AVSS that a category has there, or the category as words if it is unknown."""
    return (CATEGORY_WORDS.get(category) or category.replace("_", " "),) if category else ()


def _read_row(folder: Path, row: DataRow) -> VideoSample:
    category = row.fields["category"]
    inside = Path(row.split, category)
    place = Place(
        frames=folder / "visual_frames" / inside / row.uid,
        masks=folder / "gt_masks" / inside / row.uid,
        audio=folder / "audio_wav" / inside / f"{row.uid}.wav",
        first=1,
        category=category,
    )
    return read_numbered_sample(row, place)


LAYOUT = DataLayout(
    "s4",
    "Single-source/s4_data/visual_frames",
    lambda root: binary_masks.find_data(root, outer="Single-source", inner="s4_data", table=TABLE),
    lambda root, folder: list_table_rows(
        binary_masks.find_table(root, folder, TABLE), ("category", "split"), uid="", subset="v1s"
    ),
    _read_row,
    lambda path, kind: binary_masks.read_binary_mask(path, kind, "s4"),
    ("v1s",),
    split_category,
    columns=("name", "start", "category", "split"),
    published=PUBLISHED,
)
