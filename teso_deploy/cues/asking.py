"""When a source of cues is asked: a policy without threads, clocks or models."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["start", "scene", "sound", "interval"]
BUDGET_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


def pause_seconds(failures: int, first: float, longest: float) -> float:
    """Behind so many failures before this one: twice as long each time."""
    return min(longest, first * 2 ** min(failures, 32))  # days of failures are no number of its own


@dataclass(frozen=True, slots=True)
class AskingOptions:
    """``every_seconds``: of a stream's time; None: not without a cause. ``budget_per_minute``: questions about all
    streams. ``ttl_seconds``: older cues give way to the fallback; None: never. ``on_scene``, ``on_sound``: whether a
    new scene, a new kind of sound, is a cause."""

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
    """Whether a stream wants to be asked about, and why."""

    options: AskingOptions
    reason: Reason | None = None
    _asked_pts_seconds: float | None = None

    def saw(self, pts_seconds: float, *, is_new_scene: bool, is_new_sound: bool) -> None:
        """A picture, or a window of sound. A cause stays until it is asked about; the first to come is told."""
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
            self.reason = "interval"  # also where the stream's time leapt back

    def asked(self, pts_seconds: float) -> None:
        """About the picture of this time."""
        self.reason, self._asked_pts_seconds = None, pts_seconds

    def failed(self, reason: Reason) -> None:
        """It was asked in vain: the cause is still there."""
        self.reason = self.reason or reason


@dataclass
class Allowance:
    """What all streams share: a budget of questions, and pauses behind failures."""

    budget_per_minute: int
    failures: int = 0
    _asked: deque[float] = field(default_factory=deque)
    _not_before: float = 0.0

    def wait_seconds(self, now: float) -> float:
        """How long nothing may be asked yet."""
        while self._asked and now - self._asked[0] >= BUDGET_SECONDS:
            self._asked.popleft()
        wait = self._not_before - now
        if len(self._asked) >= self.budget_per_minute:
            wait = max(wait, self._asked[0] + BUDGET_SECONDS - now)
        return max(0.0, wait)

    def asked(self, now: float) -> None:
        """A question is put."""
        self._asked.append(now)

    def answered(self) -> None:
        """It was answered."""
        self.failures, self._not_before = 0, 0.0

    def failed(self, now: float, retry_after_seconds: float | None) -> None:
        """It was not; the source may say when it may be asked again."""
        pause = pause_seconds(self.failures, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self.failures += 1
        self._not_before = now + max(pause, retry_after_seconds or 0.0)
