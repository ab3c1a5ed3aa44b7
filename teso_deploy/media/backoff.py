"""How long to wait before the next attempt to reach a server."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_SECONDS, FACTOR, CAP_SECONDS = 0.5, 2.0, 30.0
#: After a connection that lasted at least this long, waiting starts again with the first wait.
STABLE_SECONDS = 10.0


class Backoff:
    """Waiting times that double up to a cap.

    Each wait is drawn between half of its value and all of it, so that clients do not reconnect at the same moment.

    Args:
        first_seconds: The first wait. Default: 0.5 s.
        cap_seconds: The longest wait. Default: 30 s.
        draw: Returns a uniform random number in [0, 1).
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
        """Return the next wait in seconds."""
        wait = self._next
        self._next = min(wait * FACTOR, self._cap)
        return wait * (0.5 + 0.5 * self._draw())

    def note_connection(self, seconds: float) -> None:
        """Record how long a connection lasted."""
        if seconds >= STABLE_SECONDS:
            self._next = self._first
