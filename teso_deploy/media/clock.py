"""What time it is in a live stream: the moment that is being filmed now. When a recording would have been filmed."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Sequence

from teso_deploy.media.container import AHEAD_SECONDS, BACK_SECONDS

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


def fastest(ways_seconds: Sequence[float]) -> float:
    """The least (arrival - stamp) of some packets, but for a damaged stamp's.

    What was probed, or is sent in one packet, comes late but for its end: so the fastest says when it was recorded.
    """
    likely = statistics.median(ways_seconds)
    return min(way for way in ways_seconds if way > likely - AHEAD_SECONDS)


class Pace:
    """When packets of a recording are due, as a camera would give them. Where the stamps leap, it goes on at once."""

    def __init__(self) -> None:
        self._tracks: dict[int, tuple[float, float]] = {}  # (stamp expected next, offset to monotonic time)

    def wait_seconds(
        self, track: int, stamp_seconds: float | None, duration_seconds: float, now_seconds: float
    ) -> float:
        """How long to wait with a packet of a track at a monotonic time; one without a stamp follows the last one."""
        known = self._tracks.get(track) or next(iter(self._tracks.values()), None)
        expected, offset = known or (stamp_seconds or 0.0, now_seconds - (stamp_seconds or 0.0))
        stamp = expected if stamp_seconds is None else stamp_seconds
        # Each track leaps by itself: what is left of the other one still has the old stamps.
        leapt = track in self._tracks and not -BACK_SECONDS <= stamp - expected <= AHEAD_SECONDS
        if leapt or abs(stamp + offset - now_seconds) > AHEAD_SECONDS:
            offset = now_seconds - stamp
        self._tracks[track] = stamp + duration_seconds, offset
        return max(0.0, stamp + offset - now_seconds)
