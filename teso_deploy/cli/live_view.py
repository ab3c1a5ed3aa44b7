"""The progress of a live run, as a table that is redrawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from teso_deploy.text import to_printable


def _format_milliseconds(percentiles: Mapping[str, float], which: str) -> str:
    return f"{percentiles[which]:.0f}" if which in percentiles else "–"


def _shorten_name(text: str, most: int = 28) -> Text:
    """Shorten a long address at its beginning: its end says more."""
    text = to_printable(text)
    return Text(text if len(text) <= most else "…" + text[1 - most :])


def _make_note(text: str) -> Text:
    """Make a line that may hold foreign text, such as a server's error."""
    return Text(" " * (len(text) - len(text.lstrip())) + to_printable(text))


def draw_snapshot(snapshot: Mapping[str, Any]) -> Group:
    """Draw a row for each stream that fits into 80 columns, and lines about dropped frames and errors."""
    table = Table("input", "state", "frames", "/s", "age ms", "p95", "frame ms", "p95", padding=(0, 1), box=None)
    notes: list[Text] = []
    for stream in snapshot["streams"]:
        frame, sound = stream["latency_ms"].get("frame", {}), stream["audio"]
        table.add_row(
            _shorten_name(stream["input"]),
            stream["state"],
            str(stream["frames"]),
            f"{stream['fps']:.1f}",
            _format_milliseconds(stream["staleness_ms"], "p50"),
            _format_milliseconds(stream["staleness_ms"], "p95"),
            _format_milliseconds(frame, "p50"),
            _format_milliseconds(frame, "p95"),
        )
        heard = f"{stream['redecodes']['sound']} new sounds, {sound['gap_seconds']:.1f} s of gaps"
        parts = [heard if sound["there"] else "no sound"]
        parts += [f"{count} {cause}" for cause, count in stream["drops"].items()]
        parts += [f"{stream['reconnects']} reconnects"] * bool(stream["reconnects"])
        parts += [f"cues {stream['cues']['age_seconds']:.1f} s old"] * bool(stream["cues"]["age_seconds"])
        notes.append(Text("  " + ", ".join(parts)))
        notes += [_make_note(f"  {stream['error']}")] * bool(stream["error"])
        notes += [_make_note(f"  sound: {sound['note']}")] * bool(sound["note"])
    notes += [_make_note(f"{name}: {sink['error']}") for name, sink in snapshot["sinks"].items() if sink["error"]]
    source = snapshot["cue_source"]
    if source is not None:
        busy = "" if source["asking_seconds"] is None else f", asking for {source['asking_seconds']:.0f} s"
        notes.append(
            Text(f"cues by {source['source']}: {source['answered']} answers, {source['failed']} failures{busy}")
        )
        notes += [_make_note(f"  {source['error']}")] * bool(source["error"])
    return Group(table, *notes)
