"""Batches of videos with masks: frames of public data sets, each with its second of sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.evaluation.datasets.pictures import load_frame
from teso_deploy.evaluation.datasets.reading import load_mask
from teso_deploy.evaluation.datasets.registry import Layout, load_layout
from teso_deploy.evaluation.datasets.sounds import read_sample_windows
from teso_deploy.pipeline.preprocess import compute_fitted_size, normalise_picture, resize_picture
from teso_deploy.recipe import Recipe
from teso_deploy.small_files import parse_json, read_text
from teso_deploy.training.batches import STRIDE, Batch, compute_coverage, get_mask_stride
from teso_deploy.types import get_hop_seconds

#: uid or vid → frame ("f0" …) → words; the format of the authors' released cues.
CueFile = Mapping[str, Mapping[str, str]]


def read_cue_file(path: Path) -> CueFile:
    """Read the cues of each frame: ``{"uid": {"f0": "guitar,", "f1": "guitar,man,"}}``.

    Raises :class:`InputNotFoundError`, and :class:`DataError` for a file of another form.
    """
    content = parse_json(read_text(path, "a cue file", error=DataError), path, error=DataError)
    fits = isinstance(content, dict) and all(
        isinstance(frames, dict) and all(isinstance(words, str) for words in frames.values())
        for frames in content.values()
    )
    if not fits:
        raise DataError(f'{path}: it must be {{"uid": {{"f0": "guitar,man,", …}}, …}}')
    return content


def split_words(text: str) -> list[str]:
    """Split the words of a list with commas, or of a category's name.

    >>> split_words("guitar,old_man,")
    ['guitar', 'old man']
    """
    words = (" ".join(word.lower().replace("_", " ").split()) for word in text.split(","))
    return [word for word in words if word and word != "none"]


def list_words(samples: Sequence[VideoSample], layout: Layout, cue_file: CueFile | None = None) -> list[str]:
    """Return all words that may be offered as cues in a data set.

    Args:
        samples: The videos.
        layout: The layout of the data set.
        cue_file: Cues of each frame. Default: the labels are the cues.

    Returns:
        The words, sorted and unique.
    """
    if cue_file is not None:
        return sorted({word for frames in cue_file.values() for text in frames.values() for word in split_words(text)})
    if load_layout(layout).has_classes:
        return sorted(list_avss_classes())
    return sorted({word for sample in samples for word in split_words(sample.category)})


class VideoBatches:
    """The labelled frames of a data set, each as a :class:`Batch`.

    The cues are those of the cue file, if given. Otherwise they are the names of all labels of a video (or its
    category): the paper's "manual" cues.
    """

    def __init__(
        self,
        recipe: Recipe,
        samples: Sequence[VideoSample],
        *,
        layout: Layout,
        embeddings: Mapping[str, NDArray[np.float32]],
        cue_file: CueFile | None = None,
    ) -> None:
        assert recipe.train is not None
        self.recipe, self.train, self.layout, self.embeddings = recipe, recipe.train, layout, embeddings
        self.cue_file, self.hop_seconds = cue_file, get_hop_seconds(recipe.audio.framing)
        self.frames = [(sample, k) for sample in samples for k, mask in enumerate(sample.masks) if mask is not None]
        self._semantic = lru_cache(maxsize=4096)(self._read_names)

    def __len__(self) -> int:
        return len(self.frames)

    def _names_of(self, mask: NDArray[np.uint8]) -> dict[str, int]:
        """Return name → value for the objects in an index mask."""
        names = list_avss_classes()
        return {names[value - 1]: int(value) for value in np.unique(mask) if value}

    def _read_names(self, path: Path) -> tuple[str, ...]:
        return tuple(self._names_of(load_mask(path, self.layout, "semantic")))

    def list_cues(self, sample: VideoSample, frame: int) -> list[str]:
        """Return the cues of a frame, before some are dropped."""
        if self.cue_file is not None:
            names_by_frame = self.cue_file.get(sample.uid) or self.cue_file.get(sample.vid) or {}
            return split_words(names_by_frame.get(f"f{frame}", ""))
        if load_layout(self.layout).has_classes:
            found = [name for path in sample.masks if path is not None for name in self._semantic(path)]
            return list(dict.fromkeys(found))
        return split_words(sample.category)

    def _sounding(self, sample: VideoSample, frame: int, blank: bool) -> list[str] | None:
        """Return the words that sound in a frame, or None if the data set does not say.

        Args:
            sample: The video.
            frame: Number of the frame.
            blank: Whether nothing is masked in the frame.
        """
        path = sample.masks[frame]
        if load_layout(self.layout).has_classes and path is not None:
            return list(self._semantic(path))
        if blank:
            return []
        return split_words(sample.category) or None

    def _targets(self, sample: VideoSample, frame: int, size: tuple[int, int]) -> list[tuple[int, NDArray[np.float32]]]:
        """Return class and coverage (H/s, W/s) of each thing that sounds; s as of :func:`get_mask_stride`.

        Args:
            sample: The video.
            frame: Number of the frame.
            size: (H, W).
        """
        path = sample.masks[frame]
        assert path is not None
        semantic = self.recipe.head.kind == "semantic"
        mask = load_mask(path, self.layout, "semantic" if semantic else "binary")
        if not semantic:
            parts = {0: mask > 0} if mask.any() else {}
        else:
            parts = {}
            for name, value in self._names_of(mask).items():
                if name not in self.recipe.head.classes:
                    raise DataError(f"{path} shows {name!r}, which is not a class of recipe {self.recipe.name}: add it")
                parts[self.recipe.head.classes.index(name)] = mask == value
        fit, stride = self.recipe.image.fit, get_mask_stride(self.train)
        return [(index, compute_coverage(_fill(part, size, fit), stride)) for index, part in parts.items()]

    def _cues(
        self, sample: VideoSample, frame: int, *, blank: bool, rng: np.random.Generator
    ) -> tuple[list[str], list[float]]:
        """Return the words to offer in training, and whether each sounds (-1: unknown)."""
        words = [word for word in self.list_cues(sample, frame) if word in self.embeddings]
        sounding = self._sounding(sample, frame, blank)
        if rng.random() < self.train.no_cue_rate:
            return [], []
        words = [word for word in words if rng.random() >= self.train.missed_cue_rate]
        others = sorted(self.embeddings.keys() - {*words, *self.list_cues(sample, frame)})
        if others and rng.random() < self.train.extra_cue_rate:
            words.append(others[int(rng.integers(len(others)))])
        words = [words[i] for i in rng.permutation(len(words))][: self.recipe.text.max_cues]
        return words, [-1.0 if sounding is None else float(word in sounding) for word in words]

    def make(self, numbers: Sequence[int], rng: np.random.Generator) -> Batch:
        """Make the batch of these frames. ``rng`` drops some cues and adds others. Raises :class:`DataError`."""
        recipe, size = self.recipe, self.recipe.image.sizes[0]
        stride = get_mask_stride(self.train)
        count, slots = len(numbers), recipe.text.max_cues
        chosen = [self.frames[number] for number in numbers]
        targets = [self._targets(sample, frame, size) for sample, frame in chosen]
        most = max(1, *(len(found) for found in targets))
        classes = torch.full((count, most), -1, dtype=torch.int64)
        masks = torch.zeros(count, most, size[0] // stride, size[1] // stride)
        extent = torch.ones(count, 2)
        cues, valid = torch.zeros(count, slots, recipe.text.dim), torch.zeros(count, slots, dtype=torch.bool)
        sounds = torch.full((count, slots), -1.0)
        images, waves = [], []
        for row, (sample, frame) in enumerate(chosen):
            picture = load_frame(sample.frames[frame])
            height, width = compute_fitted_size(picture, size, recipe.image.fit)
            extent[row] = torch.tensor((width / size[1], height / size[0]))
            picture = resize_picture(picture, (height, width))
            mean, std = recipe.image.mean, recipe.image.std
            images.append(torch.from_numpy(normalise_picture(picture, mean=mean, std=std, bucket=size)))
            waves.append(torch.from_numpy(read_sample_windows(sample, self.hop_seconds)[frame]))
            for place, (index, covered) in enumerate(targets[row]):
                classes[row, place] = index
                masks[row, place] = torch.from_numpy(covered)
            for slot, (word, heard) in enumerate(
                zip(*self._cues(sample, frame, blank=not targets[row], rng=rng), strict=True)
            ):
                cues[row, slot] = torch.from_numpy(self.embeddings[word])
                valid[row, slot] = True
                sounds[row, slot] = heard
        return Batch(
            image=torch.cat(images),
            photograph=torch.zeros(count, 1, 1, 3, dtype=torch.uint8),  # for teachers, which are not used here
            dense_tags=torch.zeros(count, size[0] // STRIDE, size[1] // STRIDE, dtype=torch.int64),
            waveform=torch.stack(waves),
            audio_tags=torch.zeros(count, 1),
            cues=cues,
            cue_valid=valid,
            cue_sounds=sounds,
            classes=classes,
            masks=masks,
            extent=extent,
        )


def _fill(part: NDArray[np.bool_], size: tuple[int, int], fit: str) -> NDArray[np.uint8]:
    """Return a part (H, W) as 0 … 255 at the size of the encoder's input, fitted as the picture is.

    Args:
        part: Where the part is.
        size: (height, width) of the encoder's input.
        fit: See :func:`compute_fitted_size`.
    """
    grey = part.astype(np.uint8)[..., None].repeat(3, axis=2) * np.uint8(255)
    fitted = resize_picture(grey, compute_fitted_size(grey, size, fit))[..., 0]
    filled = np.zeros(size, np.uint8)
    filled[: fitted.shape[0], : fitted.shape[1]] = fitted
    return filled
