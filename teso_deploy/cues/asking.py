"""The policy that decides when a source of cues is asked. It has no threads, clocks or models."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["start", "scene", "sound", "interval"]
BUDGET_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


def pause_seconds(failures: int, first: float, longest: float) -> float:
    """Return the pause after a failure, which doubles with each failure before it.

    Args:
        failures: How many failures came before this one.
        first: The first pause in seconds.
        longest: The longest pause in seconds.
    """
    # Cap the exponent: after days of failures the power would have thousands of digits.
    return min(longest, first * 2 ** min(failures, 32))


@dataclass(frozen=True, slots=True)
class AskingOptions:
    """When a source is asked about streams.

    Attributes:
        every_seconds: Ask again after this much of a stream's time; None: only at a new scene or sound.
        budget_per_minute: The highest number of questions per minute, counted over all streams.
        ttl_seconds: Older cues are replaced by the fallback; None: never.
        on_scene: Whether a new scene is a reason to ask.
        on_sound: Whether a new kind of sound is a reason to ask.
    """

    every_seconds: float | None = 10.0
    budget_per_minute: int = 12
    ttl_seconds: float | None = None
    on_scene: bool = True
    on_sound: bool = True

    def __post_init__(self) -> None:
        if self.budget_per_minute < 1:
            raise ValueError(f"budget_per_minute is {self.budget_per_minute}: give at least 1")


@dataclass
class Wish:
    """Whether a question about a stream is due, and why."""

    options: AskingOptions
    reason: Reason | None = None
    _asked_pts_seconds: float | None = None

    def note_picture(self, pts_seconds: float, *, is_new_scene: bool, is_new_sound: bool) -> None:
        """Note a picture or an audio window. The first reason is kept until the question is asked.

        Args:
            pts_seconds: The time of the picture in seconds of the stream.
            is_new_scene: True if a new scene has begun.
            is_new_sound: True if a new kind of sound has begun.
        """
        if self.reason is not None:
            return
        last = self._asked_pts_seconds
        if last is None:
            self.reason = "start"
        elif is_new_scene and self.options.on_scene:
            self.reason = "scene"
        elif is_new_sound and self.options.on_sound:
            self.reason = "sound"
        elif self.options.every_seconds is not None and not 0 <= pts_seconds - last < self.options.every_seconds:
            self.reason = "interval"  # also the reason if the stream's time jumped back

    def note_question(self, pts_seconds: float) -> None:
        """Note a question about the picture of this time."""
        self.reason, self._asked_pts_seconds = None, pts_seconds

    def restore_reason(self, reason: Reason) -> None:
        """Note that the question failed: its reason is restored."""
        self.reason = self.reason or reason


@dataclass
class Allowance:
    """The limits that all streams share: a budget of questions, and pauses after failures."""

    budget_per_minute: int
    failures: int = 0
    _asked: deque[float] = field(default_factory=deque)
    _not_before: float = 0.0

    def wait_seconds(self, now: float) -> float:
        """How long to wait before the next question."""
        while self._asked and now - self._asked[0] >= BUDGET_SECONDS:
            self._asked.popleft()
        wait = self._not_before - now
        if len(self._asked) >= self.budget_per_minute:
            wait = max(wait, self._asked[0] + BUDGET_SECONDS - now)
        return max(0.0, wait)

    def note_question(self, now: float) -> None:
        """Note a question."""
        self._asked.append(now)

    def note_answer(self) -> None:
        """Note an answer."""
        self.failures, self._not_before = 0, 0.0

    def note_failure(self, now: float, retry_after_seconds: float | None) -> None:
        """Note a failure. ``retry_after_seconds``: the pause that the source requests, if any."""
        pause = pause_seconds(self.failures, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self.failures += 1
        self._not_before = now + max(pause, retry_after_seconds or 0.0)
