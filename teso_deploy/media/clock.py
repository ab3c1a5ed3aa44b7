"""Clocks: the current time of a live stream, and the pace at which a recording was filmed."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Sequence

from teso_deploy.media.container import AHEAD_SECONDS, BACK_SECONDS

#: The shortest delay of a frame within this window counts as the delay of the connection.
WINDOW_SECONDS = 10.0
#: After a pause of this length the delay is measured again, because the source may have paused too.
STALL_SECONDS = 1.0
_BUCKET_SECONDS = 0.5


class LiveClock:
    """Stream time: monotonic time minus an offset, the least (arrival - PTS) of the last ten seconds.

    So the age of a frame is all its waiting time, in the network too, beyond the delay of the fastest frame.
    Before the first frame, stream time is 0.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._least: deque[tuple[float, float]] = deque()  # (start of the bucket, least offset in it)
        self._last_arrival: float | None = None
        self._offset: float | None = None

    def observe(self, pts_seconds: float, arrival_seconds: float) -> None:
        """Record that the frame of ``pts_seconds`` arrived at a monotonic time."""
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
        """Return the stream time at a monotonic time."""
        with self._lock:
            return 0.0 if self._offset is None else monotonic_seconds - self._offset

    @property
    def is_set(self) -> bool:
        """Whether a frame has arrived."""
        return self._offset is not None


def find_fastest(ways_seconds: Sequence[float]) -> float:
    """Return the least (arrival - stamp) of some packets, ignoring one with a damaged stamp.

    Packets that were probed, or that are sent in one burst, arrive late except for the last one. So the fastest
    packet shows the time of recording.
    """
    likely = statistics.median(ways_seconds)
    return min(way for way in ways_seconds if way > likely - AHEAD_SECONDS)


class Pace:
    """Computes when the packets of a recording are due, at the speed of a camera. Leaps of the stamps add no wait."""

    def __init__(self) -> None:
        self._tracks: dict[int, tuple[float, float]] = {}  # (expected next stamp, offset to monotonic time)

    def wait_seconds(
        self, track: int, stamp_seconds: float | None, *, duration_seconds: float, now_seconds: float
    ) -> float:
        """Return how long to hold back a packet.

        Args:
            track: Index of the packet's track.
            stamp_seconds: The packet's stamp. None: it follows the previous packet.
            duration_seconds: Duration of the packet.
            now_seconds: The current monotonic time.
        """
        known = self._tracks.get(track) or next(iter(self._tracks.values()), None)
        expected, offset = known or (stamp_seconds or 0.0, now_seconds - (stamp_seconds or 0.0))
        stamp = expected if stamp_seconds is None else stamp_seconds
        # Detect a leap for each track separately: the other track's next packets may still have the old stamps.
        leapt = track in self._tracks and not -BACK_SECONDS <= stamp - expected <= AHEAD_SECONDS
        if leapt or abs(stamp + offset - now_seconds) > AHEAD_SECONDS:
            offset = now_seconds - stamp
        self._tracks[track] = stamp + duration_seconds, offset
        return max(0.0, stamp + offset - now_seconds)
