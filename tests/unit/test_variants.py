"""A frame with and without its cues and its sound: the masks of four separate runs, with one run of the encoder."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.variants import VariantRunner
from teso_deploy.pipeline.video_source import Moment, VideoSource
from teso_deploy.resources import find_shipped_path
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """The shipped model: masks of a model that is not trained hardly depend on cues and sound."""
    return Pipeline.load(threads=1)


@pytest.fixture(scope="module")
def moments() -> list[Moment]:
    with VideoSource(find_shipped_path("export/demo/clip.mp4")) as source:
        return list(islice(source, 20, 40, 5))


def test_variants_are_those_of_separate_runs(pipeline: Pipeline, moments: list[Moment]) -> None:
    stream = pipeline.open_stream()
    runner = VariantRunner(stream)
    for frame, sound, _ in moments:
        found, variants = runner.segment(frame, sound, ["horse", "dog"])
        assert list(variants) == ["cues-sound", "cues-muted", "no-cues-sound", "no-cues-muted"]
        assert variants["cues-sound"] is found
        silence = np.zeros(WINDOW_SAMPLES, np.float32)
        for name, (samples, cues) in {
            "cues-sound": (sound.samples, ["horse", "dog"]),
            "cues-muted": (silence, ["horse", "dog"]),
            "no-cues-sound": (sound.samples, None),
            "no-cues-muted": (silence, None),
        }.items():
            alone = pipeline.open_stream().segment(frame, samples, cues)
            np.testing.assert_array_equal(variants[name].scores, alone.scores, err_msg=name)
            np.testing.assert_array_equal(variants[name].labels, alone.labels, err_msg=name)
        assert variants["no-cues-muted"].audio_is_silent and not found.audio_is_silent
        others = [variants[name].probabilities for name in ("cues-muted", "no-cues-sound")]
        assert not any(np.array_equal(found.probabilities, other) for other in others), "the variants differ"
    assert stream.runs["visual_encoder"] == 4 and stream.runs["audio_encoder"] == 8 and stream.runs["decoder"] == 16
    assert not stream.encoder_skips


def test_without_cues_there_are_none_with_cues(pipeline: Pipeline, moments: list[Moment]) -> None:
    found, variants = VariantRunner(pipeline.open_stream()).segment(*moments[0][:2])
    assert list(variants) == ["no-cues-sound", "no-cues-muted"] and variants["no-cues-sound"] is found


def test_without_sound_all_are_muted(pipeline: Pipeline, moments: list[Moment]) -> None:
    frame, muted = moments[0].frame, AudioWindow(np.zeros(WINDOW_SAMPLES, np.float32), is_silent=True)
    runner = VariantRunner(pipeline.open_stream(), has_sound=False)
    assert list(runner.segment(frame, muted, ["horse"])[1]) == ["cues-muted", "no-cues-muted"]
