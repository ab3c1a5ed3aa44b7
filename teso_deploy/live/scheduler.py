"""What a live run does next. No threads and no clock of its own: what it decides follows from what it is told.

Of every stream the newest frame is encoded and, as soon as that is done, decoded with the newest sound. While the next
one is on its way, each hop of the sound, and new cues, decode the last one again.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from teso_deploy.sinks.delivery import Cause

#: Sound that is late by more than this is not waited for: what is heard is then what there is, zeros included.
LATE_SOUND_SECONDS = 1.0
#: This many pictures wait so long for the first sound of a source. The others do not wait until there is some.
MOST_VAIN_WAITS = 3
#: A hop that is this near counts as reached.
_NEAR_SECONDS = 1e-6


class Picture(Protocol):
    """A decoded frame."""

    @property
    def pts_seconds(self) -> float:
        """On its stream's clock."""

    @property
    def segment(self) -> int:
        """Counts the stretches between leaps of the stream's stamps."""


class Sound(Protocol):
    """How far a stream's sound has come."""

    @property
    def end_seconds(self) -> float | None:
        """Behind the newest sample; None before there is any."""


P = TypeVar("P", bound=Picture)
P_co = TypeVar("P_co", bound=Picture, covariant=True)
#: What the encoder found in a picture.
E = TypeVar("E")


