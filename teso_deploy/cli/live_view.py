"""What a live run is doing, as a table that is drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def _milliseconds(percentiles: Mapping[str, float], which: str) -> str:
    return f"{percentiles[which]:.0f}" if which in percentiles else "–"


def rendered(snapshot: Mapping[str, Any]) -> Group:
    """A row a stream, and a line for each sink that is not well."""
    table = Table(
        *("input", "state", "frames", "frames/s", "age p50", "p95 ms", "frame p50", "p95 ms", "sound", "gaps s"),
        *("drops", "reconnects", "cue age s"),
    )
    for stream in snapshot["streams"]:
        frame = stream["latency_ms"].get("frame", {})
        table.add_row(
            Text(stream["input"]),
            stream["state"],
            str(stream["frames"]),
            f"{stream['fps']:.1f}",
            _milliseconds(stream["staleness_ms"], "p50"),
            _milliseconds(stream["staleness_ms"], "p95"),
            _milliseconds(frame, "p50"),
            _milliseconds(frame, "p95"),
            str(stream["redecodes"]["sound"]) if stream["audio"]["there"] else "none",
            f"{stream['audio']['gap_seconds']:.1f}",
            " ".join(f"{cause} {count}" for cause, count in stream["drops"].items()) or "–",
            str(stream["reconnects"]),
            f"{stream['cues']['age_seconds']:.1f}",
        )
    notes = [Text(f"{name}: {sink['error']}") for name, sink in snapshot["sinks"].items() if sink["error"]]
    return Group(table, *notes)
