"""Data sets of audio-visual segmentation in the three layouts they are published in, read without torch.

Layouts (AVSBench, Zhou et al., ECCV 2022 and IJCV 2024; after the data loaders and ``preprocess_scripts`` of
OpenNLPLab/AVSBench). ``split`` is ``train``, ``val`` or ``test``::

    s4    Single-source/s4_meta_data.csv                      the name first; category, split
          Single-source/s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
                                gt_masks/{split}/{category}/{name}/{name}_{1..5}.png     train: only _1
                                audio_wav/{split}/{category}/{name}.wav
    ms3   Multi-sources/ms3_meta_data.csv                     the name first; split
          Multi-sources/ms3_data/visual_frames/{name}/{name}.mp4_{1..5}.png
                                 gt_masks/{split}/{name}/{name}_{1..5}.png
                                 audio_wav/{split}/{name}.wav
    avss  metadata.csv                                        vid,uid,s_min,s_sec,a_obj,split,label
          {label}/{uid}/frames/{i}.jpg                        label: v1s, v1m (i = 0..4), v2 (i = 0..9)
          {label}/{uid}/labels_semantic/{i}.png               v1s in train: only 0
          {label}/{uid}/audio.wav

What varies between archives is accepted: a root that is ``Single-source`` or ``s4_data`` itself (``Multi-sources``,
``ms3_data``); the table beside the data folder, in it or at the root; pictures named ``{name}_{i}``,
``{name}.mp4_{i}`` or ``{i}``, as .png, .jpg or .jpeg; a table with a byte order mark; files of other names (previews,
``.DS_Store``, ``audio_log_mel``, ``labels_rgb``). The log-mel pickles are never read.

``labels_semantic`` are index images whose values are those of ``label2idx.json`` less one: 0 is the background.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.media.audio import WINDOW_SECONDS, read_audio
from teso_deploy.resources import shipped_path

Layout = Literal["s4", "ms3", "avss"]
Split = Literal["train", "val", "test"]
MaskKind = Literal["binary", "semantic"]

SUBSETS = ("v1s", "v1m", "v2")
#: Frames of a video, one a second.
FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}
#: Values of an index mask: the background and 70 classes.
CLASSES = 71
#: The picture of second k was taken at k + this (the last of 16 samples of the second).
FRAME_OFFSET_SECONDS = 0.9375

#: Collection, data folder and table of the two layouts with binary masks.
_OBJECT = {
    "s4": ("Single-source", "s4_data", "s4_meta_data.csv"),
    "ms3": ("Multi-sources", "ms3_data", "ms3_meta_data.csv"),
}
_SUFFIXES = (".png", ".jpg", ".jpeg")
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_INDEX_MODES = ("L", "P", "I", "I;16")


@dataclass(frozen=True, slots=True)
class VideoSample:
    """A video: ``frames`` one a second, ``masks`` as many (None where a frame has no label), the file of its sound.

    ``uid``: the name in s4 and ms3. ``vid``: the recording it was cut from, by which the released cues name it; in
    s4 and ms3 the same. ``subset``: ``v1s`` for s4, ``v1m`` for ms3. ``category``: in s4 the category
    (``dog_barking``), in avss ``a_obj`` (``man_ukulele``: classes joined by underscores), in ms3 empty.
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
class _Place:
    """Where a table's row says that its video lies; pictures count from ``first``."""

    uid: str
    vid: str
    subset: str
    category: str
    frames: Path
    masks: Path
    audio: Path
    first: int


def _data_folder(root: Path, layout: Layout) -> Path | None:
    """The folder that a layout's data lie in, None where there is no such thing."""
    if layout == "avss":
        return root if any((root / subset).is_dir() for subset in SUBSETS) else None
    outer, inner, table = _OBJECT[layout]
    for folder in (root / outer / inner, root / inner):
        if (folder / "visual_frames").is_dir():
            return folder
    here = root.absolute()
    is_named = here.name == inner or (root / table).is_file() or (here.parent / table).is_file()
    return root if is_named and (root / "visual_frames").is_dir() else None


def _looked_for(layouts: Collection[str]) -> str:
    object_sets = [f"{outer}/{inner}/visual_frames" for key, (outer, inner, _) in _OBJECT.items() if key in layouts]
    avss = ["metadata.csv with a folder v1s, v1m or v2"] if "avss" in layouts else []
    return ", ".join(object_sets + avss)


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise InputNotFoundError(f"no folder {root}: give the folder of an audio-visual segmentation data set")


def detect_layout(root: Path) -> Layout:
    """Which layout a folder is in.

    Raises :class:`InputNotFoundError` (no such folder), :class:`DataError` (in none, or in several: an archive
    may hold s4 and ms3).
    """
    _check_root(root)
    layouts: tuple[Layout, ...] = get_args(Layout)
    found = [layout for layout in layouts if _data_folder(root, layout) is not None]
    if not found:
        raise DataError(f"{root} is in no known layout: looked for {_looked_for(layouts)}")
    if len(found) > 1:
        raise DataError(f"{root} holds {' and '.join(found)}: name the layout, or give the folder of one of them")
    return found[0]


