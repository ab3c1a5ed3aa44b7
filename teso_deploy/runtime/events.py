"""When each class begins and ceases to sound, from the masks of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from teso_deploy.types import BLANK_PIXEL_RATE, Segmentation

#: A class that is gone for no longer than this has not stopped: one hop of the sound's window.
JOIN_SECONDS = 0.24


@dataclass(frozen=True, slots=True)
class Event:
    """A class sounded from ``onset_seconds`` to ``end_seconds``, the times of its first and last frame.

    ``confidence``: mean over its ``frames`` of the highest mask probability.
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


class EventLog:
    """Turns segmentations in order of time into events.

    ``classes``: the bundle's; ``join_seconds``: a longer absence ends an event.
    """

    def __init__(self, classes: Sequence[str], join_seconds: float = JOIN_SECONDS) -> None:
        self._classes = tuple(classes)
        self._join_seconds = join_seconds
        self._open: dict[int, _Open] = {}

    @property
    def open_names(self) -> dict[str, float]:
        """What sounds now → since when, in seconds."""
        return {self._classes[label - 1]: event.onset_seconds for label, event in self._open.items()}

    def add(self, segmentation: Segmentation, at_seconds: float | None = None) -> Iterator[Event]:
        """Account a frame, or another sound for it ``at_seconds``; gives the events that are over by then."""
        now = segmentation.pts_seconds if at_seconds is None else at_seconds
        pixels = np.bincount(segmentation.labels.ravel(), minlength=len(self._classes) + 1)
        for label in (np.flatnonzero(pixels[1:] >= BLANK_PIXEL_RATE * segmentation.labels.size) + 1).tolist():
            score = float(segmentation.class_scores[label - 1])
            event = self._open.get(label)
            if event is not None and now - event.end_seconds <= self._join_seconds:
                event.end_seconds = now
                event.scores.append(score)
                continue
            if event is not None:
                yield self._closed(label)
            self._open[label] = _Open(now, now, [score])
        for label in [key for key, event in self._open.items() if now - event.end_seconds > self._join_seconds]:
            yield self._closed(label)

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
