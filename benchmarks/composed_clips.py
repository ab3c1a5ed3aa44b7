"""Clips of several seconds, composed from a media folder: natural scenes and pasted objects, with true sounds.

The camera moves slowly over one picture. In each second some of the objects sound, others are silent. A clip depends
only on its random generator and on the media.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, read_natural_scene
from teso_deploy.evaluation.scenes import (
    Picture,
    compose_picture,
    cut_audible_excerpt,
    make_coloured_noise,
    measure_rms,
)
from teso_deploy.small_files import parse_json, read_text
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES

#: The picture is this much larger than the frame, so that the camera can move.
_CANVAS = 1.15
#: An object that covers a smaller share of a frame never sounds.
_SEEN_SHARE = 0.01
#: How often a clip is composed again if an object is hidden or outside of the frame.
_TRIES = 20
#: How often an object without a sound is pasted as well.
_SILENT_RATE = 0.4
#: How often a second is blank in a clip whose sounds change, and in one whose sound does not.
_BLANK_RATE, _RARE_BLANK_RATE = 0.12, 0.03
#: How often what sounds changes from one second to the next.
_CHANGE_RATE = 0.6
_NATURAL_FOLDERS = ("coco_scenes", "voc_scenes")
_FADE_SAMPLES = SAMPLE_RATE_HZ // 200


@dataclass(frozen=True, slots=True)
class Clip:
    """A composed clip.

    Attributes:
        plan: What it was to be.
        shown: The words of all objects.
        sounding: The words that sound, for each second.
        frames: (H, W, 3) uint8 for each second.
        owners: (H, W) uint8 for each second: 1 + the number of the object in ``shown`` that each pixel shows, or 0.
        samples: (seconds × 16000,) float32.
    """

    plan: ClipPlan
    shown: tuple[str, ...]
    sounding: tuple[tuple[str, ...], ...]
    frames: tuple[NDArray[np.uint8], ...]
    owners: tuple[NDArray[np.uint8], ...]
    samples: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """What a clip must be.

    Attributes:
        name: Its name.
        subset: The subset of AVSBench that it is like.
        seconds: Its length.
        size: Height and width of its frames.
        words: The words that may sound.
        has_several: Whether several objects sound in turn. Otherwise one does.
    """

    name: str
    subset: str
    seconds: int
    size: tuple[int, int]
    words: tuple[str, ...]
    has_several: bool


def read_natural_scenes(media: Path, library: MediaLibrary) -> list[Picture]:
    """Read the natural scenes of the library's split that show something with a sound, in their own size."""
    scenes = []
    for name in _NATURAL_FOLDERS:
        index = media / name / "index.json"
        if not index.is_file():
            continue
        content: Any = parse_json(
            read_text(index, "the index of natural scenes", error=DataError), index, error=DataError
        )
        for entry in content["images"]:
            if entry["split"] != library.split:
                continue
            photograph, numbers, segments = read_natural_scene(index, entry)
            masks = {word: np.isin(numbers, found) for word, found in sorted(segments.items())}
            words = tuple(word for word, mask in masks.items() if mask.mean() >= _SEEN_SHARE)
            if any(word in library.sounds for word in words):
                coverage = np.stack([masks[word].astype(np.uint8) * 255 for word in words])
                scenes.append(Picture(np.asarray(photograph), words, coverage))
    return scenes


def choose_natural_scenes(scenes: Sequence[Picture], plan: ClipPlan) -> list[Picture]:
    """Return the scenes that show enough words that may sound."""
    return [scene for scene in scenes if len(set(scene.words) & set(plan.words)) >= _count_needed(plan)]


def compose_clip(
    rng: np.random.Generator, library: MediaLibrary, plan: ClipPlan, *, first: str, scene: Picture | None = None
) -> Clip:
    """Compose a clip.

    Args:
        rng: The random generator, on which the clip depends.
        library: The media.
        plan: What the clip must be.
        first: A word that sounds in it, unless a natural scene is given.
        scene: A natural scene. Default: objects are pasted on a photograph.
    """
    for _ in range(_TRIES):
        able, picture = _compose_scene(rng, library, plan, first=first, scene=scene)
        owners = (1 + np.argmax(picture.masks, axis=0)).astype(np.uint8) * (picture.masks.max(axis=0) >= 128)
        boxes = _move_camera(rng, picture.image.shape[:2], plan)
        shown_owners = tuple(owners[box].astype(np.uint8) for box in boxes)
        seen = [word for word in able if _measure_least_share(picture.words.index(word), shown_owners) >= _SEEN_SHARE]
        if len(seen) == len(able) or (scene is not None and len(seen) >= _count_needed(plan)):
            break
    able = seen or able
    sounding = _draw_sounding(rng, able if plan.has_several else able[:1], plan)
    frames = tuple(picture.image[box] for box in boxes)
    return Clip(plan, picture.words, sounding, frames, shown_owners, _compose_track(rng, library, sounding))


def _count_needed(plan: ClipPlan) -> int:
    return 2 if plan.has_several else 1


def _measure_least_share(number: int, owners: Sequence[NDArray[np.uint8]]) -> float:
    """Return the share of the frame that an object covers where it covers least."""
    return min(float((owner == number + 1).mean()) for owner in owners)


