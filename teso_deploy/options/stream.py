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

    audio: str | None = option(None, "Of a stream: where its sound comes from, a stream or file.")
    timeout_seconds: float = option(
        10.0,
        "Of a stream: seconds that it may take to open, or send nothing, before it counts as broken.",
        flag="--timeout",
        minimum=0.2,
        maximum=LONGEST_WAIT_SECONDS,
        unit="seconds",
    )
    staleness_seconds: float = option(
        0.5,
        "Live: frames that are older than this many seconds are dropped.",
        flag="--staleness",
        minimum=0.01,
        unit="seconds",
    )
    corrupt: CorruptChoice = option("keep", "Of a stream: damaged frames.")
    reconnect: bool = option(True, "Of a stream: open it again if it breaks off.", flag="--reconnect/--no-reconnect")
    seconds: float | None = option(
        None, "Live: end after this many seconds.", minimum=0.1, maximum=LONGEST_RUN_SECONDS, unit="seconds"
    )
    metrics: str | None = option(None, "Live: serve Prometheus metrics there.", metavar="[HOST]:PORT")
