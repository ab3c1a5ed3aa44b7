"""The pipeline keeps what did not change. Its masks equal those of a program that runs from end to end."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.labels import labels_of
from teso_deploy.pipeline.operators import HostOperators
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.preprocess import compute_fitted_size
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.program import CUE_GATE, MASKS, group_inputs, merge_tensors, run_program
from teso_deploy.resources import find_shipped_path


def test_the_shipped_masks_are_those_of_the_whole_program_bit_for_bit() -> None:
    clip = find_shipped_path("export/demo/clip.mp4")
    words = json.loads(Path(clip.with_suffix(".json")).read_text(encoding="utf-8"))["visible"]
    pipeline = Pipeline.load(threads=1)
    results = []
    manifest, size = pipeline.bundle.manifest, pipeline.bundle.sizes[0]
    threshold = manifest.postprocessing.threshold
    engines, operators = {name: pipeline.engine(name) for name in pipeline.program.names}, HostOperators(manifest)
    with VideoSource(clip) as source:
        moments = list(islice(source, 0, 12, 3))
    # Each picture with its own sound, then with that of another picture: kept and new tensors are both used.
    for i, moment in enumerate(moments):
        image = moment.frame.image
        fitted = compute_fitted_size(image, size, manifest.preprocessing.fit)
        shares = fitted[0] / size[0], fitted[1] / size[1]
        for sound, offered in ((moment.sound, words), (moments[i - 1].sound, words[:1])):
            found, cues = pipeline.segment(moment.frame, sound, offered), pipeline.cues_of(offered)
            inputs: dict[str, NDArray[Any]] = {
                "image": np.asarray(operators.image(image, fitted, size)),
                "waveform": sound.samples[None],
            }
            inputs |= {"cues": cues.embeddings[None], "cue_valid": cues.valid[None]}
            tensors = merge_tensors(run_program(pipeline.program, engines, group_inputs(inputs)))
            scores = tensors[MASKS][0]
            results.append((found, scores))
            np.testing.assert_array_equal(found.class_scores, scores.reshape(len(scores), -1).max(axis=1))
            np.testing.assert_array_equal(found.cue_gate, tensors[CUE_GATE][0])
            np.testing.assert_array_equal(
                found.labels, labels_of(scores, image.shape[:2], threshold=threshold, shares=shares)
            )
    assert pipeline.runs["visual_encoder"] == len(moments) < pipeline.runs["decoder"]
    for found, scores in results:  # each has its own scores, although the runs after it used the same buffer
        np.testing.assert_array_equal(found.scores, scores)
        best = found.probabilities.max(axis=0)
        expected = np.where(best >= threshold, 1 + found.probabilities.argmax(axis=0), 0)
        np.testing.assert_array_equal(found.labels, expected)
    assert any(found.labels.any() for found, _ in results)
