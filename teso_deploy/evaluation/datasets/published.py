"""What the published layouts share: a table with a row for each video, and a fixed number of numbered pictures."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.contracts import FRAMES, DataRow, VideoSample
from teso_deploy.evaluation.datasets.pictures import read_size, read_table

_SUFFIXES = (".png", ".jpg", ".jpeg")


class VideoFilesError(DataError):
    """Files of a video are missing or do not fit.

    ``problems`` has a sentence for each. The message is the first one, and counts the others.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        more = f", and {len(problems) - 1} more of its files can't be used" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Place:
    """The places of the files of a row.

    Attributes:
        frames: The folder of its pictures.
        masks: The folder of its masks.
        audio: The file of its sound.
        first: The number of the first picture.
        category: See :class:`VideoSample`, as for ``vid``.
    """

    frames: Path
    masks: Path
    audio: Path
    first: int
    category: str = ""
    vid: str = ""


def list_table_rows(table: Path, needed: Sequence[str], *, uid: str, subset: str) -> list[DataRow]:
    """Return the rows of a table with a column ``split``.

    Args:
        table: The table.
        needed: Columns that it must have.
        uid: The column of the name; ``""`` is the first column.
        subset: The column of the subset, or the subset of all videos.

    Raises:
        DataError: The table can't be read, or lacks a column.
    """
    return [
        DataRow(table, fields[uid], fields["split"], fields.get(subset, subset), fields)
        for fields in read_table(table, needed)
    ]


def _find_pictures(folder: Path, uid: str) -> dict[int, Path]:
    """Find the pictures of a folder by number. If two have the same number, take the one whose suffix comes first."""
    if not folder.is_dir():
        return {}
    name = re.compile(rf"(?:{re.escape(uid)}(?:\.mp4)?_)?(\d+)")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        match = name.fullmatch(path.stem)
        if match is None or (suffix := path.suffix.lower()) not in _SUFFIXES:
            continue
        number = int(match[1])
        if number not in found or _SUFFIXES.index(suffix) < _SUFFIXES.index(found[number].suffix.lower()):
            found[number] = path
    return found


def _describe_numbers(
    folder: Path, what: str, *, found: Collection[int], wanted: Sequence[int], more: bool
) -> str | None:
    """Return a sentence if the pictures do not have the wanted numbers.

    Args:
        folder: The folder of the pictures.
        what: What they are.
        found: Their numbers.
        wanted: The numbers that they must have.
        more: Whether other numbers are allowed too.
    """
    missing = [str(number) for number in wanted if number not in found]
    if missing:
        has = f"has {len(found)} of {len(wanted)} {what}, {', '.join(missing)} missing" if found else f"has no {what}"
        return f"{folder} {has if folder.is_dir() else 'does not exist'}"
    if not more and len(found) != len(wanted):
        return f"{folder} has {len(found)} {what} instead of {len(wanted)}"
    return None


def read_numbered_sample(row: DataRow, place: Place) -> VideoSample:
    """Find the files of a row. The subset says how many pictures there must be.

    Of ``v1s`` only the first frame has a mask in the split ``train``.

    Raises:
        VideoFilesError: A file is missing, or a mask differs from its frame in size.
    """
    numbers = range(place.first, place.first + FRAMES[row.subset])
    is_sparse = row.subset == "v1s" and row.split == "train"
    frames, masks = _find_pictures(place.frames, row.uid), _find_pictures(place.masks, row.uid)
    labelled = numbers[:1] if is_sparse else numbers
    problems = [
        _describe_numbers(place.frames, "frames", found=frames, wanted=numbers, more=False),
        _describe_numbers(place.masks, "masks", found=masks, wanted=labelled, more=is_sparse),
        None if place.audio.is_file() else f"{place.audio} does not exist",
    ]
    if found := [problem for problem in problems if problem is not None]:
        raise VideoFilesError(found)
    labels = tuple(masks[number] if number in labelled else None for number in numbers)
    shown = tuple(frames[number] for number in numbers)
    vid = place.vid or row.uid
    sample = VideoSample(row.uid, row.subset, row.split, shown, labels, place.audio, place.category, vid)
    check_sizes(sample)
    return sample


def check_sizes(sample: VideoSample) -> None:
    """Raise :class:`VideoFilesError` if masks differ from their frames in size, or headers can't be read."""
    problems = []
    for frame, mask in zip(sample.frames, sample.masks, strict=True):
        try:
            if mask is not None and (size := read_size(mask)) != (wanted := read_size(frame)):
                problems.append(f"{mask} has {size[0]} × {size[1]} pixels, but its frame has {wanted[0]} × {wanted[1]}")
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise VideoFilesError(problems)
