"""What is known of a live source: its properties, its state and its counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["opening", "running", "reconnecting", "ended", "failed"]


@dataclass(frozen=True, slots=True)
class LiveInfo:
    """Properties of a source at its first frame. ``delay_frames``: frames that the decoder holds back."""

    kind: str
    width: int
    height: int
    fps: float
    has_audio: bool
    delay_frames: int


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """The state of a source, and its counts since the beginning.

    Attributes:
        drops: Frames by cause ("superseded" by a newer one, "corrupt"), and packets ("overflow").
        gap_seconds: Sound that was not recorded.
        av_offset_seconds: How far the sound has arrived beyond the picture.
        delay_frames: Frames that the video decoder holds back.
        audio_error: Why a separate sound source is no longer read.
        audio_note: What is wrong with the sound, in words.
        invalid_samples: Samples that were NaN or infinite.
    """

    state: State
    frames_decoded: int
    corrupt_packets: int
    corrupt_frames: int
    drops: dict[str, int]
    discontinuities: int
    format_changes: int
    reconnects: int
    gap_seconds: float
    audio_seconds: float
    has_audio: bool
    av_offset_seconds: float | None
    delay_frames: int
    audio_error: str | None
    error: str | None
    audio_note: str | None = None
    invalid_samples: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)
