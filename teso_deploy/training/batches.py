"""Batches of composed scenes: one picture with several sounds.

The encoder depends only on the picture, so each picture is encoded once and decoded with ``sounds_per_scene`` different
sounds: one object, another, some of them, and nothing visible (silence, noise, something off screen). This contrast on
equal pixels teaches the mask to follow the sound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary
from teso_deploy.evaluation.scenes import Picture, compose_picture, compose_sound
from teso_deploy.recipe import EncoderPhase, Recipe, TrainPhase, TrainRecipe
from teso_deploy.types import WINDOW_SAMPLES

MAX_OBJECTS = 4
STRIDE = 4


#: A word is replaced by one of this many nearest names, with probabilities proportional to exp(cosine / temperature).
_STAND_INS, _STAND_IN_TEMPERATURE = 5, 0.06


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """B pictures and N audio windows, from which the encoders learn separately.

    Attributes:
        image: (B, 3, H, W), normalised.
        photograph: (B, 2H, 2W, 3) uint8, the same pictures for a teacher.
        dense_tags: (B, H/4, W/4) int64, 0 for none.
        waveform: (N, 15600).
        audio_tags: (N, A) float.
        picture_features: The teacher's features of the pictures, each (B, C, h, w).
        sound_features: The teacher's features of the windows, each (N, C, 1, 1).
    """

    image: Tensor
    photograph: Tensor
    dense_tags: Tensor
    waveform: Tensor
    audio_tags: Tensor
    picture_features: tuple[Tensor, ...] = ()
    sound_features: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> Self:
        """Return the same lesson on another device."""

        def move(value: Any) -> Any:
            return tuple(map(move, value)) if isinstance(value, tuple) else value.to(device, non_blocking=True)

        return type(self)(**{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Lesson):
    """B pictures with K sounds each: N = B·K audio windows. Those of one picture are adjacent.

    Attributes:
        cues: (N, N_T, d_T).
        cue_valid: (N, N_T) bool.
        cue_sounds: (N, N_T) float, -1 for slots without an offered cue.
        classes: (N, 4) int64, -1 for unused places.
        masks: (N, 4, H/s, W/s), coverage 0 … 1. The stride s is that of :func:`get_mask_stride`.
        extent: (N, 2), the share of the width and of the height that the picture fills. The rest is padding.
    """

    cues: Tensor
    cue_valid: Tensor
    cue_sounds: Tensor
    classes: Tensor
    masks: Tensor
    extent: Tensor


def get_mask_stride(train: TrainRecipe) -> int:
    """Return the stride of the truth: 1, or that of the predicted masks if the loss compares their cells."""
    return STRIDE if train.loss_sampling == "cells" else 1


def compute_coverage(mask: NDArray[np.uint8], stride: int = STRIDE) -> NDArray[np.float32]:
    """Return the share of each cell that a mask covers: (H, W) 0 … 255 → (H/stride, W/stride) 0 … 1."""
    height, width = mask.shape
    cells = mask.reshape(height // stride, stride, width // stride, stride)
    return cells.mean(axis=(1, 3), dtype=np.float32) / np.float32(255)


class SceneBatches:
    """Makes the batch of each step. It depends only on the seed and on the step's number."""

    def __init__(self, recipe: Recipe, library: MediaLibrary, embeddings: Mapping[str, NDArray[np.float32]]) -> None:
        """Raises :class:`DataError` if the library has no picture or no sound of a class."""
        assert recipe.train is not None
        self.recipe, self.train, self.library, self.embeddings = recipe, recipe.train, library, embeddings
        both = library.pictures.keys() & library.sounds.keys()
        if recipe.head.kind == "binary":
            self.class_of = dict.fromkeys(sorted(both), 0)
        else:
            self.class_of = {word: i for i, word in enumerate(recipe.head.classes)}
        if lacking := sorted(self.class_of.keys() - both):
            raise DataError(
                f"the recipe's class {lacking[0]!r} has no {library.split} pictures, or no sounds: add some, or take "
                "it out of the recipe's [head]"
            )
        self.audible = list(self.class_of)
        self.distractors = [word for word in library.pictures if word not in self.class_of]
        self.audio_words = sorted(library.sounds)
        self.audio_tag_of = {word: i for i, word in enumerate(self.audio_words)}
        self.dense_tag_of = {word: i + 1 for i, word in enumerate(recipe.tagger.words)}
        self.extra_cues = sorted({*self.audio_words, *library.pictures} & set(embeddings))
        self.stand_ins = {word: self._near(word) for word in library.pictures if word in embeddings}

    def _near(self, word: str) -> tuple[list[str], NDArray[np.float64]]:
        """Return the words that may be shown in place of a word, and their probabilities."""
        others = [other for other in self.library.pictures if other in self.embeddings and other != word]
        likeness = np.array([float(self.embeddings[other] @ self.embeddings[word]) for other in others])
        nearest = np.argsort(-likeness)[:_STAND_INS]
        share = np.exp(likeness[nearest] / _STAND_IN_TEMPERATURE)
        return [others[i] for i in nearest], share / share.sum()

    def _choose_shown(self, rng: np.random.Generator, words: Sequence[str]) -> list[str]:
        """Choose the word whose picture is shown for each word: the word itself, or sometimes a similar one.

        With only one or two pictures of a class, the model would memorise them, and not recognise other objects of the
        class. If a llama is sometimes shown as "camel" while no camel is in the scene, the model learns to choose the
        object that is nearest to the name.
        """
        shown = list(words)
        for place, word in enumerate(words):
            likely = self.train.stand_in_rate / len(self.library.pictures[word]) ** 0.5
            if word in self.stand_ins and rng.random() < likely:
                near, share = self.stand_ins[word]
                other = str(rng.choice(near, p=share)) if near else word
                if other not in words and other not in shown:
                    shown[place] = other
        return shown

    def _objects(self, rng: np.random.Generator) -> list[str]:
        sounding = int(rng.choice([1, 2, 3], p=[0.4, 0.45, 0.15]))
        silent = int(rng.choice([0, 1], p=[0.7, 0.3])) if self.distractors else 0
        words = list(rng.choice(self.audible, min(sounding, len(self.audible)), replace=False))
        if rng.random() < 0.15:  # two of a kind
            words.append(words[0])
        if silent:
            words += list(rng.choice(self.distractors, silent))
        rng.shuffle(words)
        return [str(word) for word in words]

    def _sounds(self, rng: np.random.Generator, picture: Picture) -> list[tuple[list[str], NDArray[np.float32]]]:
        """Return K pairs of the sounding words and their waveform."""
        audible = [word for word in picture.words if word in self.class_of]
        plans: list[list[str]] = [[word] for word in rng.permutation(audible)]
        if len(audible) > 1:
            count = int(rng.integers(2, len(audible) + 1))
            plans.append([str(word) for word in rng.choice(audible, count, replace=False)])
        rng.shuffle(plans)
        sounding = self.train.sounds_per_scene - self.train.blank_sounds_per_scene
        plans = plans[:sounding]
        while len(plans) < sounding:
            plans.append([str(rng.choice(audible))])
        off_screen = [word for word in self.audio_words if word not in picture.words]
        made = []
        for plan in plans:
            words = [str(word) for word in plan]
            snr = float(rng.uniform(0, 25)) if rng.random() < 0.5 else None
            if rng.random() < 0.08:
                words.append(str(rng.choice(off_screen)))
            made.append((words, compose_sound(rng, self.library, words, noise_snr_db=snr)))
        for kind in rng.choice(["mute", "noise", "off screen"], self.train.blank_sounds_per_scene, p=[0.3, 0.25, 0.45]):
            if kind == "off screen":
                words = [str(rng.choice(off_screen))]
                made.append(
                    (words, compose_sound(rng, self.library, words, noise_snr_db=20.0 if rng.random() < 0.3 else None))
                )
            else:
                loudness = float(rng.uniform(-10, 20)) if kind == "noise" else None
                made.append(([], compose_sound(rng, self.library, [], noise_snr_db=loudness)))
        return made

    def _cues(self, rng: np.random.Generator, picture: Picture) -> list[str]:
        """Choose names as a captioner and a reasoner do: some missing, some invented, sometimes none."""
        if rng.random() < self.train.no_cue_rate:
            return []
        names = [word for word in dict.fromkeys(picture.words) if rng.random() >= self.train.missed_cue_rate]
        while rng.random() < self.train.extra_cue_rate:
            names.append(str(rng.choice(self.extra_cues)))
        names = list(dict.fromkeys(names))
        rng.shuffle(names)
        return names[: self.recipe.text.max_cues]

    def _normalise(self, images: NDArray[np.float32]) -> Tensor:
        """(B, H, W, 3) 0 … 255 → (B, 3, H, W)."""
        mean, std = (np.array(value, np.float32) for value in (self.recipe.image.mean, self.recipe.image.std))
        return torch.from_numpy(np.ascontiguousarray(((images - mean) / std).transpose(0, 3, 1, 2)))

    def _dense_tags(self, cover: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        """Map the coverage (h, w) of each visible word to the tagger's word number of each cell, 0 for none."""
        tags = np.zeros(next(iter(cover.values())).shape, np.int64)
        for word, cells in cover.items():
            tags[cells > 0.5] = self.dense_tag_of.get(word, 0)
        return tags

    def make_lesson(self, step: int, phase: EncoderPhase) -> Lesson:
        """Make the pictures and audio windows of a step of the encoders' phase.

        Words are drawn by the square root of their number of pictures or sounds. So rare words appear, and a word with
        a single picture does not dominate. Objects may fill the frame or exceed it: close up they look as in a frame of
        twice the size.
        """
        rng = np.random.default_rng((self.train.seed, step))
        words = list(self.library.pictures)
        share, heard_share = (
            np.array([len(found[word]) for word in chosen], np.float64) ** 0.5
            for found, chosen in ((self.library.pictures, words), (self.library.sounds, self.audio_words))
        )
        double = (2 * phase.size[0], 2 * phase.size[1])
        photographs, dense_tags = [], []
        for _ in range(phase.pictures_per_step):
            count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
            chosen = rng.choice(words, min(count, len(words)), replace=False, p=share / share.sum())
            picture = self._compose(rng, [str(word) for word in chosen], size=double, scale=(0.3, 1.3))
            photographs.append(picture.image)
            dense_tags.append(
                self._dense_tags(
                    {word: compute_coverage(picture.mask_of([word]), 2 * STRIDE) for word in picture.words}
                )
            )
        waveform = np.zeros((phase.windows_per_step, WINDOW_SAMPLES), np.float32)
        audio_tags = np.zeros((phase.windows_per_step, len(self.audio_words)), np.float32)
        for row in range(phase.windows_per_step):
            count = int(rng.choice([0, 1, 2, 3], p=[0.1, 0.5, 0.3, 0.1]))
            heard = rng.choice(
                self.audio_words, min(count, len(self.audio_words)), replace=False, p=heard_share / heard_share.sum()
            )
            noise = float(rng.uniform(0, 25)) if rng.random() < 0.5 else None
            waveform[row] = compose_sound(rng, self.library, [str(word) for word in heard], noise_snr_db=noise)
            for word in heard:
                audio_tags[row, self.audio_tag_of[str(word)]] = 1
        return Lesson(
            **self._make_pictures(photographs, dense_tags),
            waveform=torch.from_numpy(waveform),
            audio_tags=torch.from_numpy(audio_tags),
        )

    def _compose(
        self, rng: np.random.Generator, words: Sequence[str], *, size: tuple[int, int], scale: tuple[float, float]
    ) -> Picture:
        return compose_picture(
            rng, self.library, words, size=size, whole_rate=self.train.whole_photograph_rate, scale=scale
        )

    def _make_pictures(
        self, photographs: Sequence[NDArray[np.uint8]], dense_tags: Sequence[NDArray[np.int64]]
    ) -> dict[str, Any]:
        """Make the picture part of a :class:`Lesson`, from pictures of twice the size."""
        photograph = np.stack(photographs)
        return {
            "image": F.avg_pool2d(self._normalise(photograph.astype(np.float32)), 2),
            "photograph": torch.from_numpy(photograph),
            "dense_tags": torch.from_numpy(np.stack(dense_tags)),
        }

    def make(self, step: int, phase: TrainPhase) -> Batch:
        """Make the batch of a step of a scene phase."""
        recipe, sounds, size = self.recipe, self.train.sounds_per_scene, phase.size
        scenes = self.train.scenes_per_step
        rows = scenes * sounds
        stride = get_mask_stride(self.train)
        height, width = size[0] // stride, size[1] // stride
        waveform = np.zeros((rows, WINDOW_SAMPLES), np.float32)
        cues = np.zeros((rows, recipe.text.max_cues, recipe.text.dim), np.float32)
        valid = np.zeros((rows, recipe.text.max_cues), bool)
        cue_sounds = np.full((rows, recipe.text.max_cues), -1, np.float32)
        classes = np.full((rows, MAX_OBJECTS), -1, np.int64)
        masks = np.zeros((rows, MAX_OBJECTS, height, width), np.float32)
        audio_tags = np.zeros((rows, len(self.audio_words)), np.float32)
        photographs, dense_tags = [], []
        for b in range(scenes):
            rng = np.random.default_rng((self.train.seed, step, b))
            words = self._objects(rng)
            picture = self._compose(
                rng, self._choose_shown(rng, words), size=(2 * size[0], 2 * size[1]), scale=phase.scale
            )
            photographs.append(picture.image)
            dense_tags.append(
                self._dense_tags(
                    {word: compute_coverage(picture.mask_of([word]), 2 * STRIDE) for word in picture.words}
                )
            )
            picture = replace(picture, words=tuple(words))
            cover = {word: compute_coverage(picture.mask_of([word]), 2 * stride) for word in picture.words}
            # What covers less than one cell of the predicted masks is not visible.
            visible = {word for word in picture.words if cover[word].sum() * stride**2 >= STRIDE**2}
            for k, (heard, samples) in enumerate(self._sounds(rng, picture)):
                row = b * sounds + k
                waveform[row] = samples
                seen = [word for word in dict.fromkeys(heard) if word in visible]
                for t, word in enumerate(seen[:MAX_OBJECTS]):
                    classes[row, t] = self.class_of[word]
                    masks[row, t] = cover[word]
                for word in heard:
                    audio_tags[row, self.audio_tag_of[word]] = 1
                names = self._cues(rng, picture)
                for slot, name in enumerate(names):
                    cues[row, slot] = self.embeddings[name]
                    valid[row, slot] = True
                    cue_sounds[row, slot] = name in heard
                if not names:
                    cue_sounds[row, 0] = bool(heard)  # the fallback cue: "something that sounds"
        arrays = {
            "waveform": waveform, "audio_tags": audio_tags, "cues": cues, "cue_valid": valid, "cue_sounds": cue_sounds,
            "classes": classes, "masks": masks,
            "extent": np.ones((rows, 2), np.float32),
        }  # fmt: skip
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(**self._make_pictures(photographs, dense_tags), **tensors)
