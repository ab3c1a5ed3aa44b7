"""A folder of pictures with masks and of sounds, read into memory for composing scenes.

Layout (the labels are folder names, ``split.csv`` says what is train and what is test)::

    split.csv                       file,label,kind,split    kind: picture | sound | background
    audio/<label>/*.ogg             one true sound of the label each
    stamps/<label>/*.png            pictures with an alpha channel
    caltech/<label>/NAME.jpg        photographs, with NAME_mask.png beside each
    backgrounds/*.jpg               photographs without a subject
    coco_by/index.json              natural scenes with panoptic masks, for training only
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.media.container import open_media
from teso_deploy.small_files import parse_json, read_text
from teso_deploy.text import to_one_line
from teso_deploy.types import SAMPLE_RATE_HZ

#: ``calibration`` has the pictures of ``train``, and the sounds that training omits.
Split = Literal["train", "calibration", "test"]
Read = TypeVar("Read")

#: Labels that differ from the word that people use → that word.
_WORDS = {"euphonium_tuba": "tuba", "truck_bus": "truck"}
#: A 20 ms slice is audible if it is at most this far below the recording's loudest slice.
_HEARD_RANGE_DB = 30.0
#: A label with at least this many training sounds reserves one in eight of them for calibration.
_CALIBRATED_LABEL_SOUNDS, _CALIBRATION_SHARE = 5, 8
#: COCO's names → our words for the same things.
_COCO_WORDS = {"cell phone": "phone", "motorcycle": "motorbike"}
#: Objects that cover a smaller share of a natural scene than this are too small to be cut out of it.
_SUBJECT_SHARE = 0.005
#: The table that says what is train and what is test.
SPLIT_TABLE = "split.csv"
SLICE_SAMPLES = SAMPLE_RATE_HZ // 50


def get_word(label: str) -> str:
    """Return the word that people use for a label: ``euphonium_tuba`` → ``tuba``."""
    return _WORDS.get(label, label.replace("_", " "))


@dataclass(frozen=True, slots=True)
class Recording:
    """A sound.

    ``samples``: (N,) float32, 16 kHz mono, with peak 1. ``heard``: (N / 320,) bool, whether each 20 ms slice is
    audible.
    """

    samples: NDArray[np.float32]
    heard: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MediaLibrary:
    """The pictures and sounds of one split, by word.

    Attributes:
        split: The split.
        pictures: Word → RGBA pictures, cut to the box of their subject.
        whole: Word → whole RGBA photographs. The alpha channel is the mask of the subject.
        sounds: Word → recordings.
        backgrounds: Photographs without a subject.
        collections: Word → collection (a top folder) → the numbers of its pictures in ``pictures``.
    """

    split: Split
    pictures: dict[str, list[Image.Image]]
    whole: dict[str, list[Image.Image]]
    sounds: dict[str, list[Recording]]
    backgrounds: list[Image.Image]
    collections: dict[str, dict[str, list[int]]]

    def draw_picture(self, rng: np.random.Generator, word: str) -> Image.Image:
        """Draw one of a word's pictures. Each collection is equally likely.

        So a large collection that shows only one kind of thing (thirty dalmatians) does not dominate a word.
        """
        collections = list(self.collections[word].values())
        numbers = collections[rng.integers(len(collections))]
        return self.pictures[word][numbers[rng.integers(len(numbers))]]

    @property
    def fingerprint(self) -> str:
        """The counts of pictures, sounds and backgrounds, in one line."""
        pictures = sum(map(len, self.pictures.values()))
        sounds = sum(map(len, self.sounds.values()))
        return f"{self.split}: {pictures} pictures, {sounds} sounds, {len(self.backgrounds)} backgrounds"


def read_recording(path: Path) -> Recording:
    """Decode a whole sound file to 16 kHz mono and mark its audible slices."""
    with open_media(path) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
        parts = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    if not parts:
        raise DataError(f"{path} has no sound: replace it, or remove its row from split.csv")
    # Make non-finite samples silent: a single one would make all others NaN.
    samples = np.nan_to_num(np.concatenate(parts).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    samples /= max(float(np.abs(samples).max()), 1e-6)
    slices = samples[: len(samples) // SLICE_SAMPLES * SLICE_SAMPLES].reshape(-1, SLICE_SAMPLES)
    level = np.sqrt((slices.astype(np.float64) ** 2).mean(axis=1)) + 1e-9
    heard = level > level.max() * 10 ** (-_HEARD_RANGE_DB / 20) if len(level) else np.zeros(0, bool)
    return Recording(samples, heard)


def _read_image(path: Path, mode: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert(mode)


def _read_picture(path: Path, max_side: int) -> Image.Image:
    with Image.open(path) as opened:
        has_alpha = opened.mode in ("RGBA", "LA", "P")
        image = opened.convert("RGBA" if has_alpha else "RGB")
    if has_alpha:
        image.thumbnail((max_side, max_side), Image.Resampling.BILINEAR)
        return image
    mask_path = path.with_name(path.stem + "_mask.png")
    if not mask_path.is_file():
        raise DataError(f"{path} has neither an alpha channel nor {mask_path.name} beside it: add the mask")
    image.putalpha(_read_image(mask_path, "L"))
    return _shrink(image, max_side)


def _shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Return an RGBA picture with no side longer than ``max_side``. It keeps the colours outside of the subject."""
    scale = min(1.0, max_side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Resize colours and alpha separately. Together, everything outside of the subject would turn black.
    alpha = image.getchannel("A").resize(size, Image.Resampling.BILINEAR)
    image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    image.putalpha(alpha)
    return image


def _cut_to_subject(image: Image.Image) -> Image.Image | None:
    box = image.getchannel("A").point(lambda a: 255 * (a >= 128)).getbbox()
    return image.crop(box) if box and min(box[2] - box[0], box[3] - box[1]) >= 8 else None


def _choose_calibration_sounds(rows: Sequence[dict[str, str]]) -> set[str]:
    """Choose the training sounds that are reserved for calibration.

    They are spread evenly by name over the sounds of each label that has enough.
    """
    by_label: dict[str, list[str]] = {}
    for row in rows:
        if (row["kind"], row["split"]) == ("sound", "train"):
            by_label.setdefault(row["label"], []).append(row["file"])
    chosen: set[str] = set()
    for names in by_label.values():
        if len(names) >= _CALIBRATED_LABEL_SOUNDS:
            step = len(names) / max(1, len(names) // _CALIBRATION_SHARE)
            chosen.update(sorted(names)[int((i + 0.5) * step)] for i in range(round(len(names) / step)))
    return chosen


def read_natural_scene(index: Path, entry: Any) -> tuple[Image.Image, NDArray[np.int64], dict[str, list[int]]]:
    """Read an entry of an index of natural scenes.

    Returns the photograph, the number of the segment of each pixel (H, W), and the numbers of each word.
    """
    photograph = _read_image(index.with_name(entry["image"]), "RGB")
    colours = np.asarray(_read_image(index.with_name(entry["panoptic"]), "RGB")).astype(np.int64)
    segments: dict[str, list[int]] = {}
    for segment in entry["segments"]:
        segments.setdefault(_COCO_WORDS.get(segment["cat"], segment["cat"]), []).append(int(segment["id"]))
    if colours.shape[:2] != (photograph.height, photograph.width):
        raise DataError(
            f"{entry['panoptic']} and {entry['image']} have different sizes: take both from the same data set"
        )
    return photograph, colours @ (1, 256, 65536), segments


def _yield_natural_scenes(folder: Path, words: Collection[str], max_side: int) -> Iterator[tuple[str, Image.Image]]:
    """Yield natural scenes in COCO's panoptic format: a word, and the RGBA scene.

    The alpha channel marks all segments of the word. Each scene is cut around this subject, with a margin of
    the subject's longer side.
    """
    index = folder / "coco_by" / "index.json"
    if not index.is_file():
        return
    content = parse_json(read_text(index, "the index of natural scenes", error=DataError), index, error=DataError)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{index} has no list of images: restore it, or remove the folder")
    for entry in entries:
        photograph, numbers, segments = _read(partial(read_natural_scene, entry=entry), index)
        for word in sorted(segments.keys() & set(words)):
            mask = np.isin(numbers, segments[word])
            if mask.mean() < _SUBJECT_SHARE:
                continue
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            margin = max(rows[-1] - rows[0], columns[-1] - columns[0])
            scene = photograph.copy()
            scene.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
            scene = scene.crop(
                (
                    max(0, int(columns[0] - margin)), max(0, int(rows[0] - margin)),
                    min(scene.width, int(columns[-1] + margin)), min(scene.height, int(rows[-1] + margin)),
                )
            )  # fmt: skip
            yield word, _shrink(scene, max_side)


def _read_rows(folder: Path) -> list[dict[str, str]]:
    if not folder.is_dir():
        raise InputNotFoundError(f"no folder {folder}: give the media folder by --data or TESO_AVS_DATA")
    table = folder / SPLIT_TABLE
    if not table.is_file():
        raise DataError(f"{folder} has no split.csv: see export/demo/README.md for the layout of a media folder")
    text = read_text(table, "the table of a media folder", error=DataError)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
    except csv.Error as error:
        raise DataError(f"{table} is not CSV ({error}): write it again") from error
    if not rows or not {"file", "label", "kind", "split"} <= rows[0].keys():
        raise DataError(f"{table} must have the columns file,label,kind,split; see export/demo/README.md")
    return rows


def label_words(folder: Path) -> list[str]:
    """List the labels of a media folder, as words."""
    return sorted({get_word(row["label"]) for row in _read_rows(folder) if row["kind"] in ("picture", "sound")})


def _read(read: Callable[[Path], Read], path: Path) -> Read:
    """Read a file with ``read``. Raises :class:`DataError`, with the file's name, if it is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return read(path)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, zlib.error and others
        reason = to_one_line(error, 200) or type(error).__name__
        raise DataError(f"{path} can't be read ({reason}): replace it, or remove its row from split.csv") from error


def read_library(folder: Path, split: Split, *, hold_out: Collection[str] = (), max_side: int = 320) -> MediaLibrary:
    """Read all files of one split.

    Args:
        folder: The media folder.
        split: The split.
        hold_out: Files to omit, as ``split.csv`` names them. Default: none.
        max_side: The longest side of a picture in pixels; larger pictures are scaled down. Default: 320.

    Raises:
        InputNotFoundError: The folder does not exist.
        DataError: The folder has another layout, or a file is missing or damaged.
    """
    library = MediaLibrary(split, {}, {}, {}, [], {})
    rows = _read_rows(folder)
    calibration = _choose_calibration_sounds(rows)
    for row in rows:
        name, kind = row["file"], row["kind"]
        if row["split"] != ("test" if split == "test" else "train") or name in hold_out:
            continue
        if kind == "sound" and split != "test" and (name in calibration) != (split == "calibration"):
            continue
        path = folder / name
        if not os.path.isfile(path):  # Path.is_file raises for an impossible file name
            raise DataError(
                f"{folder}: split.csv names {to_one_line(name)}, which is not there: restore it or remove the row"
            )
        word = get_word(row["label"])
        if kind == "sound":
            recording = _read(read_recording, path)
            if recording.heard.any():
                library.sounds.setdefault(word, []).append(recording)
        elif kind == "background":
            background = _read(lambda path: _read_image(path, "RGB"), path)
            background.thumbnail((max_side * 2, max_side * 2), Image.Resampling.BILINEAR)
            library.backgrounds.append(background)
        elif kind == "picture":
            image = _read(lambda path: _read_picture(path, max_side), path)
            if (cut := _cut_to_subject(image)) is None:
                continue
            pictures = library.pictures.setdefault(word, [])
            collections = library.collections.setdefault(word, {})
            collections.setdefault(name.split("/")[0], []).append(len(pictures))
            pictures.append(cut)
            if path.suffix.lower() in (".jpg", ".jpeg"):  # a photograph, which also shows its surroundings
                library.whole.setdefault(word, []).append(image)
    if split == "train":
        for word, scene in _yield_natural_scenes(folder, library.pictures, max_side):
            library.whole.setdefault(word, []).append(scene)
    if not (library.pictures and library.sounds and library.backgrounds):
        raise DataError(
            f"{folder}: split.csv names no {split} pictures, sounds or backgrounds; see the documented layout"
        )
    return library
