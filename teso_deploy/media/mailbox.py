"""Decoded frames of a live stream that wait for their reader, and the counts of its decoders."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property

import av

from teso_deploy.media.picture import Look, to_rgb
from teso_deploy.types import Frame

#: The number of decoded frames that may wait if no frame may be lost.
MOST_FRAMES = 4


class LiveFrame:
    """A decoded frame, converted to a picture only on request: a frame that arrives too late costs nothing.

    ``arrived``, ``decoded``: monotonic seconds at which its packet arrived, and at which it was decoded.
    """

    def __init__(
        self,
        picture: av.VideoFrame,
        look: Look,
        *,
        pts_seconds: float,
        index: int,
        segment: int,
        arrived: float,
        decoded: float,
    ) -> None:
        self._picture: av.VideoFrame | None = picture
        self._look = look
        self.pts_seconds, self.index, self.segment = pts_seconds, index, segment
        self.arrived, self.decoded = arrived, decoded
        self.is_corrupt = bool(picture.is_corrupt)

    @cached_property
    def frame(self) -> Frame:
        """The picture as it is shown."""
        assert self._picture is not None
        image = to_rgb(self._picture, self._look)
        self._picture = None
        return Frame(image, self.pts_seconds, self.index, self.segment, self.is_corrupt)


@dataclass
class Counts:
    """Counts of events since a source's beginning. Each of its threads writes separate fields."""

    frames_decoded: int = 0
    corrupt_packets: int = 0
    corrupt_frames: int = 0
    discontinuities: int = 0
    format_changes: int = 0
    reconnects: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    #: The number of packets that the video decoder holds back before it returns a frame.
    delay_frames: int = 0
    latest_video_seconds: float | None = None


class Mailbox:
    """Decoded frames that wait for the reader: only the newest of a live stream, else all of them."""

    def __init__(self, lossless: bool, counts: Counts) -> None:
        self._frames: deque[LiveFrame] = deque()
        self._lossless, self._counts = lossless, counts
        self._changed = threading.Condition()
        self._closed = False

    def put(self, frame: LiveFrame) -> None:
        """Add a frame. Wait for room where no frame may be lost."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: self._closed or len(self._frames) < MOST_FRAMES)
            else:
                self._counts.drops["superseded"] += len(self._frames)
                self._frames.clear()
            if not self._closed:
                self._frames.append(frame)
            self._changed.notify_all()

    def take(self, timeout_seconds: float) -> LiveFrame | None:
        """Return the next frame, or None if none arrives in time or ever."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._frames, timeout_seconds)
            frame = self._frames.popleft() if self._frames else None
            self._changed.notify_all()
            return frame

    @property
    def is_empty(self) -> bool:
        """Whether no frame is waiting."""
        return not self._frames

    def close(self) -> None:
        """Stop all waiting. Frames that are already here can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
