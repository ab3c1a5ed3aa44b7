"""Choose the next work of a live run.

There are no threads and no clock here: decisions depend only on the arguments and feeds. The newest frame of each
stream is encoded and then decoded with the newest sound. Until the next frame is ready, each hop of the sound and each
change of the cues decodes the last frame again.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from teso_deploy.sinks.delivery import Cause

#: The scheduler does not wait for sound that is later than this, but pads the audio window with zeros.
LATE_SOUND_SECONDS = 1.0
#: The number of pictures that wait for the first sound of a source. After these, pictures wait for sound only once the
#: source has sent some.
MOST_VAIN_WAITS = 3
#: A hop counts as reached from this long before it, because of rounding.
_NEAR_SECONDS = 1e-6


class Picture(Protocol):
    """A decoded frame."""

    @property
    def pts_seconds(self) -> float:
        """On its stream's clock."""

    @property
    def segment(self) -> int:
        """Number of the segment: it increases at each jump of the stream's time stamps."""


class Sound(Protocol):
    """How much of a stream's sound has been received."""

    @property
    def end_seconds(self) -> float | None:
        """End of the newest sample; None before the first."""


P = TypeVar("P", bound=Picture)
P_co = TypeVar("P_co", bound=Picture, covariant=True)
#: The encoder's output for a picture.
E = TypeVar("E")


