"""What a stream keeps, and when the encoder is skipped: still pictures, several sizes, several streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.errors import BundleError
from teso_deploy.pipeline.cache import judge_likeness, measure_block_change
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.preprocess import choose_nearest_size
from teso_deploy.recipe import Recipe
from tests.unit.test_pipeline import FakeEngine, bundle_of, cues_of, picture, ran, sound

SIZES = ((64, 64), (64, 128))


def still(recipe: Recipe, threshold: float) -> Pipeline:
    return Pipeline(bundle_of(recipe), lambda bundle, name: FakeEngine(name), still_threshold=threshold)


def test_a_still_picture_goes_by_the_one_before(tiny_recipe: Recipe) -> None:
    pipeline, image = still(tiny_recipe, 3.0), np.full((64, 64, 3), 100, np.uint8)
    for shade in (100, 100, 102):
        image[:] = shade
        pipeline.segment(image, sound(0.2), cues_of(1))
    assert ran(pipeline) == (1, 1, 1, 1)
    assert pipeline.encoder_skips == {"same": 1, "still": 1}


def test_slow_changes_add_up(tiny_recipe: Recipe) -> None:
    pipeline = still(tiny_recipe, 3.0)
    for shade in range(100, 112, 2):  # one step is below the threshold, two steps are above it
        pipeline.segment(np.full((64, 64, 3), shade, np.uint8), sound(0.2), cues_of(1))
    assert pipeline.runs["visual_encoder"] == 3


def test_a_small_thing_that_moves_is_no_still_picture() -> None:
    before = np.full((128, 128, 3), 100, np.uint8)
    after = before.copy()
    after[40:56, 70:86] = 255
    assert float(np.abs(after.astype(float) - before).mean()) < 3
    assert measure_block_change(before, after) == pytest.approx(155 * 16 * 16 / 32**2)
    assert judge_likeness(after, before, 3.0) is None and judge_likeness(before, before, 3.0) == "same"


def test_blocks_at_the_edge_count_by_their_own_size() -> None:
    before = np.zeros((40, 33, 3), np.uint8)
    after = before.copy()
    after[32:, 32:] = 8
    assert measure_block_change(before, after) == 8


def test_without_a_threshold_only_the_same_picture_is_spared(tiny_recipe: Recipe) -> None:
    pipeline = still(tiny_recipe, 0.0)
    image = picture(0, (64, 64))
    for change in (0, 1, 0):
        image[0, 0, 0] = change
        pipeline.segment(image, sound(0.2), cues_of(1))
    assert pipeline.runs["visual_encoder"] == 3 and not pipeline.encoder_skips
    with pytest.raises(ValueError, match="grey levels"):
        still(tiny_recipe, -1.0)


def test_streams_keep_their_own(tiny_recipe: Recipe) -> None:
    pipeline = still(tiny_recipe, 0.0)
    left, right = pipeline.open_stream(), pipeline.open_stream()
    for _ in range(3):
        one = left.segment(picture(0), sound(0.2), cues_of(1))
        two = right.segment(picture(1), sound(0.3), cues_of(2))
    assert left.runs == right.runs == dict.fromkeys(("visual_encoder", "audio_encoder", "fusion", "decoder"), 1)
    assert left.encoder_skips == {"same": 2} and pipeline.runs["visual_encoder"] == 2
    alone = still(tiny_recipe, 0.0)
    np.testing.assert_array_equal(one.labels, alone.segment(picture(0), sound(0.2), cues_of(1)).labels)
    np.testing.assert_array_equal(two.labels, alone.segment(picture(1), sound(0.3), cues_of(2)).labels)


def test_a_run_that_failed_is_not_taken_for_done(tiny_recipe: Recipe) -> None:
    class Moody(FakeEngine):
        fails = False

        def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            if Moody.fails and self.name == "audio_encoder":
                raise RuntimeError("out of memory")
            return super().run(feeds)

    pipeline = Pipeline(bundle_of(tiny_recipe), lambda bundle, name: Moody(name))
    pipeline.segment(picture(0), sound(0.2), cues_of(1))
    Moody.fails = True
    with pytest.raises(RuntimeError, match="memory"):
        pipeline.segment(picture(0), sound(0.0), cues_of(1))
    Moody.fails = False
    after = pipeline.segment(picture(0), sound(0.0), cues_of(1))
    alone = still(tiny_recipe, 0.0).segment(picture(0), sound(0.0), cues_of(1))
    np.testing.assert_array_equal(after.labels, alone.labels)


def test_engines_of_another_size_are_loaded_when_a_frame_needs_them(tiny_recipe: Recipe) -> None:
    bundle = bundle_of(tiny_recipe, sizes=SIZES)
    pipeline = Pipeline(bundle, lambda bundle, name: FakeEngine(name), size="auto")
    pipeline.segment(picture(0, (90, 90)), sound(0.2), cues_of(1))
    assert not any("@" in name for name in pipeline.engines)
    wide = pipeline.segment(picture(0, (45, 90)), sound(0.2), cues_of(1))
    assert {name for name in pipeline.engines if "@" in name} == {"visual_encoder@64x128", "decoder@64x128"}
    assert wide.labels.shape == (45, 90) and pipeline.runs["audio_encoder"] == 1
    chosen = Pipeline(bundle, lambda bundle, name: FakeEngine(name), size=(64, 128))
    assert set(chosen.engines) == {"visual_encoder@64x128", "audio_encoder", "fusion", "decoder@64x128"}
    with pytest.raises(BundleError, match="64x128"):
        Pipeline(bundle, lambda bundle, name: FakeEngine(name), size=(32, 32))


def test_the_nearest_size_is_that_of_the_shape_then_not_below_the_picture() -> None:
    sizes = ((384, 384), (224, 224), (512, 512), (288, 512))
    for shape, expected in (
        ((200, 200), (224, 224)),
        ((300, 300), (384, 384)),
        ((900, 900), (512, 512)),
        ((720, 1280), (288, 512)),
    ):
        assert choose_nearest_size(np.zeros((*shape, 3), np.uint8), sizes) == expected
