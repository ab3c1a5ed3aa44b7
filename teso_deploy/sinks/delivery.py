"""One result of a run, in the form that every sink takes, for files and for streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from teso_deploy.media.audio import Sound
from teso_deploy.types import Frame, Segmentation

#: Why a segmentation was made: a new picture, or a new audio window or new cues for the last picture.
Cause = Literal["frame", "sound", "cues"]
#: Stages of a stream's frame in order. Each stamp is the monotonic time at which the stage ended.
STAGES = ("captured", "decoded", "queued", "encoded", "heard", "fused", "masked", "delivered")


def _find_no_end() -> float:
    return 0.0


def _describe_nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFacts:
    """The facts about the file or stream that a delivery comes from, once it has been opened.

    Attributes:
        name: Display name, without credentials.
        fps: Expected frames per second. Default: 0, unknown.
        sound: The sound that the model gets, for the video's sound track. Default: None, no sound.
        duration_seconds: Duration of a file. Default: 0, unknown or a stream.
        find_end: Called after the last delivery; returns the time in seconds until which the last picture is shown.
            Default: 0, the picture is shown for as long as any other.
        describe: Called after the last delivery; returns a report's facts about the input and about the model that ran
            on it. Default: none.
    """

    name: str
    fps: float = 0.0
    sound: Sound | None = None
    duration_seconds: float = 0.0
    find_end: Callable[[], float] = _find_no_end
    describe: Callable[[], dict[str, Any]] = _describe_nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The segmentation of a frame of a file, or of the newest frame of a stream.

    Attributes:
        stream: Number of the input, from 0.
        input: Facts about this input; all its deliveries have the same.
        frame: The picture.
        segmentation: The masks of the sounding objects.
        cause: Why it was made. Deliveries of files have "frame".
        shown_at_seconds: When the output video shows it: the time of the picture, or for a new sound the end of its
            window. In paper mode it is the second that the picture stands for.
        staleness_seconds: How far the stream was ahead of the picture at the time of delivery. Files: 0.
        audio_end_seconds: End of the audio window; None if the input has no sound.
        stamps: Stage → monotonic seconds, in order. Those of streams are :data:`STAGES`; for a new sound or new cues
            they begin when the sound or cues were taken. Those of files end before "delivered", because a report counts
            the time of the other sinks.
        variants: Segmentations of the frame with and without its cues and its sound, by the names in
            :data:`teso_deploy.media.heat_map.VARIANTS`. Empty unless a sink wants them.
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
    variants: Mapping[str, Segmentation] = field(default_factory=dict)

    @property
    def at_seconds(self) -> float:
        """The time that the segmentation is valid for.

        It is the time of the picture, or of the sound or cues that came after it.
        """
        return self.segmentation.pts_seconds if self.cause == "frame" else self.shown_at_seconds
