"""Find when each class begins and ends to sound, from the masks of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from teso_deploy.sinks.contracts import InputKind, RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery, InputFacts
from teso_deploy.sinks.json_lines import JsonLines
from teso_deploy.types import BLANK_PIXEL_RATE, Segmentation

#: An absence up to this duration does not end an event: one hop of the audio window.
JOIN_SECONDS = 0.24
#: If results are rare, a class in two consecutive results is assumed to have sounded between them, if the pause between
#: them is not longer than this.
PAUSE_SECONDS = 2.0
#: The most that rounding may add to a time.
_NEAR_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Event:
    """A class sounded from ``onset_seconds`` to ``end_seconds``, the times of its first and last frame.

    ``confidence`` is the mean, over its ``frames``, of the highest mask probability; at most 1.
    """

    name: str
    onset_seconds: float
    end_seconds: float
    confidence: float
    frames: int

    def as_dict(self) -> dict[str, object]:
        """Return the content of a JSON line."""
        return asdict(self)


@dataclass(slots=True)
class _Open:
    onset_seconds: float
    end_seconds: float
    scores: list[float]
    was_missed: bool = False


class EventLog:
    """Turns the segmentations of one input into events.

    Args:
        classes: The bundle's classes.
        join_seconds: If results show that a class is absent for longer than this, its event has ended.
    """

    def __init__(self, classes: Sequence[str], join_seconds: float = JOIN_SECONDS) -> None:
        self._classes = tuple(classes)
        self._join_seconds = join_seconds
        self._open: dict[int, _Open] = {}
        self._now = -math.inf

    @property
    def open_names(self) -> dict[str, float]:
        """The classes that sound now → the time in seconds since when they sound."""
        return {self._classes[label - 1]: event.onset_seconds for label, event in self._open.items()}

    def add(self, segmentation: Segmentation, at_seconds: float | None = None) -> Iterator[Event]:
        """Add a result, and yield the events that have ended by then.

        Args:
            segmentation: The result.
            at_seconds: The time that it is valid for. A time before that of the last result counts as the last one; a
                sound from before the newest picture has such a time. Default: the time of its frame.

        Returns:
            The events that have ended.
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
                yield self._close(label)
            self._open[label] = _Open(now, now, [score])
        for label in [key for key in self._open if key not in present]:
            self._open[label].was_missed = True
            if not self._goes_on(self._open[label], now):
                yield self._close(label)

    def _goes_on(self, event: _Open, now: float) -> bool:
        most = self._join_seconds if event.was_missed else max(self._join_seconds, PAUSE_SECONDS)
        return now - event.end_seconds <= most + _NEAR_SECONDS

    def finish(self) -> Iterator[Event]:
        """Yield the events that last to the end."""
        for label in sorted(self._open):
            yield self._close(label)

    def _close(self, label: int) -> Event:
        event = self._open.pop(label)
        return Event(
            self._classes[label - 1],
            round(event.onset_seconds, 6),
            round(event.end_seconds, 6),
            round(float(np.mean(event.scores)), 4),
            len(event.scores),
        )


def open_event_log(classes: Sequence[str], kind: InputKind, facts: InputFacts) -> EventLog:
    """Make the event log of an input.

    In a file with few frames, one frame without a class does not end its event.

    Args:
        classes: The bundle's classes.
        kind: Whether the input is a file or a stream.
        facts: Facts about the input, for its frames per second.

    Returns:
        The log.
    """
    is_slow_file = kind == "files" and facts.fps > 0
    return EventLog(classes, max(JOIN_SECONDS, 1.5 / facts.fps) if is_slow_file else JOIN_SECONDS)


@dataclass(slots=True)
class _InputEvents:
    name: str
    log: EventLog
    ended: list[Event] = field(default_factory=list)


class EventSink(Sink):
    """Writes events as JSON lines.

    For files it writes one line per event, in the order of the inputs and then of the events' ends. For streams it
    writes two lines as they happen: ``{"event": "onset", …}`` when a class begins to sound, and ``{"event": "end", …}``
    when it has stopped. Raises :class:`OutputError`.
    """

    def __init__(self, path: Path, run: RunFacts) -> None:
        self.name, self._run = path.name, run
        self._lines = JsonLines(path, run.kind)
        self._inputs: dict[int, _InputEvents] = {}

    def append(self, delivery: Delivery) -> None:
        number, is_file = delivery.stream, self._run.kind == "files"
        if number not in self._inputs:
            log = open_event_log(self._run.classes, self._run.kind, delivery.input)
            self._inputs[number] = _InputEvents(delivery.input.name, log)
        found = self._inputs[number]
        before = found.log.open_names
        ended = list(found.log.add(delivery.segmentation, delivery.at_seconds))
        if is_file:  # a later input may have results before an earlier one's last event has ended
            found.ended += ended
            return
        for event in ended:
            before.pop(event.name, None)
            self._lines.write({"event": "end", "input": found.name, **event.as_dict()})
        for name, onset in found.log.open_names.items():
            if name not in before:
                line = {"event": "onset", "input": found.name, "name": name}
                self._lines.write({**line, "onset_seconds": round(onset, 6)})

    def close(self) -> None:
        first = {} if self._run.kind == "files" else {"event": "end"}
        with self._lines:  # a line that can't be written must not leave the file open
            for number in sorted(self._inputs):
                found = self._inputs.pop(number)
                for event in [*found.ended, *found.log.finish()]:
                    self._lines.write({**first, "input": found.name, **event.as_dict()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._lines.__exit__(kind, error, trace)
