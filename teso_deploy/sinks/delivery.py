"""One result of a run, as every sink takes it: of a file as of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from teso_deploy.media.audio import Sound
from teso_deploy.types import Frame, Segmentation

#: Why a segmentation was made: a new picture, or for the last picture a new window of sound or new cues.
Cause = Literal["frame", "sound", "cues"]
#: Stages of a stream's frame in order; each stamp is the monotonic time at which the stage was done.
STAGES = ("captured", "decoded", "queued", "encoded", "heard", "fused", "masked", "delivered")


def _find_no_end() -> float:
    return 0.0


def _describe_nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFacts:
    """What is known of the file or stream that a delivery comes from, once it has been opened.

    Attributes:
        name: For people, without credentials.
        fps: Frames per second that are expected. Default: 0, unknown.
        sound: What the model hears, for the video's sound track. Default: None, no sound.
        duration_seconds: Of a file. Default: 0, unknown or a stream.
        find_end: Called after the last delivery: the time in seconds until which the last picture is shown.
            Default: 0, the picture is shown for as long as any other.
        describe: Called after the last delivery: what a report says of the input and of the model that ran on it.
            Default: nothing.
    """

    name: str
    fps: float = 0.0
    sound: Sound | None = None
    duration_seconds: float = 0.0
    find_end: Callable[[], float] = _find_no_end
    describe: Callable[[], dict[str, Any]] = _describe_nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What sounds in a frame of a file, or in the newest frame of a stream.

    Attributes:
        stream: Number of the input, from 0.
        input: What is known of this input. All its deliveries have the same.
        frame: The picture.
        segmentation: What sounds in it.
        cause: Why it was made. Deliveries of files have "frame".
        shown_at_seconds: When the output video shows it: the time of the picture, or for a new sound the end of its
            window. In paper mode the second that it stands for.
        staleness_seconds: How far the stream was beyond the picture when it was delivered. Files: 0.
        audio_end_seconds: End of the window that the model heard; None if the input has no sound.
        stamps: Stage → monotonic seconds, in order. Those of streams are :data:`STAGES`; with a new sound or new cues
            they begin when these were taken up. Those of files end before "delivered": a report counts what the
            other sinks take.
    """

    stream: int
    input: InputFacts
    frame: Frame
    segmentation: Segmentation
    cause: Cause
    shown_at_seconds: float
    staleness_seconds: float
    audio_end_seconds: float | None
    stamps: Mapping[str, float]

    @property
    def at_seconds(self) -> float:
        """The time that the segmentation is true for: of the picture, or of the sound or cues that came after it."""
        return self.segmentation.pts_seconds if self.cause == "frame" else self.shown_at_seconds