def _compose_scene(
    rng: np.random.Generator, library: MediaLibrary, plan: ClipPlan, *, first: str, scene: Picture | None
) -> tuple[list[str], Picture]:
    """Return the words that may sound, and a picture that is larger than the frame."""
    size = (round(plan.size[0] * _CANVAS), round(plan.size[1] * _CANVAS))
    if scene is not None:
        picture = _fit_scene(rng, scene, size)
        able = [picture.words[i] for i in rng.permutation(len(picture.words)) if picture.words[i] in plan.words]
        # Persons are in most scenes: let the other things sound first.
        return sorted(able, key=lambda word: word == "person"), picture
    count = int(rng.integers(2, 4)) if plan.has_several else 1
    able = [first, *_draw_others(rng, plan.words, taken=[first], count=count - 1)]
    has_silent = rng.random() < _SILENT_RATE
    silent = _draw_others(rng, sorted(library.pictures), taken=able, count=1) if has_silent else []
    shown = [*able, *silent]
    shown = [shown[i] for i in rng.permutation(len(shown))]
    return able, compose_picture(rng, library, shown, size=size, whole_rate=0.5, degrade=False, scale=(0.35, 0.75))


def _draw_others(rng: np.random.Generator, words: Sequence[str], *, taken: Collection[str], count: int) -> list[str]:
    others = [word for word in words if word not in taken]
    return [others[i] for i in rng.permutation(len(others))[:count]]


def _fit_scene(rng: np.random.Generator, scene: Picture, size: tuple[int, int]) -> Picture:
    """Resize a natural scene to ``size``, as AVSBench did with its videos, and sometimes mirror it."""
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    height, width = size
    image = Image.fromarray(scene.image).resize((width, height), Image.Resampling.BILINEAR)
    masks = [Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST) for mask in scene.masks]
    return Picture(
        np.asarray(image)[:, flip], scene.words, np.stack([np.asarray(mask, np.uint8)[:, flip] for mask in masks])
    )


def _draw_sounding(rng: np.random.Generator, able: Sequence[str], plan: ClipPlan) -> tuple[tuple[str, ...], ...]:
    """Draw the words that sound in each second. Each word sounds at least once, and not every second is blank."""
    blank_rate = _BLANK_RATE if plan.has_several else _RARE_BLANK_RATE
    while True:
        found: list[tuple[str, ...]] = []
        now: tuple[str, ...] = (able[0],)
        for _ in range(plan.seconds):
            if len(able) > 1 and rng.random() < _CHANGE_RATE:
                now = tuple(word for word in able if rng.random() < 0.5) or (able[int(rng.integers(len(able)))],)
            found.append(() if rng.random() < blank_rate else now)
        if {word for words in found for word in words} == set(able):
            return tuple(found)


def _move_camera(rng: np.random.Generator, canvas: tuple[int, ...], plan: ClipPlan) -> list[tuple[slice, slice]]:
    """Return the rows and columns of the picture that the frame of each second shows."""
    (height, width), slack = plan.size, np.array(canvas) - plan.size
    start, end = rng.uniform(0, 1, 2) * slack, rng.uniform(0, 1, 2) * slack
    shares = np.linspace(0, 1, plan.seconds)[:, None]
    corners = np.round(start + shares * (end - start)).astype(int)
    return [(slice(top, top + height), slice(left, left + width)) for top, left in corners]


def _compose_track(
    rng: np.random.Generator, library: MediaLibrary, sounding: Sequence[Sequence[str]]
) -> NDArray[np.float32]:
    """Mix the sound: a word that sounds in a second is audible for at least 0.3 s of its first 0.975 s."""
    level = 10 ** (rng.uniform(-28, -14) / 20)
    noise_level = level * 10 ** (-rng.uniform(20, 35) / 20) if rng.random() < 0.5 else 0.0
    exponent = float(rng.choice([0.0, 1.0, 2.0]))
    mix = np.zeros(len(sounding) * SAMPLE_RATE_HZ, np.float32)
    fade = np.ones(WINDOW_SAMPLES, np.float32)
    fade[:_FADE_SAMPLES] = np.linspace(0, 1, _FADE_SAMPLES)
    fade[-_FADE_SAMPLES:] = fade[:_FADE_SAMPLES][::-1]
    for word in sorted({word for words in sounding for word in words}):
        recording = library.sounds[word][rng.integers(len(library.sounds[word]))]
        loudness = level * 10 ** (rng.uniform(-4, 4) / 20)
        for second, words in enumerate(sounding):
            if word in words:
                part = cut_audible_excerpt(rng, recording)
                start = second * SAMPLE_RATE_HZ
                mix[start : start + WINDOW_SAMPLES] += part * fade * np.float32(loudness / (measure_rms(part) + 1e-6))
    if noise_level:
        count = -(-len(mix) // WINDOW_SAMPLES)
        noise = np.concatenate([make_coloured_noise(rng, exponent) for _ in range(count)])[: len(mix)]
        mix += noise * np.float32(noise_level)
    peak = float(np.abs(mix).max())
    return mix / np.float32(peak) if peak > 1 else mix
