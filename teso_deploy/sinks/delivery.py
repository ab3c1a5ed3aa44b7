"""One result of a live run, on its way to whoever wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from teso_deploy.types import Frame, Segmentation

#: Why a segmentation was made: a new picture, or for the last picture a new window of sound or new cues.
Cause = Literal["frame", "sound", "cues"]
#: Stages of a frame in order; each stamp is the monotonic time at which it was done.
STAGES = ("captured", "decoded", "queued", "encoded", "heard", "fused", "masked", "delivered")


@dataclass(frozen=True, slots=True)
class Delivery:
    """What sounds in the newest picture of a stream.

    ``stream``: number of the input from 0. ``shown_at_seconds``: stream time that it is of: the picture's, or for a
    new sound the end of its window. ``staleness_seconds``: how far the stream was beyond the picture when it was
    delivered. ``audio_end_seconds``: of the window that was heard; None where the stream has no sound. ``stamps``:
    monotonic seconds by :data:`STAGES`; of another sound or other cues, from the moment that they were taken up.
    """

    stream: int
    frame: Frame
    segmentation: Segmentation
    cause: Cause
    shown_at_seconds: float
    staleness_seconds: float
    audio_end_seconds: float | None
    stamps: Mapping[str, float]
