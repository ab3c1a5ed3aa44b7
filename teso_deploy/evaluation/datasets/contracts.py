"""The samples that a public data set is read into, and the description of its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
MaskKind = Literal["binary", "semantic"]

SUBSETS = ("v1s", "v1m", "v2")
#: How many frames a video has, one per second.
FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}
#: The picture of second k was taken at k + this (the last of 16 samples of the second).
FRAME_OFFSET_SECONDS = 0.9375


@dataclass(frozen=True, slots=True)
class VideoSample:
    """A video of a data set.

    Attributes:
        uid: Its name; in s4 and ms3 the name in the table.
        subset: ``v1s`` for s4, ``v1m`` for ms3, in avss any of ``SUBSETS``.
        split: ``train``, ``val`` or ``test``.
        frames: Its pictures, one per second.
        masks: One for each frame; None for a frame without a label.
        audio: The file of its sound.
        category: In s4 the category (``dog_barking``). In avss ``a_obj`` (``man_ukulele``: classes joined by
            underscores). In ms3 empty.
        vid: The recording that it was cut from, which the released cues use as name. In s4 and ms3 the same as ``uid``.
    """

    uid: str
    subset: str
    split: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    audio: Path
    category: str = ""
    vid: str = ""

    def __post_init__(self) -> None:
        if not self.uid:
            raise ValueError("a video needs a uid")
        if self.subset not in SUBSETS:
            raise ValueError(f"subset must be one of {', '.join(SUBSETS)}, got {self.subset!r}")
        if self.split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {self.split!r}")
        if not self.frames or len(self.frames) != len(self.masks):
            raise ValueError(f"{len(self.frames)} frames for {len(self.masks)} masks")
        if not any(self.masks):
            raise ValueError(f"no frame of {self.uid} has a mask")


@dataclass(frozen=True, slots=True)
class Place:
    """The places of the files of a table's row.

    Attributes:
        uid: See :class:`VideoSample`, as for ``vid``, ``subset`` and ``category``.
        frames: The folder of its pictures.
        masks: The folder of its masks.
        audio: The file of its sound.
        first: The number of the first picture.
    """

    uid: str
    vid: str
    subset: str
    category: str
    frames: Path
    masks: Path
    audio: Path
    first: int


@dataclass(frozen=True, slots=True)
class DataLayout:
    """How a data set is laid out on disk.

    Attributes:
        name: The layout's name for ``--layout``.
        mark: The files that show this layout, in words, for messages.
        columns: Columns that its table must have.
        find_folder: Root → the folder with the data; None if the root is not in this layout.
        find_table: Root, that folder → its table. Raises :class:`DataError` if there is none.
        place_row: That folder, a row of the table → where its files are.
        read_mask: File, kind → mask (H, W) uint8. Raises :class:`DataError`.
        subset_column: The column with the subset; empty if the data set has one subset only.
        protocol: The evaluation protocol that is published for the data set.
    """

    name: str
    mark: str
    columns: tuple[str, ...]
    find_folder: Callable[[Path], Path | None]
    find_table: Callable[[Path, Path], Path]
    place_row: Callable[[Path, Mapping[str, str]], Place]
    read_mask: Callable[[Path, MaskKind], NDArray[np.uint8]]
    subset_column: str = ""
    protocol: str = "avsbench"
