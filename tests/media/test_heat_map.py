"""Colours of probabilities, and how they are drawn on pictures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.media.heat_map import add_scale, color_probabilities, draw_heat_map, make_color_map


def find_lightness(colors: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return L* of CIELAB of sRGB colours (N, 3): another measure than the one that the map was made with."""
    coded = colors / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, 24389 / 27 * luminance)


def test_lightness_rises_evenly_with_the_probability() -> None:
    """Equal steps look equal, and a print in grey keeps the order."""
    lightness = find_lightness(make_color_map())
    steps = np.diff(lightness[::15])
    assert lightness[0] < 10 and lightness[-1] > 90
    assert steps.min() > 0.5 * steps.mean() and steps.max() < 1.6 * steps.mean()


def test_all_colours_differ() -> None:
    assert len(np.unique(make_color_map(), axis=0)) == 256


def test_the_colours_of_the_ends() -> None:
    ends = np.array([[0, 1, np.nan]], np.float32)
    np.testing.assert_array_equal(color_probabilities(ends)[0], make_color_map()[[0, 255, 0]])


def test_high_probabilities_are_lighter_and_the_mask_is_outlined() -> None:
    picture = np.full((40, 60, 3), (90, 60, 30), np.uint8)
    probability = np.zeros((40, 60), np.float32)
    probability[10:30, 20:40] = 0.9
    drawn = draw_heat_map(picture, probability)
    assert drawn.shape == picture.shape and (picture == (90, 60, 30)).all()
    assert drawn[20, 30].sum() > drawn[5, 5].sum() and len(np.unique(drawn.reshape(-1, 3), axis=0)) == 2
    outlined = draw_heat_map(picture, probability, (probability > 0.5).astype(np.uint8))
    is_white = (outlined == 255).all(axis=2)
    assert is_white[10, 30] and is_white[29, 20] and not is_white[20, 30] and not is_white[9, 30]


@pytest.mark.parametrize("size", [(1, 1), (8, 500), (500, 8), (64, 96), (1080, 1920)])
def test_the_scale_is_below_a_picture_of_any_size(size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 77, np.uint8)
    scaled = add_scale(picture, "with sound, cues: " + "dog, " * 40)
    assert scaled.shape[1] == size[1] and scaled.shape[0] > size[0]
    np.testing.assert_array_equal(scaled[: size[0]], picture)
    if size[1] > 90:
        strip = scaled[size[0] :]
        row = strip[len(strip) // 2]
        is_in_map = (row[:, None] == make_color_map()).all(axis=2)
        assert is_in_map[:, 0].any() and is_in_map[:, 255].any(), "the colours of 0 and 1"
