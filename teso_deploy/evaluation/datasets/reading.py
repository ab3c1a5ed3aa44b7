"""Read a public data set in any of the layouts of the registry.

What varies between archives is accepted: a root that is ``Single-source`` or ``s4_data`` itself (``Multi-sources``,
``ms3_data``); the table beside the data folder, in it or at the root; pictures named ``{name}_{i}``,
``{name}.mp4_{i}`` or ``{i}``, as .png, .jpg or .jpeg; a table with a byte order mark; files of other names (previews,
``.DS_Store``, ``audio_log_mel``, ``labels_rgb``). The log-mel pickles are never read.

The layouts are those of AVSBench (after the data loaders and ``preprocess_scripts`` of OpenNLPLab/AVSBench).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import DataError, InputNotFoundError, TesoError
from teso_deploy.evaluation.datasets.contracts import SUBSETS, DataLayout, DataRow, MaskKind, Split, VideoSample
from teso_deploy.evaluation.datasets.registry import LAYOUTS, Layout, load_layout

_Value = TypeVar("_Value")


def detect_layout(root: Path) -> Layout:
    """Return the layout of a folder.

    Raises :class:`InputNotFoundError` if the folder does not exist. Raises :class:`DataError` if it has no known
    layout, or several: an archive may hold s4 and ms3.
    """
    _check_root(root)
    layouts = {name: layout for name in LAYOUTS if (layout := load_layout(name)).is_detected}
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
    if unknown := [subset for subset in subsets if subset not in SUBSETS]:
        raise DataError(f"unknown subset {unknown[0]!r}: choose from {', '.join(SUBSETS)}")
    if split not in get_args(Split):
        raise DataError(f"unknown split {split!r}: choose from {', '.join(get_args(Split))}")
    _, known, folder = open_dataset(root, layout)
    rows = _choose_rows(folder, known, known.list_rows(root, folder), split=split, subsets=subsets)
    samples: list[VideoSample] = []
    problems: list[str] = []
    for row in rows:
        try:
            samples.append(read_video(folder, known, row))
        except DataError as error:
            problems.append(str(error))
    if problems:
        if on_problem is None or not samples:
            more = f"; {len(problems) - 1} more of {len(rows)} videos can't be used" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}: restore the files, or remove the rows from {rows[0].table}")
        for problem in problems:
            on_problem(problem)
    return samples


def open_dataset(root: Path, layout: Layout | None) -> tuple[Layout, DataLayout, Path]:
    """Return the layout's name, the layout, and the folder with the data.

    Raises what :func:`detect_layout` raises, and :class:`DataError` if the folder is not in this layout.
    """
    _check_root(root)
    name = layout or detect_layout(root)
    known = load_layout(name)
    folder = known.find_folder(root)
    if folder is None:
        raise DataError(f"{root} does not have the layout {name}: it should have {known.mark}")
    return name, known, folder


def spread_evenly(values: Sequence[_Value], count: int | None) -> list[_Value]:
    """Return at most ``count`` values that are spread evenly over all, in their order; None: all of them."""
    if count is None or count >= len(values):
        return list(values)
    return [values[k * len(values) // count] for k in range(count)]


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


def read_video(folder: Path, layout: DataLayout, row: DataRow) -> VideoSample:
    """Find the files of one video.

    Args:
        folder: The folder with the data.
        layout: Its layout.
        row: The video's row.

    Raises:
        DataError: The row is wrong, or one of its files is missing or does not fit.
    """
    if not row.uid:
        raise DataError(f"{row.table}: a row has no name")
    if row.subset not in layout.subsets:
        label = f"the label {row.subset!r}, not {', '.join(layout.subsets)}"
        raise DataError(f"{row.table}: {row.uid} has {label}")
    try:
        return layout.read_row(folder, row)
    except OSError as error:  # a name that is too long, a folder without permission
        if isinstance(error, TesoError):
            raise
        raise DataError(f"{row.table}: the files of {row.uid} can't be looked up ({error.strerror})") from error


def _choose_rows(
    folder: Path, layout: DataLayout, rows: Sequence[DataRow], *, split: Split, subsets: Sequence[str]
) -> list[DataRow]:
    """Return the rows of a split and some subsets, and all rows whose subset is unknown.

    Raises :class:`DataError` if there are none.
    """
    has_several = len(layout.subsets) > 1
    rows = [row for row in rows if not has_several or row.subset in subsets or row.subset not in layout.subsets]
    chosen = [row for row in rows if row.split == split or row.subset not in layout.subsets]
    if not any(row.split == split for row in chosen):
        counts = Counter(row.split for row in rows)
        others = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none at all"
        of = f" of {', '.join(subsets)}" if has_several else ""
        where = rows[0].table if rows else folder
        raise DataError(f"{where} has no video{of} in the split {split}; it has {others}")
    return chosen
