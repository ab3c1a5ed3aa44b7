"""Several sources of cues in order: the first that answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from teso_deploy.cues.asking import Allowance
from teso_deploy.cues.contracts import CueAnswer, CueMoment, CueSource
from teso_deploy.errors import CueSourceError, NoCueAnswerError


class ChainSource:
    """The first of several sources that answers. A source that fails is passed over.

    If all fail, the error is that of the first. "Nothing sounds" is an answer. A source that failed is not asked again
    before its pause is over; one that answered nothing about a picture is asked about the next picture.

    Args:
        sources: In the order in which they are asked.
        clock: Monotonic seconds.

    Attributes:
        passed_over: How often a source failed and a later one did not.
    """

    def __init__(self, sources: Sequence[CueSource], clock: Callable[[], float] = time.monotonic) -> None:
        self._sources, self._clock = tuple(sources), clock
        self._allowances = [Allowance(budget_per_minute=1) for _ in sources]  # only for its pauses
        self._failures: dict[int, CueSourceError] = {}
        self.name = ",".join(source.name for source in sources)
        self.passed_over = 0
        self._is_closed = False

    @property
    def identity(self) -> str:
        """The identities of all sources."""
        return "chain:" + ",".join(source.identity for source in self._sources)

    @property
    def troubles(self) -> tuple[str, ...]:
        """The errors of the sources that fail at the moment."""
        return tuple(f"{self._sources[k].name}: {error}" for k, error in sorted(self._failures.items()))

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """The answer of the first source that has one. Raises :class:`CueSourceError` if all failed."""
        failures: list[CueSourceError] = []
        for number, (source, allowance) in enumerate(zip(self._sources, self._allowances, strict=True)):
            if allowance.wait_seconds(self._clock()) > 0:
                failures.append(self._failures[number])
                continue
            try:
                answer = source.ask(moment)
            except CueSourceError as error:
                if self._is_closed:  # closing ended the question
                    raise
                if isinstance(error, NoCueAnswerError):
                    allowance.note_answer()
                else:
                    allowance.note_failure(self._clock(), error.retry_after_seconds)
                self._failures = self._failures | {number: error}
                failures.append(error)
                continue
            allowance.note_answer()
            self._failures = {k: failure for k, failure in self._failures.items() if k != number}
            if answer is not None:
                self.passed_over += len(failures)
                return answer
        if failures and len(failures) == len(self._sources):
            raise failures[0]
        self.passed_over += len(failures)
        return None

    def close(self) -> None:
        """Close all sources."""
        self._is_closed = True
        for source in self._sources:
            source.close()
