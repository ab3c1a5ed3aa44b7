"""The audio control runs each stored sound with the cues of the same row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.program import TESO
from teso_deploy.types import WINDOW_SAMPLES
from teso_deploy.verification import probes
from teso_deploy.verification.audio_control import SOUNDS, STORED, control, make_control_inputs
from teso_deploy.verification.parity import LIMITS

Arrays = Mapping[str, NDArray[Any]]


@dataclass
class Small:
    """A graph that is a Python function."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: Callable[..., NDArray[Any]]
    precision: str = "fp32"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {self.outputs[0]: self.function(*(feeds[name] for name in self.inputs))}


def masks_of(queries: NDArray[Any], features: NDArray[Any]) -> NDArray[Any]:
    """Label as many columns of 8 as the query says."""
    columns = np.arange(8)[None, None, None] < queries[:, None, None, None]
    return np.broadcast_to(columns + 0 * features[:, :1], (len(queries), 1, 8, 8)).astype(np.float32)


#: A model whose masks depend on the cues: as many columns as the cue says, and none without sound.
MODEL = {
    "visual_encoder": Small(("image",), ("features",), lambda image: image[:, :, :8, :8]),
    "audio_encoder": Small(("waveform",), ("audio",), lambda waveform: np.abs(waveform).max(axis=1)),
    "fusion": Small(
        ("audio", "cues", "cue_valid"),
        ("queries",),
        lambda audio, cues, valid: (audio > 0) * (cues[..., 0] * valid)[:, 0],
    ),
    "decoder": Small(("queries", "features"), ("masks",), masks_of),
}


@pytest.fixture
def reference() -> dict[str, NDArray[Any]]:
    """Return four rows, each with different cues, as in a bundle with random weights."""
    rng = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {
        "image": np.zeros((1, 3, 32, 32), np.float32),
        "waveform": rng.uniform(-0.5, 0.5, (4, WINDOW_SAMPLES)).astype(np.float32),
        "cues": np.array([1, 3, 5, 7], np.float32)[:, None, None],
        "cue_valid": np.ones((4, 1), np.bool_),
    }
    for name in ("visual_encoder", "audio_encoder", "fusion"):
        found |= MODEL[name].run(found)
    return found | MODEL["decoder"].run({**found, "features": np.repeat(found["features"], 4, axis=0)})


def failures(reference: Arrays, given: Arrays) -> list[str]:
    heard = probes.observe(TESO, MODEL, reference, heard=given).heard
    assert heard is not None
    expected = [reference["masks"][STORED[sound]] if sound in STORED else None for sound in SOUNDS]
    limits = LIMITS["fp32"]
    rows = control(
        "f",
        size=(32, 32),
        is_first_size=True,
        heard=heard,
        model=expected,
        threshold=0.5,
        is_trained=False,
        limits=limits,
        least_mask_iou=limits.pytorch.mask_iou,
    )
    return [row.sound for row in rows if row.failure]


def test_a_right_model_passes(reference: Arrays) -> None:
    given = make_control_inputs(reference)
    assert given["cues"][:, 0, 0].tolist() == [1, 5, 3, 1, 1, 1], "own, other, muted, and noise with the own cues"
    assert failures(reference, given) == []


def test_cues_of_another_row_are_found(reference: Arrays) -> None:
    given = make_control_inputs(reference)
    assert failures(reference, {**given, "cues": np.repeat(given["cues"][:1], 6, axis=0)}) == ["other", "muted"]
    assert failures(reference, {**given, "cues": np.roll(given["cues"], 1, axis=0)}) == ["other", "muted"]
