"""A track of answers as cues that the fusion takes, by the time of a frame."""

from __future__ import annotations

from dataclasses import replace

from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.names import CueNames
from teso_deploy.cues.tracks import CueTrack
from teso_deploy.types import Cues


class TimedCues:
    """Looked up once an answer, so that a frame costs nothing.

    ``ttl_seconds``: how old an answer may become before the model falls back; None: as old as its track has it. What a
    person wrote (``manual``, ``released``) holds for all of its span and does not age.
    """

    def __init__(self, names: CueNames, track: CueTrack, ttl_seconds: float | None = None) -> None:
        self.track, self._names, self._ttl_seconds = track, names, ttl_seconds
        self._last: tuple[CueAnswer, Cues] | None = None

    def check(self) -> None:
        """Look all of it up before work starts. Raises :class:`CueError` for typed words that have no embedding."""
        for span in self.track.spans:
            self._cues_of(span.answer())

    def at(self, seconds: float) -> Cues | None:
        """What is offered with a frame of this time, and its age; None: nothing, so that the model falls back."""
        answer = self.track.at(seconds)
        if answer is None:
            return None
        cues = self._cues_of(answer)
        if answer.is_typed:
            return cues
        age_seconds = max(0.0, seconds - answer.of_seconds)
        if self._ttl_seconds is not None and age_seconds > self._ttl_seconds:
            return None
        return replace(cues, age_seconds=age_seconds)

    def _cues_of(self, answer: CueAnswer) -> Cues:
        if self._last is None or self._last[0] != answer:
            is_typed = answer.source == "manual"
            self._last = answer, self._names.of_words(answer.names) if is_typed else self._names.of_answer(answer)
        return self._last[1]
