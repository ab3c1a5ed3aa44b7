"""Arrays that are not pictures or sound are refused. The message guesses what they are and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.recipe import Recipe
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Frame
from tests.unit.test_pipeline import FakeEngine, bundle_of, picture, sound


@pytest.fixture
def pipeline(tiny_recipe: Recipe) -> Pipeline:
    return Pipeline(bundle_of(tiny_recipe), lambda bundle, name: FakeEngine(name))


TONE = np.sin(np.arange(WINDOW_SAMPLES) / 10) * 0.5
NAMES: dict[str, Any] = {"np": np}


def right_image() -> Any:
    return picture(0)


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda image: image.transpose(2, 0, 1), "image.transpose(1, 2, 0)"),
        (lambda image: image[None], "image[0]"),
        (lambda image: np.dstack([image, image[:, :, :1]]), "image[:, :, :3]"),
        (lambda image: (image / 255).astype(np.float32), "(image * 255).round().astype(np.uint8)"),
        (lambda image: image / 255, "(image * 255).round().astype(np.uint8)"),
        (lambda image: image.astype(np.float32), "image.round().astype(np.uint8)"),
        (lambda image: image.astype(np.uint16) * 257, "(image // 257).astype(np.uint8)"),
        (lambda image: image.astype(np.int64), "image.astype(np.uint8)"),
    ],
    ids=["channels first", "batch", "alpha", "float32", "float64", "0 to 255", "16 bits", "int64"],
)
def test_what_a_picture_is_told_mends_it(pipeline: Pipeline, make: Callable[[Any], Any], fix: str) -> None:
    given = make(right_image())
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB, got ") as refused:
        pipeline.segment(given, sound(0.2))
    assert str(refused.value).endswith(": " + fix) or str(refused.value).endswith(" " + fix)
    np.testing.assert_array_equal(eval(fix, NAMES, {"image": given}), right_image())


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (picture(0)[:, :, 0], "np.stack([image] * 3, axis=2)"),
        (picture(0)[:, :, :1], "image.repeat(3, axis=2)"),
        (picture(0)[:3, :, 0], "np.stack([image] * 3, axis=2)"),
    ],
    ids=["two dimensions", "one channel", "three rows"],
)
def test_grey_pictures(given: Any, fix: str) -> None:
    with pytest.raises(ValueError) as refused:
        Frame(given, 0.0)
    assert str(refused.value).endswith(fix)
    mended = eval(fix, NAMES, {"image": given})
    assert Frame(mended, 0.0).image.shape == (*given.shape[:2], 3)


def test_other_pictures() -> None:
    with pytest.raises(ValueError, match="rows, columns and the three colours"):
        Frame(np.zeros((5, 5, 2), np.uint8), 0.0)
    with pytest.raises(ValueError, match="no pixels"):
        Frame(np.zeros((0, 4, 3), np.uint8), 0.0)
    with pytest.raises(TypeError, match=r"got Image: give np\.asarray\(image\)"):
        Frame(Image.new("RGB", (4, 4)), 0.0)  # type: ignore[arg-type]


def test_a_view_of_a_bgr_picture_is_a_picture(pipeline: Pipeline) -> None:
    bgr = np.ascontiguousarray(picture(0)[:, :, ::-1])
    found = pipeline.segment(bgr[:, :, ::-1], sound(0.2))
    np.testing.assert_array_equal(found.labels, pipeline.open_stream().segment(picture(0), sound(0.2)).labels)


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda tone: (tone * 32768).astype(np.int16), "samples.astype(np.float32) / 32768"),
        (lambda tone: (tone * 2147483648).astype(np.int32), "samples.astype(np.float32) / 2147483648"),
        (lambda tone: (tone * 128 + 128).astype(np.uint8), "(samples.astype(np.float32) - 128) / 128"),
        (lambda tone: tone, "samples.astype(np.float32)"),
        (lambda tone: tone.astype(np.float32)[:, None], "samples.reshape(-1)"),
        (lambda tone: tone.astype(np.float32)[None], "samples.reshape(-1)"),
        (lambda tone: np.stack([tone, tone], axis=1).astype(np.float32), "samples.mean(axis=1)"),
        (lambda tone: np.stack([tone, tone]).astype(np.float32), "samples.mean(axis=0)"),
    ],
    ids=["int16", "int32", "uint8", "float64", "column", "row", "stereo", "planar stereo"],
)
def test_what_sound_is_told_mends_it(pipeline: Pipeline, make: Callable[[Any], Any], fix: str) -> None:
    given = make(TONE)
    with pytest.raises(ValueError, match=r"\(N,\) float32 in \[-1, 1\], got ") as refused:
        pipeline.segment(picture(0), given)
    assert str(refused.value).endswith(": " + fix) or str(refused.value).endswith(" " + fix)
    mended = eval(fix, NAMES, {"samples": given})
    assert mended.shape == TONE.shape and np.abs(mended - TONE).max() < 0.01
    assert pipeline.segment(picture(0), mended).labels.shape == (72, 96)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ((TONE * 32767).round(), "whole numbers.* integers of 16 bits by 32768"),
        ((TONE * 2147483647).round(), "whole numbers.* integers of 32 bits by 2147483648"),
        ((TONE * 127).round(), "whole numbers.* integers of 8 bits by 128"),
        (TONE * 32767.3, "divide by 32768 what was int16"),
        (TONE * 3.1, "reach 1.55, sound is in"),
        (
            np.where(np.arange(WINDOW_SAMPLES) == 7, np.nan, TONE),
            "1 of 15600 samples are NaN or .*nan_to_num",
        ),
        (np.where(np.arange(WINDOW_SAMPLES) < 5, -np.inf, TONE), "5 of 15600 samples are NaN or infinite"),
    ],
    ids=["int16", "int32", "int8", "float16 scale", "loud", "NaN", "infinity"],
)
def test_samples_that_are_not_sound(pipeline: Pipeline, samples: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pipeline.segment(picture(0), samples.astype(np.float32))
    with pytest.raises(ValueError, match=reason):
        AudioWindow(samples.astype(np.float32))


def test_loud_sound_is_sound(pipeline: Pipeline) -> None:
    for level in (1.0, 1.5, -1.5):
        assert pipeline.segment(picture(0), sound(level)).labels.shape == (72, 96)
    assert AudioWindow(np.zeros(0, np.float32)).samples.size == 0
    with pytest.raises(TypeError, match="got list"):
        AudioWindow([0.0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (42_998, r"0\.975 s at 44\.1 kHz: resample it to 16 kHz"),
        (46_800, r"0\.975 s at 48 kHz: resample it to 16 kHz"),
        (7_800, r"0\.975 s at 8 kHz: resample it to 16 kHz"),
        (16_000, r"1 s at 16 kHz: give 0\.975 s"),
        (44_100, r"1 s at 44\.1 kHz: give 0\.975 s at 16 kHz"),
        (20_000, r"samples\[start : start \+ 15600\]"),
        (15_000, r"np\.pad\(samples, \(0, 600\)\)"),
    ],
)
def test_windows_of_another_length(pipeline: Pipeline, count: int, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"15600 samples .*got {count}: .*{reason}"):
        pipeline.segment(picture(0), np.zeros(count, np.float32))