class Feed(Protocol[P_co]):
    """A source of frames and sound, as :class:`LiveReader` is one."""

    @property
    def ring(self) -> Sound:
        """Its sound."""

    @property
    def ended(self) -> bool:
        """Whether no frame will come, and none waits."""

    def take(self, timeout_seconds: float) -> P_co | None:
        """The next frame that is to be looked at; None where there is none in time."""

    def now_seconds(self) -> float:
        """Which moment of the stream is being filmed now."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """``staleness_budget_seconds``: a frame that is older when its turn comes is dropped. ``hop_seconds``: by which the
    window of sound moves. ``lossless``: nothing is dropped, every frame hears the window before it. ``fps``: frames a
    second of stream time to look at, at most. ``mute``: silence in place of the sound.
    """

    staleness_budget_seconds: float = 0.5
    hop_seconds: float = 0.24
    lossless: bool = False
    fps: float | None = None
    mute: bool = False

    def __post_init__(self) -> None:
        if self.staleness_budget_seconds <= 0 or self.hop_seconds <= 0 or (self.fps is not None and self.fps <= 0):
            raise ValueError("staleness_budget_seconds, hop_seconds and fps must be positive")


@dataclass(slots=True)
class StreamState(Generic[P, E]):
    """One stream: ``pending`` is encoded and waits to be decoded, ``shown`` was decoded last.

    ``drops``: frames by cause. ``heard_until``: end of the last window, and the ``heard_segment`` that it was of.
    ``vain_waits``: pictures that waited for the first sound while none came.
    """

    number: int
    feed: Feed[P]
    pending: P | None = None
    shown: P | None = None
    pending_encoded: E | None = None
    shown_encoded: E | None = None
    is_encoding: bool = False
    encode_turn: int = 0
    decode_turn: int = 0
    heard_until: float | None = None
    heard_segment: int = -1
    cues_version: int = 0
    cues_used: int = 0
    pending_since: float = 0.0
    vain_waits: int = 0
    due: float = -math.inf
    drops: Counter[str] = field(default_factory=Counter)


class Scheduler(Generic[P, E]):
    """Chooses for all streams; the one that was served longest ago comes first. Not to be called by two at once."""

    def __init__(self, feeds: list[Feed[P]], options: LiveOptions) -> None:
        self.options = options
        self.streams: list[StreamState[P, E]] = [StreamState(number, feed) for number, feed in enumerate(feeds)]
        self._turn = 0

    @property
    def is_over(self) -> bool:
        """Whether all sources have ended and all of their frames were delivered or dropped."""
        return all(s.feed.ended and s.pending is None and not s.is_encoding for s in self.streams)

    # -------------------------------------------------------------------------------------- pictures

    def next_picture(self) -> tuple[StreamState[P, E], P] | None:
        """What is to be encoded next. Until :meth:`encoded` no other frame of that stream is."""
        for stream in sorted(self.streams, key=lambda s: s.encode_turn):
            if stream.pending is not None or stream.is_encoding:
                continue  # there is room for one picture beside the one that is shown
            while (picture := stream.feed.take(0.0)) is not None:
                cause = self._too_late(stream, picture)
                if cause is None:
                    stream.is_encoding = True
                    self._turn += 1
                    stream.encode_turn = self._turn
                    return stream, picture
                stream.drops[cause] += 1
        return None

    def _too_late(self, stream: StreamState[P, E], picture: P) -> str | None:
        if self.options.fps is not None:
            leapt = stream.shown is not None and picture.segment != stream.shown.segment
            if picture.pts_seconds < stream.due - _NEAR_SECONDS and not leapt:
                return "fps"
        age = stream.feed.now_seconds() - picture.pts_seconds
        if not self.options.lossless and age > self.options.staleness_budget_seconds:
            return "stale"
        if self.options.fps is not None:
            on_grid = stream.due + 1 / self.options.fps
            stream.due = on_grid if on_grid > picture.pts_seconds else picture.pts_seconds + 1 / self.options.fps
        return None

    def encoded(self, stream: StreamState[P, E], picture: P, encoded: E, at_seconds: float) -> None:
        """A picture is ready to be decoded, since a monotonic time."""
        stream.is_encoding, stream.pending, stream.pending_encoded = False, picture, encoded
        stream.pending_since = at_seconds

    def dropped(self, stream: StreamState[P, E], cause: str) -> None:
        """The picture that was being encoded, or waited to be decoded, will not be delivered."""
        stream.is_encoding, stream.pending, stream.pending_encoded = False, None, None
        stream.drops[cause] += 1

    # -------------------------------------------------------------------------------------- sounds and cues

    def heard(self, stream: StreamState[P, E], picture: P) -> float | None:
        """The end of the window that a picture hears now; None where the stream has no sound."""
        end, now, hop = stream.feed.ring.end_seconds, stream.feed.now_seconds(), self.options.hop_seconds
        if end is None:
            return None
        if self.options.lossless:
            return math.floor(picture.pts_seconds / hop + _NEAR_SECONDS) * hop
        latest = now if now - end > LATE_SOUND_SECONDS else min(now, end)
        until = math.floor(latest / hop + _NEAR_SECONDS) * hop
        if stream.heard_until is not None and stream.heard_segment == picture.segment:
            until = max(until, stream.heard_until)  # the clock may be set back a little, what was heard is not unheard
        return until

    def next_decode(self, at_seconds: float) -> tuple[StreamState[P, E], P, Cause] | None:
        """What is to be decoded next, at a monotonic time, and why; :meth:`taken` says that it is."""
        for stream in sorted(self.streams, key=lambda s: s.decode_turn):
            picture, cause = self._decode_of(stream, at_seconds)
            if picture is not None and cause is not None:
                self._turn += 1
                stream.decode_turn = self._turn
                return stream, picture, cause
        return None

    def _decode_of(self, stream: StreamState[P, E], at_seconds: float) -> tuple[P | None, Cause | None]:
        if stream.pending is not None:
            is_ready = not self.options.lossless or self._has_sound(stream, stream.pending, at_seconds)
            return (stream.pending, "frame") if is_ready else (None, None)
        if stream.shown is None:
            return None, None
        if stream.cues_version != stream.cues_used:
            return stream.shown, "cues"
        if self.options.lossless or self.options.mute:
            return None, None
        until = self.heard(stream, stream.shown)
        if until is None or (stream.heard_until is not None and until <= stream.heard_until + _NEAR_SECONDS):
            return None, None
        return stream.shown, "sound"

    def _has_sound(self, stream: StreamState[P, E], picture: P, at_seconds: float) -> bool:
        end = stream.feed.ring.end_seconds
        until = self.heard(stream, picture)
        if self.options.mute or stream.feed.ended or (end is not None and until is not None and end >= until):
            return True
        if end is None and stream.vain_waits >= MOST_VAIN_WAITS:
            return True
        is_late = at_seconds - stream.pending_since > LATE_SOUND_SECONDS
        stream.vain_waits += is_late and end is None
        return is_late

    def taken(self, stream: StreamState[P, E], picture: P) -> tuple[E, float | None]:
        """A decode of a picture begins: (what its encoder found, the end of the window that it hears)."""
        until = self.heard(stream, picture)
        if stream.pending is picture:
            stream.shown, stream.shown_encoded = picture, stream.pending_encoded
            stream.pending = stream.pending_encoded = None
        stream.cues_used = stream.cues_version
        stream.heard_until, stream.heard_segment = until, picture.segment
        assert stream.shown_encoded is not None
        return stream.shown_encoded, until
