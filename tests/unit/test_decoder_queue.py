"""How much of a stream is held back by a decoder that must not lose anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest

from teso_deploy.media.decoding import LEAST_LOSSLESS_PACKETS, LOSSLESS_SECONDS, MOST_PACKETS, DecoderThread
from teso_deploy.media.mailbox import Counts


@dataclass
class Given:
    """The part of a packet that the queue uses."""

    dts: int | None
    time_base: Fraction = Fraction(1, 1000)
    is_keyframe: bool = True


class Stuck(DecoderThread):
    """A decoder that waits until it is released."""

    def __init__(self) -> None:
        self.may = threading.Event()
        super().__init__("stuck", True, Counts())

    def _decode(self, packet: Any, arrived: float | None) -> Sequence[Any]:
        self.may.wait(120)
        return ()

    def _pass_on(self, frames: Sequence[Any], arrived: float | None) -> None:
        pass


@pytest.mark.parametrize(
    ("fps", "least", "most"),
    [
        (1, LEAST_LOSSLESS_PACKETS, LEAST_LOSSLESS_PACKETS + 1),
        (30, 30 * LOSSLESS_SECONDS, 30 * LOSSLESS_SECONDS + 2),
        (1000, MOST_PACKETS, MOST_PACKETS + 1),
        (None, LEAST_LOSSLESS_PACKETS, LEAST_LOSSLESS_PACKETS + 1),
    ],
)
def test_as_long_as_sound_may_be_late_and_no_longer(fps: int | None, least: float, most: float) -> None:
    decoder, put = Stuck(), []

    def feed() -> None:
        for number in range(400):
            decoder.put(Given(None if fps is None else round(number * 1000 / fps)), 0.0)  # type: ignore[arg-type]
            put.append(number)

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    before, unchanged = -1, 0
    while unchanged < 10:  # on a busy machine a thread may pause for a moment
        unchanged = unchanged + 1 if put and len(put) == before else 0
        before = len(put)
        time.sleep(0.05)
    decoder.may.set()
    thread.join(120)
    decoder.stop(60)
    # One more is in the decoder itself.
    assert least <= before - 1 <= most and len(put) == 400
