"""How live streams are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from teso_deploy.options.fields import LONGEST_RUN_SECONDS, LONGEST_WAIT_SECONDS, Options, option

CorruptChoice = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Options):
    """How live streams are read, and when a run of them ends.

    Attributes:
        audio: source of the sound, a stream or a file. Default: the stream itself.
        timeout_seconds: how long a stream may take to open, or may send nothing, before it counts as broken. Default:
            10.
        staleness_seconds: frames that are older are dropped. Default: 0.5.
        corrupt: whether damaged frames are kept. Default: ``keep``.
        reconnect: open a stream again after it broke off. Default: yes.
        seconds: end the run after this time. Default: run until the streams end.
        metrics: ``[HOST]:PORT`` where Prometheus metrics are served. Default: nowhere.
    """

    audio: str | None = option(None, "For one stream: take its sound from this stream or file.")
    timeout_seconds: float = option(
        10.0,
        "For streams: wait this many seconds for the stream to open, or to send something, before it counts as broken.",
        flag="--timeout",
        minimum=0.2,
        maximum=LONGEST_WAIT_SECONDS,
        unit="seconds",
    )
    staleness_seconds: float = option(
        0.5,
        "For --mode live: drop frames that are older than this many seconds.",
        flag="--staleness",
        minimum=0.01,
        unit="seconds",
    )
    corrupt: CorruptChoice = option("keep", "For streams: whether damaged frames are kept or dropped.")
    reconnect: bool = option(
        True, "For streams: open a stream again if it breaks off.", flag="--reconnect/--no-reconnect"
    )
    seconds: float | None = option(
        None, "For streams: end after this many seconds.", minimum=0.1, maximum=LONGEST_RUN_SECONDS, unit="seconds"
    )
    metrics: str | None = option(None, "For streams: serve Prometheus metrics at this address.", metavar="[HOST]:PORT")
