"""The cues of a track for the time of a frame, in the form that the fusion takes."""

from __future__ import annotations

from dataclasses import replace

from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.names import CueNames
from teso_deploy.cues.tracks import CueTrack
from teso_deploy.types import Cues


class TimedCues:
    """A track whose words are looked up once for each answer, so that a frame costs nothing.

    Cues that a person wrote (``manual``, ``released``) hold for all of their span and do not age.

    Args:
        names: Looks words up.
        track: The answers by time.
        ttl_seconds: How old an answer may become before the model falls back; None: any age.
    """

    def __init__(self, names: CueNames, track: CueTrack, ttl_seconds: float | None = None) -> None:
        self.track, self._names, self._ttl_seconds = track, names, ttl_seconds
        self._last: tuple[CueAnswer, Cues] | None = None

    def check(self) -> None:
        """Look everything up before work starts. Raises :class:`CueError` for typed words without an embedding."""
        for span in self.track.spans:
            self._cues_of(span.answer())

    def at(self, seconds: float) -> Cues | None:
        """The cues of a frame of this time, with their age; None: the model falls back."""
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
            self._last = (
                answer,
                self._names.look_up_words(answer.names) if is_typed else self._names.look_up_answer(answer),
            )
        return self._last[1]
