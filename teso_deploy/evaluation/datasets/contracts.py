"""The samples that a public data set is read into, and the description of its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
MaskKind = Literal["binary", "semantic"]

SUBSETS = ("v1s", "v1m", "v2")
#: The subset of clips that belong to no published data set.
CLIPS = "clips"
#: How many frames a video has, one per second.
FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}
#: The picture of second k was taken at k + this (the last of 16 samples of the second).
FRAME_OFFSET_SECONDS = 0.9375


@dataclass(frozen=True, slots=True)
class VideoSample:
    """A video of a data set.

    Attributes:
        uid: Its name; in s4 and ms3 the name in the table.
        subset: ``v1s`` for s4, ``v1m`` for ms3, in avss any of ``SUBSETS``, ``clips`` for a folder of clips.
        split: ``train``, ``val`` or ``test``.
        frames: Its pictures, one per second unless ``times`` says otherwise.
        masks: One for each frame; None for a frame without a label.
        audio: The file of its sound.
        category: In s4 the category (``dog_barking``). In avss ``a_obj`` (``man_ukulele``: classes joined by
            underscores). For a folder of clips words, joined by commas. In ms3 empty.
        vid: The recording that it was cut from, which the released cues use as name. In s4 and ms3 the same as ``uid``.
        times: When each picture is shown, in seconds. Empty: picture k is shown at k + ``FRAME_OFFSET_SECONDS``.
    """

    uid: str
    subset: str
    split: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    audio: Path
    category: str = ""
    vid: str = ""
    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.uid:
            raise ValueError("a video needs a uid")
        if self.subset not in (*SUBSETS, CLIPS):
            raise ValueError(f"subset must be one of {', '.join((*SUBSETS, CLIPS))}, got {self.subset!r}")
        if self.split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {self.split!r}")
        if not self.frames or len(self.frames) != len(self.masks):
            raise ValueError(f"{len(self.frames)} frames for {len(self.masks)} masks")
        if not any(self.masks):
            raise ValueError(f"no frame of {self.uid} has a mask")
        if self.times and len(self.times) != len(self.frames):
            raise ValueError(f"{len(self.times)} times for {len(self.frames)} frames")

    def list_window_starts(self, hop_seconds: float = 1.0) -> tuple[float, ...]:
        """Return when the audio window of each picture starts, in seconds.

        Args:
            hop_seconds: Window k starts at k times this, unless the pictures have times. Default: 1.0.
        """
        if self.times:
            return tuple(time - FRAME_OFFSET_SECONDS for time in self.times)
        return tuple(number * hop_seconds for number in range(len(self.frames)))


@dataclass(frozen=True, slots=True)
class DataRow:
    """What a data set's table says of a video.

    Attributes:
        table: The table; the folder, for a layout without a table.
        uid: See :class:`VideoSample`, as for ``split`` and ``subset``. If it is unknown, the row is refused.
        fields: Column → value; the first column is also under the key ``""``.
    """

    table: Path
    uid: str
    split: str
    subset: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataLayout:
    """How a data set is laid out on disk.

    Attributes:
        name: The layout's name for ``--layout``.
        mark: The files that show this layout, in words, for messages.
        find_folder: Root → the folder with the data; None if the root is not in this layout.
        list_rows: Root, that folder → the rows of all splits. Raises :class:`DataError` if the table is missing, or it
            lacks a column.
        read_row: That folder, a row → its video. Raises :class:`DataError` if a file is missing or does not fit.
        read_mask: File, kind → mask (H, W) uint8. Raises :class:`DataError`.
        subsets: The subsets that it may have.
        split_category: The category of a video → its words.
        columns: The columns that its table may have; empty if it has no table.
        published: Subset, split → how many videos are published.
        has_classes: Whether masks have classes.
        is_negative: Whether every sound belongs to nothing that is seen, so that the truth is blank.
        is_detected: Whether it is found by itself. A layout that reads the folder of another one in its own way must be
            named.
        protocol: The evaluation protocol that is published for the data set.
    """

    name: str
    mark: str
    find_folder: Callable[[Path], Path | None]
    list_rows: Callable[[Path, Path], list[DataRow]]
    read_row: Callable[[Path, DataRow], VideoSample]
    read_mask: Callable[[Path, MaskKind], NDArray[np.uint8]]
    subsets: tuple[str, ...]
    split_category: Callable[[str], tuple[str, ...]] = lambda category: ()
    columns: tuple[str, ...] = ()
    published: Mapping[tuple[str, str], int] = field(default_factory=dict)
    has_classes: bool = False
    is_negative: bool = False
    is_detected: bool = True
    protocol: str = "avsbench"
