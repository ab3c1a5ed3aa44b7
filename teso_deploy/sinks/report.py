"""The report of a run as JSON: how much was segmented, how fast and with which cues."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from teso_deploy.latency import LatencyHistograms, LatencyLog
from teso_deploy.outputs import as_json, check_file, write_text
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery, InputFacts
from teso_deploy.sinks.events import open_event_log

SCHEMA_VERSION = 1


class _Tally:
    """Counts the results of one input."""

    def __init__(self, facts: InputFacts, run: RunFacts) -> None:
        self._facts = facts
        self._began: float | None = None
        self._ended = 0.0
        self._frames = self._masks_nonblank = self._silent = self._events = 0
        self._positive: list[float] = []
        self._offered: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._is_endless = run.kind == "streams"  # memory must not grow with the number of frames
        self._latency = LatencyHistograms() if self._is_endless else LatencyLog()
        self._event_log = open_event_log(run.classes, run.kind, facts)

    def add(self, delivery: Delivery) -> None:
        found, self._ended = delivery.segmentation, time.monotonic()
        if self._began is None:
            self._began = min(delivery.stamps.values(), default=self._ended)
        self._events += len(list(self._event_log.add(found, delivery.at_seconds)))
        if delivery.cause != "frame":
            return
        self._frames += 1
        self._masks_nonblank += not found.is_blank
        self._silent += found.audio_is_silent
        self._positive.append(found.positive_pixel_rate)
        if self._is_endless:
            self._positive = [sum(self._positive)]
        self._latency.add({**delivery.stamps, "delivered": delivery.stamps.get("delivered", self._ended)})
        if (cues := found.cues) is None:  # a method without text
            return
        self._offered.update(cues.names)
        self._sources[cues.source] += 1
        # Without a gate every cue is accepted.
        gates = np.ones(len(cues.valid)) if found.cue_gate is None else found.cue_gate
        for name, gate in zip(cues.names, gates, strict=False):
            self._accepted[name] += bool(gate > 0)

    def describe(self) -> dict[str, Any]:
        frames, offered = self._frames, self._offered.most_common()
        seconds = 0.0 if self._began is None else self._ended - self._began
        report = {
            "schema_version": SCHEMA_VERSION,
            "input": self._facts.name,
            "mode": "live",
            "seconds": round(seconds, 3),
            "frames": frames,
            "masks_nonblank": self._masks_nonblank,
            "positive_pixel_rate": float(np.sum(self._positive)) / frames if frames else 0.0,
            "latency_ms": self._latency.summary(),
            "fps": frames / seconds if seconds else 0.0,
            **self._facts.describe(),
        }
        report["audio"] = {**report.get("audio", {}), "silent": self._silent == frames}
        report["cues"] = {
            "names": [name for name, _ in offered],
            "source": self._sources.most_common(1)[0][0] if self._sources else "none",
            "offered_rate": {name: count / frames for name, count in offered},
            "accepted_rate": {name: self._accepted[name] / count for name, count in offered},
        }
        report["events"] = self._events + len(self._event_log.open_names)
        return report


class ReportSink(Sink):
    """Counts results, and writes the report when it is closed.

    Make it the last sink of a file's run: its "delivered" is the time that all sinks before it took.

    Args:
        path: The JSON file. None: nothing is written, and :meth:`describe` returns the content.
        run: Facts of the run.

    Raises:
        OutputError: The file can't be written.
    """

    def __init__(self, path: Path | None, run: RunFacts) -> None:
        self.name, self._path, self._run = "report" if path is None else path.name, path, run
        self._tallies: dict[int, _Tally] = {}
        self._reports: dict[int, dict[str, Any]] = {}
        if path is not None:
            check_file(path)

    def append(self, delivery: Delivery) -> None:
        if delivery.stream not in self._tallies:
            if self._run.kind == "files":  # files run one after the other: free the last one's sound and outputs
                self._reports |= {number: tally.describe() for number, tally in self._tallies.items()}
                self._tallies.clear()
            self._tallies[delivery.stream] = _Tally(delivery.input, self._run)
        self._tallies[delivery.stream].add(delivery)

    def describe_inputs(self) -> list[dict[str, Any]]:
        """Return the report of each input that had results, in their order."""
        reports = self._reports | {number: tally.describe() for number, tally in self._tallies.items()}
        return [reports[number] for number in sorted(reports)]

    def describe_input(self, number: int, facts: InputFacts) -> dict[str, Any]:
        """Return the report of one input, also if it had no result.

        Args:
            number: Number of the input, from 0.
            facts: The facts about it.

        Returns:
            The report.
        """
        tally = self._tallies.get(number) or _Tally(facts, self._run)
        return self._reports.get(number) or tally.describe()

    def describe(self) -> dict[str, Any]:
        """Return the content of the JSON file: the report of the only input, or ``runs`` of several."""
        reports = self.describe_inputs()
        is_alone = len(reports) == 1 and len(self._run.inputs) == 1
        return reports[0] if is_alone else {"schema_version": SCHEMA_VERSION, "runs": reports}

    def close(self) -> None:
        if self._path is not None:
            write_text(self._path, as_json(self.describe()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
