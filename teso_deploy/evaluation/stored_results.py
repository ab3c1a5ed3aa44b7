"""Read the results folder of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.evaluation.results_folder import LINES, REPORT
from teso_deploy.text import to_one_line

#: Group, seed and name of a clip.
ClipKey = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class ClipScore:
    """The scores of one clip in one condition.

    Attributes:
        frames: How many frames were scored.
        values: Number → value; a number without a meaning for the clip is missing.
        class_sums: ``class_ious`` and ``class_f_scores`` → class → (sum over the frames, number of frames).
    """

    frames: int
    values: Mapping[str, float]
    class_sums: Mapping[str, Mapping[str, tuple[float, int]]]


@dataclass(frozen=True, slots=True)
class StoredResults:
    """The results of one evaluation.

    Attributes:
        path: The folder.
        report: The content of ``report.json``.
        clips: (group, condition) → clip → its scores.
    """

    path: Path
    report: Mapping[str, Any]
    clips: Mapping[tuple[str, str], Mapping[ClipKey, ClipScore]]

    @property
    def label(self) -> str:
        """The bundle and its backend, for tables."""
        return f"{self.report.get('bundle')} ({self.report.get('backend')})"


def read_results(path: Path) -> StoredResults:
    """Read the results folder of an evaluation.

    Args:
        path: The folder that `teso-deploy eval --out` wrote.

    Raises:
        InputNotFoundError: The folder does not exist.
        DataError: The evaluation was not finished, or a file is damaged.
    """
    if not path.is_dir():
        raise InputNotFoundError(f"no folder {to_one_line(path)}: name the folder that `teso-deploy eval --out` wrote")
    report = _read_report(path)
    clips: dict[tuple[str, str], dict[ClipKey, ClipScore]] = {}
    try:
        lines = (path / LINES).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path / LINES} can't be read: evaluate again") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            key = (str(entry["group"]), int(entry.get("seed", 0)), str(entry["clip"]))
            score = _parse_score(entry)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path / LINES}, line {number}, is damaged: evaluate again") from error
        clips.setdefault((key[0], str(entry.get("condition", ""))), {})[key] = score
    if not clips:
        raise DataError(f"{path / LINES} has no clips: evaluate again")
    return StoredResults(path, report, clips)


def _read_report(path: Path) -> dict[str, Any]:
    if not (path / REPORT).is_file():
        raise DataError(f"{path} has no {REPORT}: its evaluation was not finished, so run the same command again")
    try:
        report = json.loads((path / REPORT).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path / REPORT} is damaged: evaluate again") from error
    if not isinstance(report, dict) or "protocol" not in report or not isinstance(report.get("rows"), list):
        raise DataError(f"{path / REPORT} is not the report of an evaluation")
    return report


def _parse_score(entry: Mapping[str, Any]) -> ClipScore:
    values = {str(name): float(value) for name, value in entry["values"].items() if value is not None}
    sums = {
        name: {str(label): (float(total), int(frames)) for label, (total, frames) in entry[name].items()}
        for name in ("class_ious", "class_f_scores")
        if name in entry
    }
    return ClipScore(int(entry["frames"]), values, sums)
