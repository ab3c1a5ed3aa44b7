"""Any folder of clips with masks, without a table::

    {split}/{clip}/frames/*.jpg, *.png                  split: train, val, test; without these folders all is test
                   masks/*.png                          named as the frames, or with the same numbers; some may lack one
                   audio.wav                            or another sound file, the only one
    {split}/{clip}.mp4                                  or a video with its sound
            {clip}.masks/*.png                          numbered by seconds, from 0 or from 1
    clips.toml                                          optional

Frame k belongs to second k. A video is then shown at k + 0.9375 s, as in AVSBench. ``clips.toml`` may say otherwise::

    frames_per_second = 5                               of all clips: picture k is at k / 5 s
    [clips.dog-3]
    words = ["dog", "car"]                              what sounds in it, for cues
    times = [0.5, 1.5]                                  or frames_per_second: when its pictures, or masks, are

A mask is a picture that is black where nothing sounds, or an index image with the classes of AVSS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.avss import read_index_mask
from teso_deploy.evaluation.datasets.binary_masks import read_binary_mask
from teso_deploy.evaluation.datasets.clip_videos import extract_pictures
from teso_deploy.evaluation.datasets.contracts import (
    CLIPS,
    FRAME_OFFSET_SECONDS,
    DataLayout,
    DataRow,
    MaskKind,
    Split,
    VideoSample,
)
from teso_deploy.evaluation.datasets.published import check_sizes
from teso_deploy.small_files import parse_toml, read_text

SETTINGS = "clips.toml"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac")
_VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
_MASK_ENDINGS = (".masks", "_masks")
#: A day: a later time is a mistake.
_MOST_SECONDS = 86_400.0
#: Keys of ``clips.toml``, and of one clip in it.
_KEYS, _CLIP_KEYS = {"frames_per_second", "clips"}, {"frames_per_second", "times", "words"}


def _find_mask_folder(video: Path) -> Path | None:
    folders = (video.with_name(video.stem + ending) for ending in _MASK_ENDINGS)
    return next((folder for folder in folders if folder.is_dir()), None)


def _list_clips(folder: Path) -> Iterator[Path]:
    """Yield the folders and the videos of a split that are clips."""
    for path in sorted(folder.iterdir(), key=lambda path: _sort_key(path.name)):
        if (path / "frames").is_dir() or (path.suffix.lower() in _VIDEOS and path.is_file()):
            yield path


def _has_masks(clip: Path) -> bool:
    return (clip / "masks").is_dir() or (clip.is_file() and _find_mask_folder(clip) is not None)


def _list_splits(root: Path) -> dict[str, Path]:
    """Return split → its folder."""
    splits = {split: root / split for split in get_args(Split) if (root / split).is_dir()}
    return splits or {"test": root}


def _find_folder(root: Path) -> Path | None:
    if not root.is_dir():
        return None
    is_found = any(_has_masks(clip) for folder in _list_splits(root).values() for clip in _list_clips(folder))
    return root if is_found else None


def _list_rows(root: Path, folder: Path) -> list[DataRow]:
    settings = _read_settings(root / SETTINGS)
    rows = []
    for split, home in _list_splits(root).items():
        for clip in _list_clips(home):
            uid = clip.name if clip.is_dir() else clip.stem
            own = {"frames_per_second": settings.get("frames_per_second"), **settings.get("clips", {}).get(uid, {})}
            fields = {"path": str(clip)}
            if own.get("times") is not None:
                fields["times"] = " ".join(map(str, own["times"]))
            elif own["frames_per_second"] is not None:
                fields["frames_per_second"] = str(own["frames_per_second"])
            rows.append(DataRow(home, uid, split, CLIPS, fields | {"words": ",".join(own.get("words", ()))}))
    if unknown := settings.get("clips", {}).keys() - {row.uid for row in rows}:
        raise DataError(f"{root / SETTINGS} names the clip {min(unknown)!r}, which is not there: correct its name")
    return rows


def _read_settings(path: Path) -> Mapping[str, Any]:
    """Read ``clips.toml``, if it exists. Raises :class:`DataError` for a key or value of another kind."""
    if not path.is_file():
        return {}
    content = parse_toml(read_text(path, "the times of clips", error=DataError), path, error=DataError)

    def check(place: str, table: Mapping[str, Any], keys: set[str]) -> None:
        if unknown := table.keys() - keys:
            raise DataError(
                f"{path}: {place} has the unknown key {min(unknown)}: it may have {', '.join(sorted(keys))}"
            )
        rate, times, words = (table.get(key) for key in ("frames_per_second", "times", "words"))
        if rate is not None and not (_is_seconds(rate) and rate > 0):
            raise DataError(f"{path}: frames_per_second of {place} must be a number above 0")
        if times is not None and not (isinstance(times, list) and all(map(_is_seconds, times))):
            raise DataError(f"{path}: times of {place} must be a list of seconds, none below 0")
        if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise DataError(f"{path}: words of {place} must be a list of words")

    check("the file", content, _KEYS)
    clips = content.get("clips", {})
    if not isinstance(clips, dict) or not all(isinstance(clip, dict) for clip in clips.values()):
        raise DataError(f"{path}: write the settings of a clip under [clips.NAME]")
    for name, clip in clips.items():
        check(f"clip {name}", clip, _CLIP_KEYS)
    return content


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_SECONDS


def _sort_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts ``frame2`` before ``frame10``."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part)


def _list_pictures(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES] if folder.is_dir() else []
    return sorted(found, key=lambda path: _sort_key(path.stem))


def _get_number(path: Path) -> int | None:
    """Return the last number in a file's name: that of ``clip-3_07.png`` is 7."""
    found = re.findall(r"\d+", path.stem)
    return int(found[-1]) if found else None


