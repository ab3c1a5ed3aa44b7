"""How long to wait before a server is asked again."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_SECONDS, FACTOR, CAP_SECONDS = 0.5, 2.0, 30.0
#: A connection that held for so long begins at the first wait again.
STABLE_SECONDS = 10.0


class Backoff:
    """Waits that double up to a cap, each between half of it and all of it, so that not everybody comes back at once.

    ``draw``: uniform in [0, 1).
    """

    def __init__(
        self,
        first_seconds: float = FIRST_SECONDS,
        cap_seconds: float = CAP_SECONDS,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first, self._cap, self._draw = first_seconds, cap_seconds, draw
        self._next = first_seconds

    def next_seconds(self) -> float:
        """How long to wait now."""
        wait = self._next
        self._next = min(wait * FACTOR, self._cap)
        return wait * (0.5 + 0.5 * self._draw())

    def held(self, seconds: float) -> None:
        """A connection has lasted so long."""
        if seconds >= STABLE_SECONDS:
            self._next = self._first
