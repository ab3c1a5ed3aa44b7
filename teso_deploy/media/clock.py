"""What time it is in a live stream: the moment that is being filmed now."""

from __future__ import annotations

import threading
from collections import deque

#: The fastest way that a frame took in so many seconds is how long the way is.
WINDOW_SECONDS = 10.0
#: Behind a pause of this much the way is measured anew: the source may have stood still, too.
STALL_SECONDS = 1.0
_BUCKET_SECONDS = 0.5


class LiveClock:
    """Stream time now = monotonic time - offset; the offset is the least (arrival - PTS) of the last ten seconds.

    So a frame's age counts all that it has waited, also in the network, beyond what the fastest one did. Without
    a frame yet, time stands at 0.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._least: deque[tuple[float, float]] = deque()  # (begin of the bucket, least offset in it)
        self._last_arrival: float | None = None
        self._offset: float | None = None

    def observe(self, pts_seconds: float, arrival_seconds: float) -> None:
        """A frame of ``pts_seconds`` came at a monotonic time."""
        offset = arrival_seconds - pts_seconds
        with self._lock:
            if self._last_arrival is not None and arrival_seconds - self._last_arrival > STALL_SECONDS:
                self._least.clear()
            self._last_arrival = arrival_seconds
            if self._least and arrival_seconds - self._least[-1][0] < _BUCKET_SECONDS:
                begin, least = self._least[-1]
                self._least[-1] = begin, min(least, offset)
            else:
                self._least.append((arrival_seconds, offset))
            while arrival_seconds - self._least[0][0] > WINDOW_SECONDS:
                self._least.popleft()
            self._offset = min(least for _, least in self._least)

    def now_seconds(self, monotonic_seconds: float) -> float:
        """Stream time at a monotonic time."""
        with self._lock:
            return 0.0 if self._offset is None else monotonic_seconds - self._offset

    @property
    def is_set(self) -> bool:
        """Whether any frame has come."""
        return self._offset is not None