class Feed(Protocol[P_co]):
    """A source of frames and sound, such as :class:`LiveReader`."""

    @property
    def ring(self) -> Sound:
        """Its sound."""

    @property
    def ended(self) -> bool:
        """Whether no frame waits and none will come."""

    def take(self, timeout_seconds: float) -> P_co | None:
        """Take the next frame to segment; None if none comes in time."""

    def now_seconds(self) -> float:
        """Return the stream time that is being filmed now."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a live run chooses frames and sound.

    Attributes:
        staleness_budget_seconds: A frame that is older than this when it is chosen is dropped. Default: 0.5.
        hop_seconds: How far the audio window moves at a time. Default: 0.24.
        lossless: Drop no frame, and segment each with the last audio window before it. Default: False.
        fps: Segment at most this many frames per second of stream time. Default: all.
        mute: Use silence instead of the sound. Default: False.
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
    """The scheduler's state of one stream.

    Attributes:
        number: Number of the stream, from 0.
        feed: Its frames and sound.
        pending: The picture that is encoded and waits to be decoded.
        shown: The picture that was decoded last.
        pending_encoded: The encoder's output for ``pending``.
        shown_encoded: The encoder's output for ``shown``.
        is_encoding: Whether a picture is being encoded.
        encode_turn: Turn of its last encode; turns are counted over all streams, and a smaller one is longer ago.
        decode_turn: The same for decodes.
        heard_until: End of the last audio window; None: no sound.
        heard_segment: The segment of the picture that the last audio window was used with.
        cues_version: Number of changes of the cues.
        cues_used: The version of the cues that the last decode used.
        pending_since: When ``pending`` was encoded, in monotonic seconds.
        vain_waits: Number of pictures that waited too long for the stream's first sound, and were decoded without it.
        due: With ``fps``, the stream time from which the next picture is taken.
        drops: Cause → number of frames that were dropped.
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
    """Chooses among all streams; the one that was served longest ago comes first.

    Only one thread at a time may call it.
    """

    def __init__(self, feeds: list[Feed[P]], options: LiveOptions) -> None:
        self.options = options
        self.streams: list[StreamState[P, E]] = [StreamState(number, feed) for number, feed in enumerate(feeds)]
        self._turn = 0

    @property
    def is_over(self) -> bool:
        """Whether all sources have ended and all their frames have been delivered or dropped."""
        return all(s.feed.ended and s.pending is None and not s.is_encoding for s in self.streams)

    # -------------------------------------------------------------------------------------- pictures

    def choose_picture(self) -> tuple[StreamState[P, E], P] | None:
        """Choose the picture to encode next. The stream yields no other before :meth:`record_encoded` is called."""
        for stream in sorted(self.streams, key=lambda s: s.encode_turn):
            if stream.pending is not None or stream.is_encoding:
                continue  # a stream holds only one picture besides the one that is shown
            while (picture := stream.feed.take(0.0)) is not None:
                cause = self._find_drop_cause(stream, picture)
                if cause is None:
                    stream.is_encoding = True
                    self._turn += 1
                    stream.encode_turn = self._turn
                    return stream, picture
                stream.drops[cause] += 1
        return None

    def _find_drop_cause(self, stream: StreamState[P, E], picture: P) -> str | None:
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

    def record_encoded(self, stream: StreamState[P, E], picture: P, encoded: E, *, at_seconds: float) -> None:
        """Record that a picture has been encoded.

        Args:
            stream: The picture's stream.
            picture: The picture.
            encoded: The encoder's output.
            at_seconds: Monotonic time.
        """
        stream.is_encoding, stream.pending, stream.pending_encoded = False, picture, encoded
        stream.pending_since = at_seconds

    def record_drop(self, stream: StreamState[P, E], cause: str) -> None:
        """Record that the picture that was being encoded, or waited to be decoded, will not be delivered."""
        stream.is_encoding, stream.pending, stream.pending_encoded = False, None, None
        stream.drops[cause] += 1

    # -------------------------------------------------------------------------------------- sounds and cues

    def get_window_end(self, stream: StreamState[P, E], picture: P) -> float | None:
        """Return the end of the audio window for a picture at the current time; None if the stream has no sound."""
        end, now, hop = stream.feed.ring.end_seconds, stream.feed.now_seconds(), self.options.hop_seconds
        if end is None:
            return None
        if self.options.lossless:
            return math.floor(picture.pts_seconds / hop + _NEAR_SECONDS) * hop
        latest = now if now - end > LATE_SOUND_SECONDS else min(now, end)
        until = math.floor(latest / hop + _NEAR_SECONDS) * hop
        if stream.heard_until is not None and stream.heard_segment == picture.segment:
            until = max(until, stream.heard_until)  # the clock may be set back, but the window must not move back
        return until

    def choose_decode(self, at_seconds: float) -> tuple[StreamState[P, E], P, Cause] | None:
        """Choose the picture to decode next, and why. The caller then calls :meth:`record_decode`.

        Args:
            at_seconds: Monotonic time.

        Returns:
            The stream, the picture and the cause; None if there is nothing to decode.
        """
        for stream in sorted(self.streams, key=lambda s: s.decode_turn):
            picture, cause = self._choose_decode(stream, at_seconds)
            if picture is not None and cause is not None:
                self._turn += 1
                stream.decode_turn = self._turn
                return stream, picture, cause
        return None

    def _choose_decode(self, stream: StreamState[P, E], at_seconds: float) -> tuple[P | None, Cause | None]:
        if stream.pending is not None:
            is_ready = not self.options.lossless or self._has_sound(stream, stream.pending, at_seconds)
            return (stream.pending, "frame") if is_ready else (None, None)
        if stream.shown is None:
            return None, None
        if stream.cues_version != stream.cues_used:
            return stream.shown, "cues"
        if self.options.lossless or self.options.mute:
            return None, None
        until = self.get_window_end(stream, stream.shown)
        if until is None or (stream.heard_until is not None and until <= stream.heard_until + _NEAR_SECONDS):
            return None, None
        return stream.shown, "sound"

    def _has_sound(self, stream: StreamState[P, E], picture: P, at_seconds: float) -> bool:
        end = stream.feed.ring.end_seconds
        until = self.get_window_end(stream, picture)
        if self.options.mute or stream.feed.ended or (end is not None and until is not None and end >= until):
            return True
        if end is None and stream.vain_waits >= MOST_VAIN_WAITS:
            return True
        is_late = at_seconds - stream.pending_since > LATE_SOUND_SECONDS
        stream.vain_waits += is_late and end is None
        return is_late

    def record_decode(self, stream: StreamState[P, E], picture: P) -> tuple[E, float | None]:
        """Record that the decode of a picture begins.

        Returns the encoder's output and the end of the audio window.
        """
        until = self.get_window_end(stream, picture)
        if stream.pending is picture:
            stream.shown, stream.shown_encoded = picture, stream.pending_encoded
            stream.pending = stream.pending_encoded = None
        stream.cues_used = stream.cues_version
        stream.heard_until, stream.heard_segment = until, picture.segment
        assert stream.shown_encoded is not None
        return stream.shown_encoded, until
