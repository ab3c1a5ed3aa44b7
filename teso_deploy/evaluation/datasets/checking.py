"""Check a data set before hours are spent on it: every file is decoded, and what is wrong or odd is named."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import DataError, TesoError
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.datasets.contracts import DataLayout, DataRow, Split, VideoSample
from teso_deploy.evaluation.datasets.pictures import load_frame, open_picture
from teso_deploy.evaluation.datasets.published import VideoFilesError
from teso_deploy.evaluation.datasets.reading import open_dataset, read_video
from teso_deploy.evaluation.datasets.registry import Layout
from teso_deploy.media.audio import find_sound
from teso_deploy.media.windows import SILENT_PEAK, WINDOW_SECONDS

#: ``wrong``: missing or damaged, so an evaluation would stop. ``odd``: it works, but may not be what was meant.
Severity = Literal["wrong", "odd"]
#: A sound may end this long before the last window does; the released files are cut at whole seconds.
_SHORT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong or odd.

    Attributes:
        severity: How bad it is.
        kind: What it is, as one word: ``files``, ``picture``, ``mask``, ``class``, ``blank``, ``size``, ``sound``,
            ``short``, ``silent``, ``duplicate``, ``table``, ``count``.
        split: The split; empty if it concerns the whole data set.
        clip: The clip; empty if it concerns no single one.
        text: A sentence that names the file.
    """

    severity: Severity
    kind: str
    split: str
    clip: str
    text: str


@dataclass(frozen=True, slots=True)
class SplitCount:
    """How many clips a split has.

    ``published`` is how many were published; None if the layout does not say. ``wrong`` and ``odd`` count clips.
    """

    subset: str
    split: str
    clips: int
    published: int | None
    wrong: int
    odd: int


@dataclass(frozen=True, slots=True)
class DataCheck:
    """The result of a check.

    Attributes:
        layout: The layout of the data set.
        counts: One entry for each subset and split.
        findings: What was found, in the order of the table.
    """

    layout: Layout
    counts: tuple[SplitCount, ...]
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> int:
        """How many findings are wrong. The others are odd."""
        return sum(finding.severity == "wrong" for finding in self.findings)


@dataclass(slots=True)
class _Clip:
    """What is kept of a clip that was checked.

    ``pictures`` and ``sound`` are hashes of the files' bytes; empty if a file could not be read.
    """

    row: DataRow
    findings: list[Finding] = field(default_factory=list)
    pictures: bytes = b""
    sound: bytes = b""

    def add(self, severity: Severity, kind: str, text: str) -> None:
        self.findings.append(Finding(severity, kind, self.row.split, self.row.uid, text))


def check_dataset(
    root: Path,
    layout: Layout | None = None,
    split: Split | None = None,
    *,
    on_start: Callable[[int], None] = lambda clips: None,
    on_clip: Callable[[], None] = lambda: None,
    threads: int | None = None,
) -> DataCheck:
    """Check every clip of a data set. A few clips are in memory at a time.

    Args:
        root: The data set's folder.
        layout: Its layout. Default: it is detected.
        split: The split. Default: all.
        on_start: Called with the number of clips. Default: nothing.
        on_clip: Called after each clip. Default: nothing.
        threads: How many clips are read at the same time. Default: one for each core of the CPU.

    Raises:
        InputNotFoundError: The folder does not exist.
        DataError: It is not in this layout, or in none. Or its table can't be read, or the split is empty.
    """
    name, known, folder = open_dataset(root, layout)
    rows = known.list_rows(root, folder)
    findings = list(_check_table(known, rows))
    rows = [row for row in rows if row.split in ((split,) if split else get_args(Split))]
    if not rows:
        raise DataError(f"{folder} has no clip" + (f" in the split {split}" if split else ""))
    on_start(len(rows))
    bad: dict[Severity, Counter[tuple[str, str]]] = {"wrong": Counter(), "odd": Counter()}
    duplicates = _DuplicateFinder()
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        try:
            for clip in pool.map(lambda row: _check_clip(folder, known, row), rows):
                clip.findings += duplicates.add(clip)
                for severity in {finding.severity for finding in clip.findings}:
                    bad[severity][clip.row.subset, clip.row.split] += 1
                findings += clip.findings
                on_clip()
        except BaseException:  # an interrupt: do not check the others first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    counts = _count_splits(known, rows, bad)
    findings += _check_counts(counts)
    return DataCheck(name, counts, tuple(findings))


def _check_table(layout: DataLayout, rows: Sequence[DataRow]) -> Iterator[Finding]:
    """Find unknown columns and splits, and names that are in the table twice."""
    seen: set[tuple[str, str]] = set()
    columns: set[tuple[Path, str]] = set()
    for row in rows:
        if layout.columns:
            # The name is in the first column, whatever this column is called.
            first = next(iter(row.fields), "")
            columns.update((row.table, name) for name in row.fields if name not in ("", first, *layout.columns))
        if row.split not in get_args(Split):
            text = f"{row.table}: {row.uid} has the split {row.split!r}, which is never read"
            yield Finding("odd", "table", row.split, row.uid, text)
        if row.uid and (row.subset, row.uid) in seen:
            yield Finding("wrong", "table", row.split, row.uid, f"{row.table}: {row.uid} is there twice")
        seen.add((row.subset, row.uid))
    for table, name in sorted(columns):
        yield Finding("odd", "table", "", "", f"{table} has the unknown column {name!r}, which is ignored")


