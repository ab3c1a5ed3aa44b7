"""When each class begins and ceases to sound, from the masks of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from teso_deploy.types import BLANK_PIXEL_RATE, Segmentation

#: A class that is gone for no longer than this has not stopped: one hop of the sound's window.
JOIN_SECONDS = 0.24
#: Where results are rare nobody looks in between: what is there again behind so short a pause was there all the time.
PAUSE_SECONDS = 2.0
#: What rounding may add to a time.
_NEAR_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Event:
    """A class sounded from ``onset_seconds`` to ``end_seconds``, the times of its first and last frame.

    ``confidence``: mean over its ``frames`` of the highest mask probability, at most 1.
    """

    name: str
    onset_seconds: float
    end_seconds: float
    confidence: float
    frames: int

    def as_dict(self) -> dict[str, object]:
        """For a JSON line."""
        return asdict(self)


@dataclass(slots=True)
class _Open:
    onset_seconds: float
    end_seconds: float
    scores: list[float]
    was_missed: bool = False


class EventLog:
    """Turns segmentations in order of time into events.

    ``classes``: the bundle's; ``join_seconds``: an absence that a result has shown ends an event when it lasts longer.
    """

    def __init__(self, classes: Sequence[str], join_seconds: float = JOIN_SECONDS) -> None:
        self._classes = tuple(classes)
        self._join_seconds = join_seconds
        self._open: dict[int, _Open] = {}
        self._now = -math.inf

    @property
    def open_names(self) -> dict[str, float]:
        """What sounds now → since when, in seconds."""
        return {self._classes[label - 1]: event.onset_seconds for label, event in self._open.items()}

    def add(self, segmentation: Segmentation, at_seconds: float | None = None) -> Iterator[Event]:
        """Account a frame, or another sound for it ``at_seconds``; gives the events that are over by then.

        What comes late, a sound say that was heard before the newest picture, counts as of the newest time.
        """
        self._now = now = max(self._now, segmentation.pts_seconds if at_seconds is None else at_seconds)
        pixels = np.bincount(segmentation.labels.ravel(), minlength=len(self._classes) + 1)
        present = (np.flatnonzero(pixels[1:] >= BLANK_PIXEL_RATE * segmentation.labels.size) + 1).tolist()
        for label in present:
            score = min(1.0, float(segmentation.class_scores[label - 1]))
            event = self._open.get(label)
            if event is not None and self._goes_on(event, now):
                event.end_seconds, event.was_missed = now, False
                event.scores.append(score)
                continue
            if event is not None:
                yield self._closed(label)
            self._open[label] = _Open(now, now, [score])
        for label in [key for key in self._open if key not in present]:
            self._open[label].was_missed = True
            if not self._goes_on(self._open[label], now):
                yield self._closed(label)

    def _goes_on(self, event: _Open, now: float) -> bool:
        most = self._join_seconds if event.was_missed else max(self._join_seconds, PAUSE_SECONDS)
        return now - event.end_seconds <= most + _NEAR_SECONDS

    def finish(self) -> Iterator[Event]:
        """The events that last to the end."""
        for label in sorted(self._open):
            yield self._closed(label)

    def _closed(self, label: int) -> Event:
        event = self._open.pop(label)
        return Event(
            self._classes[label - 1],
            round(event.onset_seconds, 6),
            round(event.end_seconds, 6),
            round(float(np.mean(event.scores)), 4),
            len(event.scores),
        )
