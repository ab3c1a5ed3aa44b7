"""Watches a stream for some seconds, and collects flashes, clicks and counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from teso_deploy.errors import TesoError
from teso_deploy.media.address import Address
from teso_deploy.media.backoff import Backoff
from teso_deploy.media.decoding import Corrupt
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.media.source_health import SourceHealth
from tests.support.recordings import CLICK_SECONDS, click_times

ALIGNED_SECONDS = 0.02


@dataclass
class Seen:
    """The results of watching a stream.

    ``flashes``: stream time of the first bright frame of each. ``earliest``: flash → stream time of the frame that was
    taken before it, if frames between the two were superseded: the flash may have begun since then. ``corrupt``:
    damaged frames that were delivered.
    """

    pts: list[float] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    flashes: list[float] = field(default_factory=list)
    earliest: dict[float, float] = field(default_factory=dict)
    clicks: list[float] = field(default_factory=list)
    corrupt: int = 0
    sound_end: float = 0.0
    health: SourceHealth | None = None

    def heard_flashes(self) -> list[float]:
        """The flashes whose clicks have arrived. Those of the last flashes may not have arrived yet."""
        return [flash for flash in self.flashes if flash + 2 * CLICK_SECONDS < self.sound_end]

    def offsets(self) -> list[float]:
        """The distance of each flash to the nearest click."""
        return [
            min((self._distance(flash, click) for click in self.clicks), default=1e9) for flash in self.heard_flashes()
        ]

    def _distance(self, flash: float, click: float) -> float:
        return max(self.earliest.get(flash, flash) - click, click - flash, 0.0)


def has_beats(count: int) -> Callable[[Seen], bool]:
    """Return a condition for ``until``: this many flashes were seen, and their clicks heard."""
    return lambda seen: len(seen.heard_flashes()) >= count


def quickly() -> Backoff:
    return Backoff(first_seconds=0.1, cap_seconds=0.2)


def watched(
    url: str,
    seconds: float,
    act: Callable[[float], None] = lambda at: None,
    audio: str | None = None,
    timeout_seconds: float = 60.0,
    lossless: bool = False,
    corrupt: Corrupt = "keep",
    until: Callable[[Seen], bool] = lambda seen: False,
) -> Seen:
    """Watch a stream for at most some seconds. ``act`` is called repeatedly with the seconds that have passed.

    ``lossless``: no frame is superseded, so that each flash is seen at its beginning. ``until``: returns True to end
    earlier.
    """
    seen = Seen()
    other = Address.parse(audio) if audio else None
    with LiveReader(
        Address.parse(url), audio=other, timeout_seconds=timeout_seconds, lossless=lossless, corrupt=corrupt,
        backoff=quickly,
    ) as reader:  # fmt: skip
        reader.start()
        began, was_bright, index = time.monotonic(), False, -1
        while (passed := time.monotonic() - began) < seconds and not reader.ended and not until(seen):
            act(passed)
            taken = reader.take(0.02)
            seen.health, seen.sound_end = reader.health(), reader.ring.end_seconds or 0.0
            if taken is None:
                continue
            image = taken.frame.image
            before = seen.pts[-1] if seen.pts and taken.index > index + 1 else taken.pts_seconds
            index = taken.index
            seen.pts.append(taken.pts_seconds)
            seen.segments.append(taken.segment)
            seen.sizes.append(image.shape)
            seen.corrupt += taken.is_corrupt
            is_bright = bool(image[image.shape[0] // 2 :].mean() > 128)
            if is_bright and not was_bright:
                seen.flashes.append(taken.pts_seconds)
                seen.earliest[taken.pts_seconds] = before
            was_bright = is_bright
        seen.sound_end = end = reader.ring.end_seconds or 0.0
        seen.clicks = click_times(reader.ring.read(0.0, end)) if end else []
        seen.health = reader.health()
    return seen


def assert_aligned(seen: Seen, at_least: int = 2, frame_seconds: float = 1 / 40) -> None:
    """Check that flashes and clicks coincide.

    A damaged picture delays a flash by a frame; most are not damaged.
    """
    offsets = seen.offsets()
    assert len(offsets) >= at_least, (seen.flashes, seen.clicks)
    good = [offset for offset in offsets if offset <= ALIGNED_SECONDS + 1e-3]
    assert len(good) >= len(offsets) / 2 and max(offsets) <= ALIGNED_SECONDS + 2 * frame_seconds, (
        seen.flashes,
        seen.clicks,
    )


def assert_exact(seen: Seen, at_least: int, off_seconds: float = 0.0) -> None:
    """Check, for a stream without superseded frames, that flashes and clicks are ``off_seconds`` apart, to 20 ms."""
    offsets = seen.offsets()
    assert len(offsets) >= at_least, (seen.flashes, seen.clicks)
    assert all(abs(offset - off_seconds) <= ALIGNED_SECONDS for offset in offsets), (seen.flashes, seen.clicks)


def failure_of(url: str, timeout_seconds: float = 120.0) -> tuple[TesoError, float]:
    """Return the error of a stream that can't be opened, and after how many seconds it was raised."""
    began = time.monotonic()
    with (
        pytest.raises(TesoError) as raised,
        LiveReader(Address.parse(url), timeout_seconds=timeout_seconds) as reader,
    ):
        reader.start()
    return raised.value, time.monotonic() - began