def _list_times(row: DataRow, count: int) -> tuple[float, ...]:
    """Return when the pictures are shown; empty if the row does not say."""
    if "times" in row.fields:
        times = tuple(map(float, row.fields["times"].split()))
        if len(times) != count:
            raise DataError(
                f"{SETTINGS} has {len(times)} times for the {count} pictures of {row.uid}: give one for each"
            )
        return times
    rate = row.fields.get("frames_per_second")
    return () if rate is None else tuple(number / float(rate) for number in range(count))


def _read_row(folder: Path, row: DataRow) -> VideoSample:
    path = Path(row.fields["path"])
    sample = _read_video_file(path, row) if path.is_file() else _read_clip_folder(path, row)
    check_sizes(sample)
    return sample


def _read_clip_folder(path: Path, row: DataRow) -> VideoSample:
    frames, masks = _list_pictures(path / "frames"), _list_pictures(path / "masks")
    if not frames:
        raise DataError(f"{path / 'frames'} has no pictures")
    if not masks:
        raise DataError(f"{path / 'masks'} has no masks")
    found = _pair_masks(frames, masks)
    return VideoSample(
        row.uid, CLIPS, row.split, tuple(frames), found, _find_sound(path), row.fields["words"], row.uid,
        _list_times(row, len(frames)),
    )  # fmt: skip


def _pair_masks(frames: list[Path], masks: list[Path]) -> tuple[Path | None, ...]:
    """Return the mask of each frame: that of the same name, otherwise that of the same number."""
    names = {frame.stem: number for number, frame in enumerate(frames)}
    numbers: dict[int | None, int] = {_get_number(frame): number for number, frame in enumerate(frames)}
    found: list[Path | None] = [None] * len(frames)
    for mask in masks:
        place = names.get(mask.stem)
        if place is None and len(numbers) == len(frames) and (number := _get_number(mask)) is not None:
            place = numbers.get(number)
        if place is None:
            raise DataError(f"{mask} has no frame of the same name or number")
        if found[place] is not None:
            raise DataError(f"{mask} and {found[place]} belong to the same frame: remove one of them")
        found[place] = mask
    return tuple(found)


def _find_sound(path: Path) -> Path:
    sounds = sorted(file for file in path.iterdir() if file.suffix.lower() in _SOUNDS)
    named = [sound for sound in sounds if sound.stem == "audio"] or sounds
    if len(named) != 1:
        many = f"has {len(named)} sound files: keep one, or call one of them audio" if named else "has no sound file"
        raise DataError(f"{path} {many}")
    return named[0]


def _read_video_file(path: Path, row: DataRow) -> VideoSample:
    folder = _find_mask_folder(path)
    masks = _list_pictures(folder) if folder is not None else []
    if not masks:
        raise DataError(f"{folder or path.with_name(path.stem + _MASK_ENDINGS[0])} has no masks")
    times = _list_times(row, len(masks))
    if not times:
        numbers = [_get_number(mask) for mask in masks]
        seconds = [number for number in numbers if number is not None]
        if len(set(seconds)) != len(masks):
            raise DataError(f"{folder}: number the masks by seconds, each once, or give times in {SETTINGS}")
        first = 0 if 0 in seconds else 1
        times = tuple(second - first + FRAME_OFFSET_SECONDS for second in seconds)
    frames = extract_pictures(path, times)
    return VideoSample(row.uid, CLIPS, row.split, frames, tuple(masks), path, row.fields["words"], row.uid, times)


def _read_mask(path: Path, kind: MaskKind) -> NDArray[np.uint8]:
    return read_index_mask(path, kind) if kind == "semantic" else read_binary_mask(path, kind, "clips")


LAYOUT = DataLayout(
    "clips",
    "folders {clip} with frames and masks, or {clip}.mp4 with {clip}.masks",
    _find_folder,
    _list_rows,
    _read_row,
    _read_mask,
    (CLIPS,),
    lambda category: tuple(word for word in category.split(",") if word),
)
