"""Made-up results of runs, for tests of sinks."""

from __future__ import annotations

import numpy as np

from teso_deploy.sinks.contracts import InputKind, RunFacts
from teso_deploy.sinks.delivery import Cause, Delivery, InputFacts
from teso_deploy.types import Cues, Frame, Segmentation

CLASSES = ("cat", "dog")
CAMERA = "rtsp://camera"
NO_CUES = Cues((), np.zeros((1, 2), np.float32), np.zeros(1, bool), "none")


def describe_run(kind: InputKind = "streams", inputs: tuple[str, ...] = (CAMERA,)) -> RunFacts:
    """Return the facts that a sink is opened with."""
    return RunFacts(kind=kind, classes=CLASSES, inputs=inputs, bundle="tiny")


def make_delivery(
    number: int,
    label: int = 1,
    *,
    at: float | None = None,
    size: tuple[int, int] = (48, 64),
    facts: InputFacts | None = None,
    stream: int = 0,
) -> Delivery:
    """Return the result of a frame of 25 a second, of ``size`` (H, W), with a square of one class.

    ``at``: seconds, for the result of a new sound on that frame.
    """
    pts = number / 25
    labels = np.zeros(size, np.uint8)
    labels[10:30, 20:40] = label
    scores = np.array([0.9, 0.8], np.float32)
    found = Segmentation(labels, scores, np.ones(1, np.float32), NO_CUES, pts, number, pts - 0.9)
    cause: Cause = "frame" if at is None else "sound"
    return Delivery(
        stream=stream,
        input=facts or InputFacts(name=CAMERA, fps=25.0),
        frame=Frame(np.full((*size, 3), 90, np.uint8), pts, number),
        segmentation=found,
        cause=cause,
        shown_at_seconds=pts if at is None else at,
        staleness_seconds=0.0,
        audio_end_seconds=pts,
        stamps={"captured": 1.0, "delivered": 1.25},
    )
