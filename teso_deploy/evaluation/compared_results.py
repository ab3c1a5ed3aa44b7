"""Compare the results of two evaluations of the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teso_deploy.errors import DataError
from teso_deploy.evaluation.conditions import NORMAL
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.paired_bootstrap import (
    Difference,
    PairedClips,
    compare_numbers,
    pair_classes,
    pair_means,
)
from teso_deploy.evaluation.stored_results import ClipScore, StoredResults, read_results

#: Fields of a report that have to be equal: the numbers of two reports that differ in one can't be compared.
_SAME = ("protocol", "layout", "split")
_DROPPING = ("miou", "f_score")
_BACKGROUND = "background"
#: A number of the clips may differ from the report's by this much before it counts as another number.
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """The differences in one condition of a group.

    Attributes:
        group: The clips that are scored together.
        condition: The sound that they are scored with.
        clips: How many clips both evaluations have.
        differences: Number → its difference.
    """

    group: str
    condition: str
    clips: int
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class ComparedResults:
    """The differences of two evaluations.

    Attributes:
        first: The first evaluation.
        second: The second evaluation.
        rows: A row for each group and condition that both have.
        only_first: Names of clips that only the first has.
        only_second: Names of clips that only the second has.
        notes: What to know about the numbers, in sentences.
        resamples: Number of draws.
        seed: Seed of the draws.
    """

    first: StoredResults
    second: StoredResults
    rows: Sequence[ComparedRow]
    only_first: Sequence[str]
    only_second: Sequence[str]
    notes: Sequence[str]
    resamples: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "schema_version": 1,
            "first": _describe(self.first),
            "second": _describe(self.second),
            "protocol": self.first.report["protocol"],
            "resamples": self.resamples,
            "seed": self.seed,
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "notes": list(self.notes),
            "rows": [
                {
                    "group": row.group,
                    "condition": row.condition,
                    "clips": row.clips,
                    "differences": {
                        name: {
                            "first": found.first,
                            "second": found.second,
                            "difference": found.value,
                            "interval": found.interval,
                            "excludes_zero": found.excludes_zero,
                        }
                        for name, found in row.differences.items()
                    },
                }
                for row in self.rows
            ],
        }

    def as_markdown(self) -> str:
        """Make a table of all numbers."""
        lines = [
            f"A: {self.first.label}, B: {self.second.label}. Differences are B - A, with the 95 % interval of "
            f"{self.resamples} resamples of the clips.",
            "",
            "| group | condition | clips | number | A | B | B - A | 95 % | excludes 0 |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            for name, found in row.differences.items():
                cells = [row.group, row.condition or "–", str(row.clips), name, *format_difference(found)]
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {note}" for note in self.notes)]) + "\n"


def format_difference(found: Difference) -> list[str]:
    """Format both values, the difference, its interval, and whether the interval excludes 0."""
    interval = "–" if found.interval is None else f"{found.interval[0]:+.3f} to {found.interval[1]:+.3f}"
    verdict = "–" if found.interval is None else "yes" if found.excludes_zero else "no"
    return [f"{found.first:.3f}", f"{found.second:.3f}", f"{found.value:+.3f}", interval, verdict]


def _describe(results: StoredResults) -> dict[str, Any]:
    names = ("bundle", "weights_sha256", "backend", "precision", "cues", "data")
    return {"folder": str(results.path), **{name: results.report.get(name) for name in names}}


def compare_results(first: Path, second: Path, *, resamples: int = 10_000, seed: int = 0) -> ComparedResults:
    """Compare two evaluations by a paired bootstrap over their clips.

    Args:
        first: Results folder of the first evaluation.
        second: Results folder of the second.
        resamples: Number of draws. Default: 10,000.
        seed: Seed of the draws. Default: 0.

    Returns:
        The difference of each number in each condition, with its 95 % interval.

    Raises:
        InputNotFoundError: A folder does not exist.
        DataError: A folder is damaged or unfinished, or the two are of different protocols, data or splits.
    """
    one, other = read_results(first), read_results(second)
    _check_comparable(one, other)
    notes: list[str] = []
    rows = []
    groups = list(dict.fromkeys(group for group, _ in one.clips if any(group == also for also, _ in other.clips)))
    for group in groups:
        rows += _compare_group(one, other, group=group, notes=notes, resamples=resamples, seed=seed)
    if lost := sorted(f"{condition!r}" for _, condition in one.clips.keys() ^ other.clips.keys()):
        notes.append(f"only one of the two has the conditions {', '.join(dict.fromkeys(lost))}")
    names = [{key[2] for clips in results.clips.values() for key in clips} for results in (one, other)]
    only_first, only_second = sorted(names[0] - names[1]), sorted(names[1] - names[0])
    return ComparedResults(one, other, rows, only_first, only_second, notes, resamples, seed)


def _check_comparable(one: StoredResults, other: StoredResults) -> None:
    for name in _SAME:
        values = [results.report.get(name) for results in (one, other)]
        if values[0] != values[1]:
            raise DataError(
                f"{one.path} and {other.path} have different values of {name}, {values[0]!r} and {values[1]!r}: "
                "compare evaluations of the same data by the same protocol"
            )
    clips = [{key for of_condition in results.clips.values() for key in of_condition} for results in (one, other)]
    if not clips[0] & clips[1]:
        raise DataError(f"{one.path} and {other.path} have no clip in common: compare evaluations of the same data")
    prints = [results.report.get("fingerprint") for results in (one, other)]
    if clips[0] == clips[1] and prints[0] != prints[1]:
        raise DataError(
            f"the files of the clips of {one.path} and {other.path} differ: compare evaluations of the same data"
        )


def _compare_group(
    one: StoredResults, other: StoredResults, *, group: str, notes: list[str], resamples: int, seed: int
) -> list[ComparedRow]:
    """Compare all conditions of a group, with the same draws."""
    conditions = [condition for of, condition in one.clips if of == group and (group, condition) in other.clips]
    keys = sorted({key for condition in conditions for key in one.clips[group, condition]})
    pairs = {
        condition: [_pair(one, other, group=group, condition=condition, key=key) for key in keys]
        for condition in conditions
    }
    numbers: dict[str, PairedClips] = {}
    for condition in conditions:
        for name, number in _list_numbers(pairs[condition]).items():
            numbers[f"{name} of {condition}"] = number
    drops = {
        f"{name}_drop of {condition}": (f"{name} of {NORMAL.name}", f"{name} of {condition}")
        for condition in conditions
        for name in _DROPPING
        if condition != NORMAL.name and f"{name} of {NORMAL.name}" in numbers and f"{name} of {condition}" in numbers
    }
    if not numbers:
        return []
    found = compare_numbers(numbers, drops=drops, resamples=resamples, seed=seed)
    rows = []
    for condition in conditions:
        ending = f" of {condition}"
        own = {name.removesuffix(ending): difference for name, difference in found.items() if name.endswith(ending)}
        clips = sum(pair is not None for pair in pairs[condition])
        rows.append(ComparedRow(group, condition, clips, own))
    _note_other_numbers(one, rows, notes)
    return rows


def _pair(
    one: StoredResults, other: StoredResults, *, group: str, condition: str, key: tuple[str, int, str]
) -> tuple[ClipScore, ClipScore] | None:
    found = [results.clips[group, condition].get(key) for results in (one, other)]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def _list_numbers(pairs: Sequence[tuple[ClipScore, ClipScore] | None]) -> dict[str, PairedClips]:
    """Return every number that both evaluations have in a condition."""
    scores = [score for pair in pairs if pair is not None for score in pair]
    if not scores:
        return {}
    numbers = {name: pair_means(name, pairs) for name in dict.fromkeys(name for s in scores for name in s.values)}
    if any(score.class_sums for score in scores):
        # Values of single clips are not their parts: a mean over classes needs the sums.
        of_classes = ("miou", "f_score", "unbiased", "fsla")
        numbers = {name: number for name, number in numbers.items() if not name.startswith(of_classes)}
        known = list_avss_classes()
        means = {}
        for name, kind in (("miou", "class_ious"), ("f_score", "class_f_scores")):
            means[name] = pair_classes(kind, pairs, (_BACKGROUND, *known))
            means[f"{name}_without_background"] = pair_classes(kind, pairs, known)
        numbers = {**means, **numbers}
    return numbers


def _note_other_numbers(one: StoredResults, rows: Sequence[ComparedRow], notes: list[str]) -> None:
    """Note numbers that are not the report's, such as an F-score of batches of several clips."""
    reported = {(row.get("group"), row.get("condition")): row for row in one.report["rows"]}
    for row in rows:
        report = reported.get((row.group, row.condition))
        if report is None or report.get("samples") != row.clips:
            continue
        for name, found in row.differences.items():
            value = report.get("values", {}).get(name)
            note = f"{name} is the mean over clips, which differs from the report's {name}"
            if value is not None and abs(value - found.first) > _TOLERANCE and note not in notes:
                notes.append(note)
