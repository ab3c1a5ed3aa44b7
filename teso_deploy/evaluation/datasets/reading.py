"""Read a public data set in any of the layouts of the registry.

What varies between archives is accepted: a root that is ``Single-source`` or ``s4_data`` itself (``Multi-sources``,
``ms3_data``); the table beside the data folder, in it or at the root; pictures named ``{name}_{i}``,
``{name}.mp4_{i}`` or ``{i}``, as .png, .jpg or .jpeg; a table with a byte order mark; files of other names (previews,
``.DS_Store``, ``audio_log_mel``, ``labels_rgb``). The log-mel pickles are never read.

The layouts are those of AVSBench (after the data loaders and ``preprocess_scripts`` of OpenNLPLab/AVSBench).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.evaluation.datasets.contracts import FRAMES, SUBSETS, DataLayout, MaskKind, Place, Split, VideoSample
from teso_deploy.evaluation.datasets.pictures import read_size, read_table
from teso_deploy.evaluation.datasets.registry import LAYOUTS, Layout, load_layout

_SUFFIXES = (".png", ".jpg", ".jpeg")


def detect_layout(root: Path) -> Layout:
    """Return the layout of a folder.

    Raises :class:`InputNotFoundError` if the folder does not exist. Raises :class:`DataError` if it has no known
    layout, or several: an archive may hold s4 and ms3.
    """
    _check_root(root)
    layouts = {name: load_layout(name) for name in LAYOUTS}
    found = [name for name, layout in layouts.items() if layout.find_folder(root) is not None]
    if not found:
        marks = ", ".join(layout.mark for layout in layouts.values())
        raise DataError(f"{root} has no known layout: it should have {marks}")
    if len(found) > 1:
        raise DataError(
            f"{root} holds the layouts {' and '.join(found)}: name the layout, or give a folder with only one"
        )
    return found[0]


def read_dataset(
    root: Path,
    layout: Layout | None,
    split: Split,
    *,
    subsets: Sequence[str] = SUBSETS,
    on_problem: Callable[[str], None] | None = None,
) -> list[VideoSample]:
    """Find every video of a split. No picture is decoded.

    All files are looked up, and the sizes of frames and masks are compared. So a missing file is reported now, not
    later.

    Args:
        root: The data set's folder.
        layout: Its layout; None: :func:`detect_layout`.
        split: ``train``, ``val`` or ``test``.
        subsets: The subsets of avss to read. The other layouts have only one. Default: all.
        on_problem: Called with a sentence for each row that can't be read, which is then skipped. Default: such a row
            is an error.

    Returns:
        The videos, in the order of the data set's table (scores per batch depend on it).

    Raises:
        InputNotFoundError: The folder does not exist.
        DataError: The layout differs, the table is missing or lacks a column, or the split is empty. Or the frames,
            masks or sound of a row are missing or do not fit, and ``on_problem`` is None. The message names the first
            such row and counts the others. Or all rows were skipped.
    """
    _check_root(root)
    if unknown := [subset for subset in subsets if subset not in SUBSETS]:
        raise DataError(f"unknown subset {unknown[0]!r}: choose from {', '.join(SUBSETS)}")
    if split not in get_args(Split):
        raise DataError(f"unknown split {split!r}: choose from {', '.join(get_args(Split))}")
    name = layout or detect_layout(root)
    known = load_layout(name)
    folder = known.find_folder(root)
    if folder is None:
        raise DataError(f"{root} does not have the layout {name}: it should have {known.mark}")
    table = known.find_table(root, folder)
    rows, problems = _choose_rows(table, known, split=split, subsets=subsets)
    samples: list[VideoSample] = []
    for row in rows:
        place = known.place_row(folder, row)
        try:
            if not place.uid:
                raise DataError(f"{table}: a row has no name")
            samples.append(_read_sample(place, split))
        except DataError as error:
            problems.append(str(error))
    if problems:
        if on_problem is None or not samples:
            more = f"; {len(problems) - 1} more of {len(rows)} videos can't be used" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}: restore the files, or remove the rows from {table}")
        for problem in problems:
            on_problem(problem)
    return samples


def load_mask(path: Path, layout: Layout, kind: MaskKind) -> NDArray[np.uint8]:
    """Read a mask, (H, W) uint8.

    Args:
        path: The mask's file.
        layout: The layout of its data set.
        kind: ``binary``: 1 where something sounds. ``semantic``, only for avss: the class, 0 (background) to 70.

    Raises:
        DataError: The file is damaged, is not an index image, or has an unknown class. Or classes of s4 or ms3 were
            requested.
    """
    return load_layout(layout).read_mask(path, kind)


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise InputNotFoundError(f"no folder {root}: give the folder of an audio-visual segmentation data set")


def _choose_rows(
    table: Path, layout: DataLayout, *, split: Split, subsets: Sequence[str]
) -> tuple[list[dict[str, str]], list[str]]:
    """Return the table's rows of a split and some subsets, and a sentence for each row whose subset is unknown.

    Raises :class:`DataError` if there are none.
    """
    rows = read_table(table, layout.columns)
    problems: list[str] = []
    if column := layout.subset_column:
        for row in rows:
            if row[column] not in SUBSETS:
                problems.append(f"{table}: {row['uid']} has the label {row[column]!r}, not {', '.join(SUBSETS)}")
        rows = [row for row in rows if row[column] in subsets]
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        counts = Counter(row["split"] for row in rows)
        others = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none at all"
        of = f" of {', '.join(subsets)}" if layout.subset_column else ""
        raise DataError(f"{table} has no video{of} in the split {split}; it has {others}")
    return chosen, problems


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


def _check_numbers(folder: Path, what: str, *, found: Collection[int], wanted: Sequence[int], more: bool) -> None:
    """Check that the pictures have the wanted numbers. ``more``: True if other numbers are allowed too."""
    missing = [str(number) for number in wanted if number not in found]
    if missing:
        has = f"has {len(found)} of {len(wanted)} {what}, {', '.join(missing)} missing" if found else f"has no {what}"
        raise DataError(f"{folder} {has if folder.is_dir() else 'does not exist'}")
    if not more and len(found) != len(wanted):
        raise DataError(f"{folder} has {len(found)} {what} instead of {len(wanted)}")


def _read_sample(place: Place, split: Split) -> VideoSample:
    numbers = range(place.first, place.first + FRAMES[place.subset])
    is_sparse = place.subset == "v1s" and split == "train"
    frames, masks = _find_pictures(place.frames, place.uid), _find_pictures(place.masks, place.uid)
    _check_numbers(place.frames, "frames", found=frames, wanted=numbers, more=False)
    _check_numbers(place.masks, "masks", found=masks, wanted=numbers[:1] if is_sparse else numbers, more=is_sparse)
    if not place.audio.is_file():
        raise DataError(f"{place.audio} does not exist")
    labels = tuple(masks[number] if number == place.first or not is_sparse else None for number in numbers)
    shown = tuple(frames[number] for number in numbers)
    sample = VideoSample(place.uid, place.subset, split, shown, labels, place.audio, place.category, place.vid)
    for frame, mask in zip(sample.frames, sample.masks, strict=True):
        if mask is not None and (size := read_size(mask)) != (wanted := read_size(frame)):
            raise DataError(f"{mask} has {size[0]} × {size[1]} pixels, but its frame has {wanted[0]} × {wanted[1]}")
    return sample