def _check_clip(folder: Path, layout: DataLayout, row: DataRow) -> _Clip:
    clip = _Clip(row)
    try:
        sample = read_video(folder, layout, row)
    except (TesoError, OSError) as error:
        for text in error.problems if isinstance(error, VideoFilesError) else (str(error),):
            clip.add("wrong", "files", text)
        return clip
    _check_pictures(clip, sample)
    _check_masks(clip, sample, layout)
    _check_sound(clip, sample, layout)
    return clip


def _check_pictures(clip: _Clip, sample: VideoSample) -> None:
    digest, sizes = hashlib.blake2b(digest_size=16), Counter[tuple[int, ...]]()
    for frame in sample.frames:
        try:
            sizes[load_frame(frame).shape[:2]] += 1
            digest.update(frame.read_bytes())
        except (TesoError, OSError) as error:
            clip.add("wrong", "picture", str(error))
    if len(sizes) > 1:
        shown = " and ".join(f"{width} × {height}" for height, width in sizes)
        clip.add("odd", "size", f"{sample.frames[0].parent} has frames of {shown} pixels")
    if sizes.total() == len(sample.frames):
        clip.pictures = digest.digest()


def _check_masks(clip: _Clip, sample: VideoSample, layout: DataLayout) -> None:
    values: set[int] = set()
    masks = [mask for mask in sample.masks if mask is not None]
    is_readable = True
    for mask in masks:
        try:
            labels = layout.read_mask(mask, "semantic" if layout.has_classes else "binary")
            if not layout.has_classes and (levels := _count_grey_levels(mask)) > 2:
                clip.add("odd", "mask", f"{mask} has {levels} grey levels: all but black count as the object")
        except (TesoError, OSError) as error:
            clip.add("wrong", "mask", str(error))
            is_readable = False
        else:
            values.update(np.unique(labels).tolist())
    if not layout.is_negative and is_readable and values <= {0}:
        clip.add("odd", "blank", f"{masks[0].parent} has only blank masks")
    if layout.has_classes:
        names = {list_avss_classes()[value - 1] for value in values if value}
        if unnamed := sorted(names - {*layout.split_category(sample.category)}):
            shown, named = ", ".join(unnamed), sample.category or "nothing"
            clip.add("odd", "class", f"{masks[0].parent} shows {shown}, but the table names {named}")


def _count_grey_levels(path: Path) -> int:
    with open_picture(path) as image:
        return len(np.unique(np.asarray(image))) if image.mode == "L" else 0


def _check_sound(clip: _Clip, sample: VideoSample, layout: DataLayout) -> None:
    try:
        sound = find_sound(sample.audio)
        clip.sound = hashlib.blake2b(sample.audio.read_bytes(), digest_size=16).digest()
    except (TesoError, OSError) as error:
        clip.add("wrong", "sound", str(error))
        return
    track = sound.track
    if track is None:
        clip.add("wrong", "sound", f"{sample.audio} has no sound that can be decoded: {sound.note}")
        return
    if sound.note:
        clip.add("odd", "sound", f"{sample.audio}: {sound.note}")
    needed = max(sample.list_window_starts()) + WINDOW_SECONDS
    if track.end_seconds < needed - _SHORT_SECONDS:
        clip.add(
            "odd", "short", f"{sample.audio} ends at {track.end_seconds:.2f} s, but its frames need {needed:.2f} s"
        )
    peaks: NDArray[np.float32] = track.read_peaks(track.start_seconds, track.end_seconds, 16)
    if not layout.is_negative and float(peaks.max()) < SILENT_PEAK:
        clip.add("odd", "silent", f"{sample.audio} is silent throughout")


class _DuplicateFinder:
    """Finds clips with the same files, by the hashes of those before."""

    def __init__(self) -> None:
        self._by_pictures: dict[bytes, _Clip] = {}

    def add(self, clip: _Clip) -> list[Finding]:
        """Return what a clip has in common with an earlier one."""
        if not clip.pictures:
            return []
        other = self._by_pictures.setdefault(clip.pictures, clip)
        same = (clip.row.uid, clip.row.split, clip.row.subset)
        if other is clip or same == (other.row.uid, other.row.split, other.row.subset):
            return []
        what = "the same content" if clip.sound == other.sound else "the same pictures, with another sound,"
        across = (
            "" if clip.row.split == other.row.split else f" of {other.row.split}, although it is in {clip.row.split}"
        )
        text = f"{clip.row.uid} has {what} as {other.row.uid}{across}"
        return [Finding("odd", "duplicate", clip.row.split, clip.row.uid, text)]


def _count_splits(
    layout: DataLayout, rows: Sequence[DataRow], bad: dict[Severity, Counter[tuple[str, str]]]
) -> tuple[SplitCount, ...]:
    clips = Counter((row.subset, row.split) for row in rows)
    return tuple(
        SplitCount(*key, clips[key], layout.published.get(key), bad["wrong"][key], bad["odd"][key]) for key in clips
    )


def _check_counts(counts: Sequence[SplitCount]) -> Iterator[Finding]:
    for count in counts:
        if count.published not in (None, count.clips):
            text = f"{count.subset} has {count.clips} clips in {count.split}; {count.published} are published"
            yield Finding("odd", "count", count.split, "", text)
