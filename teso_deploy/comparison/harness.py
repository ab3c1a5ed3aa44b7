"""Timing of several entrants, each in a separate process, in alternating turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from teso_deploy.bundle import Bundle
from teso_deploy.comparison.contenders import Contender, mask2former_sizes
from teso_deploy.comparison.processes import WorkerProcess
from teso_deploy.comparison.report import environment_of, percentile_row
from teso_deploy.comparison.turns import LEAST_ROUNDS, Key, Timings, Turn, TurnFailedError, take_turns

OURS = "teso_deploy.comparison.ours:ours"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Entrant:
    """An entrant to be timed: MODULE:FUNCTION that builds it in its process, and the settings for it."""

    name: str
    precision: str
    subject: str
    settings: dict[str, Any]


@dataclass
class Measured:
    """The seconds of every turn, and at the end ``peak_rss_mb`` and ``mask_iou`` by entrant."""

    timings: Timings
    ends: dict[str, dict[str, float | None]] = field(default_factory=dict)


def entrants(
    bundle: Bundle,
    size: tuple[int, int],
    *,
    precisions: Sequence[str],
    contenders: Sequence[Contender],
    threads: int,
    clip: Path,
) -> list[Entrant]:
    """List our entrant in each precision, then the contenders with a model of the bundle's sizes.

    Args:
        bundle: The bundle.
        size: Height and width of the picture.
        precisions: Our precisions.
        contenders: The contenders.
        threads: Threads for each.
        clip: The clip for our entrants.

    Raises:
        BundleError: Contenders are given, but their library can't build such a model.
    """
    common = {"size": list(size), "threads": threads}
    shared_settings = common | {"bundle": str(bundle.folder.absolute()), "clip": str(clip.absolute())}
    found = [Entrant(f"ours-{name}", name, OURS, shared_settings | {"precision": name}) for name in precisions]
    if contenders:
        sizes = mask2former_sizes(bundle.recipe)
        for contender in contenders:
            settings = common | {"sizes": sizes, "precision": contender.precision}
            found.append(Entrant(contender.name, contender.precision, contender.subject, settings))
    return found


def run(
    who: Sequence[Entrant], seconds: float, least_rounds: int = LEAST_ROUNDS, *, progress: Progress = lambda stage: None
) -> Measured:
    """Build all entrants one after the other, then alternate their turns. An entrant that fails is omitted.

    Args:
        who: The entrants.
        seconds: Time for the turns.
        least_rounds: The least number of rounds.
        progress: Called with the current stage. Default: nothing.
    """
    failures: dict[str, str] = {}
    turns: dict[Key, Turn] = {}
    with ExitStack() as stack:
        workers: dict[str, WorkerProcess] = {}
        for entrant in who:
            progress(f"{entrant.name}: building")
            worker = stack.enter_context(WorkerProcess(entrant.subject, entrant.settings))
            try:
                stages = worker.stages()
            except TurnFailedError as error:
                failures[entrant.name] = str(error)
                continue
            workers[entrant.name] = worker
            for stage in stages:
                turns[entrant.name, stage] = partial(worker.turn, stage)
        timings = take_turns(
            turns, seconds, least_rounds=least_rounds, progress=lambda done: progress(f"taking turns, {done:.0%}")
        )
        timings.failures |= failures
        measured = Measured(timings)
        for name, worker in workers.items():
            if name in timings.failures:
                continue
            progress(f"{name}: masks")
            try:
                measured.ends[name] = worker.finish()
            except TurnFailedError as error:
                timings.failures[name] = str(error)
    return measured


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _rows(who: Sequence[Entrant], measured: Measured) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for entrant in who:
        for (name, stage), times in measured.timings.seconds.items():
            if name != entrant.name or not times:
                continue
            timed = percentile_row(name, times)
            row = {"name": name, "stage": stage, "batch": 1, "precision": entrant.precision, **timed}
            if stage == "frame":
                end = measured.ends.get(name, {})
                row["fps"] = round(1 / float(np.median(times)), 2)
                row["mask_iou"] = _round(end.get("mask_iou"), 5)
                row["peak_rss_mb"] = _round(end.get("peak_rss_mb"), 0)
            rows.append(row)
    return rows


def report_of(
    bundle: Bundle, size: tuple[int, int], *, who: Sequence[Entrant], measured: Measured, environment: dict[str, Any]
) -> dict[str, Any]:
    """Make the JSON report: ``rows``, ``ratios`` (time of a contender's frame divided by ours), ``shares``.

    Args:
        bundle: The bundle.
        size: Height and width of the picture.
        who: The entrants.
        measured: Their times.
        environment: The machine.
    """
    rows = _rows(who, measured)
    frames = {row["name"]: row["p50_ms"] for row in rows if row["stage"] == "frame"}
    ours = [entrant.name for entrant in who if entrant.subject == OURS]
    ratios = {
        f"{name}/{our}": round(frames[name] / frames[our], 3)
        for name in frames
        for our in ours
        if our in frames and name != our and (name not in ours or ours.index(name) < ours.index(our))
    }
    stages = {(row["name"], row["stage"]): row["p50_ms"] for row in rows}
    shares = {
        f"{stage}/frame, {our}": round(stages[our, stage] / frames[our], 4)
        for our in ours
        for stage in ("new-sound", "new-cues", *bundle.program.names, "preprocess", "postprocess")
        if our in frames and (our, stage) in stages
    }
    sentence = "ours: from picture, sound and cues to labels, with a new picture in each frame. "
    if len(who) > len(ours):
        sentence += (
            "The others: from a normalised picture to mask logits, without adapters, sound, cues, fusion, resizing and "
            "labels; their mask_iou compares them with Hugging Face's model in PyTorch with the same weights. "
        )
    sentence += "peak_rss_mb is that of the whole process, with everything that the benchmark holds."
    return {
        "schema_version": 1,
        "rows": rows,
        "ratios": ratios,
        "shares": shares,
        "failures": measured.timings.failures,
        "rounds": measured.timings.rounds,
        "bound_by": sentence,
        "environment": environment | {"input_size": list(size)},
    }


def compare(
    bundle: Bundle,
    size: tuple[int, int],
    who: Sequence[Entrant],
    *,
    threads: int,
    seconds: float,
    libraries: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """Measure, and make the report. The machine's load is read before anything runs.

    Args:
        bundle: The bundle.
        size: Height and width of the picture.
        who: The entrants.
        threads: Threads for each.
        seconds: Time for the turns.
        libraries: Libraries whose versions are reported.
        progress: Called with the current stage.
    """
    environment = environment_of(threads, bundle, libraries)
    return report_of(bundle, size, who=who, measured=run(who, seconds, progress=progress), environment=environment)
