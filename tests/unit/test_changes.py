"""Detection of new scenes and of new kinds of sound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.cues.changes import KNOWN_SOUNDS, SCENE_PICTURES, SOUND_WINDOWS, SceneChange, SoundChange

Image = NDArray[np.uint8]
WINDOW = 15_600


def scene(seed: int, size: tuple[int, int] = (90, 160)) -> Image:
    """Make a landscape of soft blobs and colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / size[0]
    picture = np.zeros((*size, 3))
    for _ in range(8):
        place, width = rng.uniform(0, 1.6, 2), rng.uniform(0.1, 0.5)
        blob = np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / width**2)
        picture += blob[..., None] * rng.uniform(-200, 200, 3)
    return (128 + picture).clip(0, 255).astype(np.uint8)


def changes(pictures: Sequence[Image]) -> list[int]:
    """Return the pictures at which a new scene is detected."""
    detector = SceneChange()
    return [k for k, picture in enumerate(pictures) if detector.is_changed(picture)]


def test_a_cut_is_known_once_it_lasts() -> None:
    pictures = [scene(0)] * 10 + [scene(1)] * 10 + [scene(2)] * 10
    assert changes(pictures) == [9 + SCENE_PICTURES, 19 + SCENE_PICTURES]


def test_a_flash_is_none() -> None:
    white = np.full((90, 160, 3), 255, np.uint8)
    flash = [scene(0)] * 10 + [white] * (SCENE_PICTURES - 1) + [scene(0)] * 10
    assert changes(flash) == []


@pytest.mark.parametrize("seed", range(5))
def test_noise_light_and_a_slow_pan_are_none(seed: int) -> None:
    rng, wide = np.random.default_rng(seed), scene(seed, (90, 200))
    noisy = [
        (scene(seed).astype(int) + rng.normal(0, 12, (90, 160, 3))).clip(0, 255).astype(np.uint8) for _ in range(20)
    ]
    assert changes(noisy) == []
    lighter = [(scene(seed) * gain).clip(0, 255).astype(np.uint8) for gain in np.linspace(1, 1.4, 20)]
    assert changes(lighter) == []
    assert changes([wide[:, k : k + 160] for k in range(16)]) == []


def test_a_size_of_its_own_is_no_change() -> None:
    assert changes([scene(0)] * 5 + [np.ascontiguousarray(scene(0)[::2, ::2])] * 10) == []


def sounds(kinds: Sequence[NDArray[np.float32] | None], noise: float = 0.1) -> list[int]:
    """Return the windows at which a new kind of sound is detected. None: silence."""
    detector, rng, found = SoundChange(), np.random.default_rng(0), []
    for k, kind in enumerate(kinds):
        samples = np.full(WINDOW, 0.0 if kind is None else 0.1, np.float32)
        features = rng.standard_normal(64).astype(np.float32) if kind is None else kind
        features = features + noise * rng.standard_normal(64).astype(np.float32)
        if detector.is_changed(features, samples):
            found.append(k)
    return found


def kind(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(100 + number).standard_normal(64).astype(np.float32)


def test_a_kind_of_sound_is_new_once() -> None:
    dog, car = kind(0), kind(1)
    assert sounds([dog] * 6 + [car] * 6 + [dog] * 6 + [car] * 6) == [SOUND_WINDOWS - 1, 5 + SOUND_WINDOWS]


def test_a_click_and_silence_are_none() -> None:
    dog, click = kind(0), kind(1)
    assert sounds([dog] * 6 + [click] * (SOUND_WINDOWS - 1) + [dog] * 6) == [SOUND_WINDOWS - 1]
    assert sounds([None] * 20) == []
    assert sounds([None] * 5 + [dog] * 6 + [None] * 5 + [dog] * 6) == [4 + SOUND_WINDOWS]


def test_what_was_long_ago_is_new_again() -> None:
    many = [one for number in range(KNOWN_SOUNDS + 1) for one in [kind(number)] * 4]
    assert len(sounds([*many, *[kind(0)] * 4])) == KNOWN_SOUNDS + 2


@pytest.mark.parametrize("features", [np.zeros(64, np.float32), np.full(64, np.nan, np.float32)])
def test_features_that_say_nothing(features: NDArray[np.float32]) -> None:
    detector = SoundChange()
    assert not any(detector.is_changed(features, np.full(WINDOW, 0.1, np.float32)) for _ in range(10))