def _table(root: Path, folder: Path, layout: Layout) -> Path:
    name = "metadata.csv" if layout == "avss" else _OBJECT[layout][2]
    for place in (folder.absolute().parent, folder, root) if layout != "avss" else (root,):
        if (place / name).is_file():
            return place / name
    where = "beside it or in it" if layout != "avss" else "in it"
    raise DataError(f"{folder} has no {name} {where}: the table comes with the data set, put it there")


def _rows(table: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """A table's rows with values stripped; the first column is also under the key ``""``."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, restkey="", restval="")
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [{name: str(row[name]).strip() for name in columns} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} can't be read ({error}): copy it again from the data set") from error
    if not set(needed) <= set(columns):
        raise DataError(f"{table} must have the columns {','.join(needed)}; it has {','.join(columns) or 'none'}")
    return [row | {"": row[columns[0]]} for row in rows]


def _place(folder: Path, layout: Layout, row: dict[str, str]) -> _Place:
    split = row["split"]
    if layout == "avss":
        home = folder / row["label"] / row["uid"]
        masks, audio = home / "labels_semantic", home / "audio.wav"
        return _Place(
            row["uid"], row.get("vid") or row["uid"], row["label"], row["a_obj"], home / "frames", masks, audio, 0
        )
    uid, category = row[""], row["category"] if layout == "s4" else ""
    inside = Path(split, category)
    masks, audio = folder / "gt_masks" / inside / uid, folder / "audio_wav" / inside / f"{uid}.wav"
    frames = folder / "visual_frames" / (inside if layout == "s4" else "") / uid
    return _Place(uid, uid, "v1s" if layout == "s4" else "v1m", category, frames, masks, audio, 1)


def _numbered(folder: Path, uid: str) -> dict[int, Path]:
    """Pictures of a folder by number; of two with one number, the one whose suffix comes first."""
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


def _check_numbers(folder: Path, what: str, found: Collection[int], wanted: Sequence[int], *, more: bool) -> None:
    """``more``: there may be others than those wanted."""
    missing = [str(number) for number in wanted if number not in found]
    if missing:
        has = f"has {len(found)} of {len(wanted)} {what}, {', '.join(missing)} missing" if found else f"has no {what}"
        raise DataError(f"{folder} {has if folder.is_dir() else 'is not there'}")
    if not more and len(found) != len(wanted):
        raise DataError(f"{folder} has {len(found)} {what} instead of {len(wanted)}")


def _read_sample(place: _Place, split: Split) -> VideoSample:
    numbers = range(place.first, place.first + FRAMES[place.subset])
    is_sparse = place.subset == "v1s" and split == "train"
    frames, masks = _numbered(place.frames, place.uid), _numbered(place.masks, place.uid)
    _check_numbers(place.frames, "frames", frames, numbers, more=False)
    _check_numbers(place.masks, "masks", masks, numbers[:1] if is_sparse else numbers, more=is_sparse)
    if not place.audio.is_file():
        raise DataError(f"{place.audio} is not there")
    labels = tuple(masks[number] if number == place.first or not is_sparse else None for number in numbers)
    shown = tuple(frames[number] for number in numbers)
    sample = VideoSample(place.uid, place.subset, split, shown, labels, place.audio, place.category, place.vid)
    for frame, mask in zip(sample.frames, sample.masks, strict=True):
        if mask is not None and (size := _size(mask)) != (wanted := _size(frame)):
            raise DataError(f"{mask} is {size[0]} × {size[1]} pixels, its frame {wanted[0]} × {wanted[1]}")
    return sample


def read_dataset(
    root: Path, layout: Layout | None, split: Split, subsets: Sequence[str] = SUBSETS
) -> list[VideoSample]:
    """Every video of a split, in the order of the data set's table (scores per batch depend on it).

    ``layout`` None: :func:`detect_layout`. ``subsets``: those of avss that are wanted; s4 and ms3 have but one.
    All files are looked for and the sizes of frames and masks compared, so that nothing is found missing later.

    Raises :class:`InputNotFoundError` (no such folder), :class:`DataError` (another layout, no table or one without
    the columns, an empty split, a row whose frames, masks or sound are missing or don't fit: the first one, and how
    many more there are).
    """
    _check_root(root)
    if unknown := [subset for subset in subsets if subset not in SUBSETS]:
        raise DataError(f"no subset {unknown[0]!r}: there are {', '.join(SUBSETS)}")
    if split not in get_args(Split):
        raise DataError(f"no split {split!r}: there are {', '.join(get_args(Split))}")
    layout = layout or detect_layout(root)
    folder = _data_folder(root, layout)
    if folder is None:
        raise DataError(f"{root} is not in the layout {layout}: looked for {_looked_for([layout])}")
    table = _table(root, folder, layout)
    needed = {"s4": ("category", "split"), "ms3": ("split",), "avss": ("uid", "a_obj", "split", "label")}[layout]
    rows = _rows(table, needed)
    if layout == "avss":
        for row in rows:
            if row["label"] not in SUBSETS:
                raise DataError(f"{table}: {row['uid']} has the label {row['label']!r}, not {', '.join(SUBSETS)}")
        rows = [row for row in rows if row["label"] in subsets]
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        counts = Counter(row["split"] for row in rows)
        others = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none at all"
        of = f" of {', '.join(subsets)}" if layout == "avss" else ""
        raise DataError(f"{table} has no video{of} in the split {split}; it has {others}")
    samples: list[VideoSample] = []
    problems: list[str] = []
    for row in chosen:
        place = _place(folder, layout, row)
        try:
            if not place.uid:
                raise DataError("a row has no name")
            samples.append(_read_sample(place, split))
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f"; {len(problems) - 1} more of {len(chosen)} videos are not whole" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}: restore the files, or remove the rows from {table}")
    return samples


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        raise InputNotFoundError(f"no picture {path}: the data set changed after it was read")
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{path} can't be read ({error}): copy it again from the data set") from error


def _size(path: Path) -> tuple[int, int]:
    """Width and height, from the header alone."""
    with _opened(path) as image:
        return image.size


def load_frame(path: Path) -> NDArray[np.uint8]:
    """A frame, (H, W, 3) uint8 RGB. Raises :class:`DataError` when the picture is broken."""
    with _opened(path) as image:
        return np.array(image.convert("RGB"))


def _class_indices(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    if image.mode not in _INDEX_MODES:
        raise DataError(f"{path} is no index image but {image.mode}: take it from labels_semantic, not labels_rgb")
    indices = np.array(image)
    outside = (indices < 0) | (indices >= CLASSES)
    if outside.any():
        raise DataError(f"{path} has the class {indices[outside][0]}: AVSS has 0 (background) to {CLASSES - 1}")
    return indices.astype(np.uint8)


def load_mask(path: Path, layout: Layout, kind: MaskKind) -> NDArray[np.uint8]:
    """A mask, (H, W) uint8.

    ``binary``: 1 where something sounds. s4, ms3: wherever the picture, in colour or grey, is not black; avss: any
    class. ``semantic``, of avss alone: the class, 0 (background) … 70.

    Raises :class:`DataError` (broken, not an index image, an unknown class, or s4 and ms3 asked for classes).
    """
    if kind == "semantic" and layout != "avss":
        raise DataError(f"{path}: {layout} has binary masks, only avss has classes")
    with _opened(path) as image:
        if layout == "avss":
            indices = _class_indices(path, image)
            if kind == "binary":
                np.minimum(indices, 1, out=indices)
            return indices
        # A picture with a palette is judged by its colours: which of its indices is black, only the palette knows.
        pixels = np.asarray(image if image.mode in ("1", "L", "I", "I;16", "F") else image.convert("RGB"))
        foreground = pixels > 0
        return np.array(foreground.any(axis=2) if foreground.ndim == 3 else foreground, np.uint8)


def windows_of(sample_audio: Path, count: int, hop_seconds: float = 1.0) -> NDArray[np.float32]:
    """The first ``count`` windows of a video's sound, (count, 15600) float32 in [-1, 1], 16 kHz mono.

    Window k starts at k · ``hop_seconds``: 1.0 gives each frame its own second, 0.96 the contiguous VGGish examples
    that AVSBench's log-mels are made of. What the file does not reach is zeros.

    Raises :class:`InputNotFoundError`, :class:`MediaError` (no sound that can be decoded).
    """
    track = read_audio(sample_audio)
    # A causal window ends where it is asked for.
    ends = (number * hop_seconds + WINDOW_SECONDS for number in range(count))
    return np.stack([track.window(end, "causal", hop_seconds=0.0).samples for end in ends])


def second_of(sample_audio: Path, index: int, hop_seconds: float = 1.0) -> NDArray[np.float32]:
    """Window ``index`` of :func:`windows_of`, (15600,) float32: second k of the sound, from k.0 s."""
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    track = read_audio(sample_audio)
    return track.window(index * hop_seconds + WINDOW_SECONDS, "causal", hop_seconds=0.0).samples


def avss_classes() -> tuple[str, ...]:
    """The 70 classes of AVSS as words; the k-th (from 0) has the value k + 1 in an index mask.

    :class:`InputNotFoundError` when the installation lacks ``export/vocabulary/avss70.txt``.
    """
    path = shipped_path("export/vocabulary/avss70.txt")
    if not path.is_file():
        raise InputNotFoundError(f"no word list {path}: install the package again")
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
