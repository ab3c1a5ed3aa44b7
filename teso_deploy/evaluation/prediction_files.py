"""Scores masks or probabilities that any program wrote, against a folder of true masks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError, InputNotFoundError, TesoError
from teso_deploy.evaluation.datasets.binary_masks import read_binary_mask
from teso_deploy.evaluation.datasets.pictures import open_picture
from teso_deploy.evaluation.datasets.reading import load_mask
from teso_deploy.evaluation.metrics.binary import BINARY_DEFINITIONS, BinaryScores, apply_sigmoid, find_definition
from teso_deploy.evaluation.metrics.semantic import SemanticScores
from teso_deploy.types import ImageSize

#: The name of the protocol with the 71 classes of AVSBench-semantic.
SEMANTIC = "avss"
PROTOCOLS = (*BINARY_DEFINITIONS, SEMANTIC)
#: The meaning of the numbers in a .npy file.
Values = Literal["logits", "probabilities"]
_SUFFIXES = (".npy", ".png")
_FRAME_NUMBER = re.compile(r"(.+?)[_-]?\d+")


@dataclass(frozen=True, slots=True)
class FilePair:
    """A true mask and its prediction.

    Attributes:
        name: The path of the truth in its folder, without the suffix.
        video: The frames of one video are scored as one batch.
        prediction: The predicted file.
        truth: The true mask.
    """

    name: str
    video: str
    prediction: Path
    truth: Path


@dataclass(frozen=True, slots=True)
class FolderScore:
    """The scores of a folder.

    Attributes:
        frames: How many frames were scored.
        resized: How many of them were resized to the protocol's size.
        skipped: A sentence about each frame that could not be scored.
        values: Number → value.
        by_video: Video → number → value.
        by_class: Number → class → value, of the protocol ``avss`` only.
    """

    frames: int
    resized: int
    skipped: tuple[str, ...]
    values: dict[str, float | None]
    by_video: dict[str, dict[str, float | None]]
    by_class: dict[str, dict[str, float]]


def pair_files(predictions: Path, truth: Path) -> tuple[list[FilePair], list[str]]:
    """Pair the files of two folders by their paths without suffixes.

    The frames of a subfolder are one video. In a folder without subfolders, files whose names differ only in the number
    at the end are one video.

    Args:
        predictions: Folder of .npy or .png files.
        truth: Folder of .png masks.

    Returns:
        The pairs in the order of their names, and a sentence for each file without a counterpart.

    Raises:
        InputNotFoundError: A folder does not exist.
        DataError: The folder of truth has no mask, or no file has a counterpart.
    """
    for folder in (predictions, truth):
        if not folder.is_dir():
            raise InputNotFoundError(f"no folder {folder}: give a folder of predictions, and one of true masks")
    true, predicted = _list_files(truth, (".png",)), _list_files(predictions, _SUFFIXES)
    if not true:
        raise DataError(f"{truth} has no .png mask: give the folder of true masks as the second argument")
    pairs = [
        FilePair(name, _name_video(name), predicted[name], path) for name, path in true.items() if name in predicted
    ]
    if not pairs:
        raise DataError(
            f"no file of {predictions} has the name of a mask of {truth}: give both the same paths, as in "
            f"{next(iter(true))}.npy"
        )
    problems = [f"{truth / name}.png has no prediction" for name in true if name not in predicted]
    problems += [f"{path} has no true mask" for name, path in predicted.items() if name not in true]
    return pairs, problems


def _list_files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """List the files of a folder by their paths without suffixes. The first suffix of a path counts."""
    found: dict[str, Path] = {}
    for suffix in reversed(suffixes):
        paths = (path for path in folder.rglob("*") if path.suffix.lower() == suffix and path.is_file())
        found |= {str(path.relative_to(folder).with_suffix("")): path for path in paths}
    return dict(sorted(found.items()))


def _name_video(name: str) -> str:
    folder, _, file = name.rpartition("/")
    numbered = _FRAME_NUMBER.fullmatch(file)
    return folder or (numbered[1] if numbered else file)


def score_pairs(
    pairs: Sequence[FilePair],
    protocol: str = "avsbench",
    *,
    values: Values = "logits",
    classes: Sequence[str] = (),
    on_frame: Callable[[], None] = lambda: None,
) -> FolderScore:
    """Score pairs of files. One batch of videos is in memory at a time.

    Args:
        pairs: The files, see :func:`pair_files`.
        protocol: One of ``PROTOCOLS``. Default: ``avsbench``.
        values: What the numbers of .npy files are. Pictures are masks, or probabilities from 0 to 255.
        classes: Names of the classes after the background, for ``avss``. Default: their numbers.
        on_frame: Called after each frame. Default: nothing.

    Returns:
        The scores. A frame that can't be read or whose sizes differ is in ``skipped``.

    Raises:
        DataError: No such protocol, or no frame could be scored.
    """
    scorer = _SemanticScorer(classes) if protocol == SEMANTIC else _BinaryScorer(protocol, values)
    skipped, frames, resized = list[str](), 0, 0
    by_video: dict[str, dict[str, float | None]] = {}
    batch = list[tuple[NDArray[Any], NDArray[Any]]]()
    videos = groupby(sorted(pairs, key=lambda pair: (pair.video, pair.name)), key=lambda pair: pair.video)
    for number, (video, of_video) in enumerate(videos, start=1):
        read = list[tuple[NDArray[Any], NDArray[Any]]]()
        for pair in of_video:
            try:
                predicted, true = scorer.read(pair)
                read.append((_resize(predicted, scorer.size, scorer.is_smooth), _resize(true, scorer.size, False)))
                resized += scorer.size is not None and true.shape != scorer.size
            except TesoError as error:
                skipped.append(str(error))
            on_frame()
        if read:
            frames += len(read)
            by_video[video] = scorer.score_alone(read)
            batch += read
        if batch and number % scorer.videos_per_batch == 0:
            scorer.add(batch)
            batch = []
    if batch:
        scorer.add(batch)
    if not frames:
        raise DataError(f"no frame can be scored, the first because {skipped[0]}")
    return FolderScore(frames, resized, tuple(skipped), scorer.values(), by_video, scorer.class_values())


class _BinaryScorer:
    is_smooth = True

    def __init__(self, protocol: str, values: Values) -> None:
        self.definition, self._values = find_definition(protocol), values
        self.size: ImageSize | None = self.definition.size
        self.videos_per_batch = self.definition.videos_per_batch
        self._scores = BinaryScores(self.definition)

    def read(self, pair: FilePair) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        predicted, true = self._read_probabilities(pair.prediction), read_binary_mask(pair.truth, "binary", "truth")
        _check_sizes(pair, predicted.shape, true.shape)
        return predicted, true

    def _read_probabilities(self, path: Path) -> NDArray[np.float32]:
        if path.suffix.lower() == ".png":
            return read_probability_picture(path)
        array = _read_array(path)
        if array.ndim != 2:
            raise DataError(f"{path} is {array.shape}: a frame must be (H, W), or (1, H, W)")
        if self._values == "logits":
            return apply_sigmoid(array)
        if not np.all((array >= 0) & (array <= 1)):
            raise DataError(f"{path} has values outside of 0 … 1: say --values logits if they are logits")
        return array.astype(np.float32)

    def add(self, batch: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        self._scores.add(*_stack(batch))

    def score_alone(self, frames: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, float | None]:
        scores = BinaryScores(self.definition)
        scores.add(*_stack(frames))
        return scores.values()

    def values(self) -> dict[str, float | None]:
        return self._scores.values()

    def class_values(self) -> dict[str, dict[str, float]]:
        return {}


class _SemanticScorer:
    size: ImageSize | None = None
    videos_per_batch, is_smooth = 1, False

    def __init__(self, classes: Sequence[str]) -> None:
        self._names = ["background", *(classes or [str(number) for number in range(1, 71)])]
        self._scores = SemanticScores(len(self._names), repeat_mistakes=True)

    def read(self, pair: FilePair) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        predicted, true = self._read_labels(pair.prediction), load_mask(pair.truth, "avss", "semantic")
        _check_sizes(pair, predicted.shape, true.shape)
        return predicted, true

    def _read_labels(self, path: Path) -> NDArray[Any]:
        if path.suffix.lower() == ".png":
            return load_mask(path, "avss", "semantic")
        array = _read_array(path)
        labels = array.argmax(axis=0) if array.ndim == 3 else array
        if labels.ndim != 2 or (array.ndim == 2 and array.dtype.kind not in "iu"):
            raise DataError(f"{path} is {array.shape} {array.dtype}: give (H, W) integers, or (71, H, W) logits")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self._names):
            raise DataError(f"{path} has the class {labels.max()}: there are 0 to {len(self._names) - 1}")
        return labels

    def add(self, batch: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        for labels, true in batch:  # frames of a video may differ in size
            self._scores.add(labels[None], true[None])

    def score_alone(self, frames: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, float | None]:
        scores = SemanticScores(len(self._names))
        for labels, true in frames:
            scores.add(labels[None], true[None])
        return {name: value for name, value in scores.values().items() if name.startswith("unbiased")}

    def values(self) -> dict[str, float | None]:
        return self._scores.values()

    def class_values(self) -> dict[str, dict[str, float]]:
        return self._scores.name_classes(self._names)


def read_probability_picture(path: Path) -> NDArray[np.float32]:
    """Read a picture as probabilities (H, W) in [0, 1].

    Grey levels 0 … 255 are probabilities. A palette, and a picture of 0 and 1 only, is a mask: every value but 0 is 1.

    Raises :class:`DataError` for a damaged picture.
    """
    with open_picture(path) as image:
        if image.mode in ("P", "1"):
            return (np.asarray(image) != 0).astype(np.float32)
        pixels = np.asarray(image if image.mode in ("L", "I", "I;16") else image.convert("L"))
    largest = 65535 if pixels.dtype.itemsize > 1 else 255
    return (pixels / (1 if pixels.max(initial=0) <= 1 else largest)).astype(np.float32)


def _read_array(path: Path) -> NDArray[Any]:
    """Read an array; an axis of length 1 before height and width is removed. Raises :class:`DataError`."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} can't be read ({error}): write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise DataError(f"{path} does not hold an array of numbers: write it with numpy.save")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise DataError(f"{path} has NaN: a prediction must be numbers")
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _check_sizes(pair: FilePair, predicted: tuple[int, ...], true: tuple[int, ...]) -> None:
    if predicted != true:
        raise DataError(
            f"{pair.prediction} is {predicted[0]} × {predicted[1]} (height × width), its truth {true[0]} × {true[1]}"
        )


def _resize(array: NDArray[Any], size: ImageSize | None, is_smooth: bool) -> NDArray[Any]:
    """Resize to a height and width: probabilities bilinearly, masks to the nearest pixel."""
    if size is None or array.shape == size:
        return array
    how = Image.Resampling.BILINEAR if is_smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), how)).clip(0, 1)


def _stack(frames: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Iterator[NDArray[Any]]:
    return (np.stack(side) for side in zip(*frames, strict=True))
