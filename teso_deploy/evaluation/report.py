"""Scores as JSON, as Markdown and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from teso_deploy.evaluation.contracts import Score
from teso_deploy.evaluation.protocols.registry import OpenProtocol


def make_report(protocol: OpenProtocol, scores: Sequence[Score], model: Mapping[str, Any]) -> dict[str, Any]:
    """Make the report of an evaluation, ready for JSON.

    Args:
        protocol: The protocol.
        scores: The score of each group.
        model: The tested model, and how it ran.
    """
    return {
        "schema_version": 2,
        "protocol": protocol.name,
        "data": protocol.data,
        **protocol.details,
        **model,
        "rows": [protocol.report_score(score) for score in scores],
    }


def format_figures(names: Iterable[str], score: Score) -> list[str]:
    """Format the numbers of a score, each with its spread. A number without a meaning is a dash."""
    cells = []
    for name in names:
        value, spread = score.values.get(name), score.spread.get(name)
        cells.append("–" if value is None else f"{value:.3f}" + ("" if spread is None else f" ± {spread:.3f}"))
    return cells


def format_markdown(protocol: OpenProtocol, scores: Sequence[Score]) -> str:
    """Make a table of all groups, and then one of the classes for each number that has values per class."""
    lines = [
        f"| row | samples | {' | '.join(protocol.figures.values())} |",
        "|---|---|" + "---|" * len(protocol.figures),
    ]
    for score in scores:
        count = f"{len(score.seeds)} × {score.samples}" if len(score.seeds) > 1 else str(score.samples)
        cells = " | ".join(format_figures(protocol.figures, score))
        lines.append(f"| {protocol.describe_row(score)} | {count} | {cells} |")
    for name in dict.fromkeys(name for score in scores for name in score.class_values):
        lines += _format_classes(protocol.figures.get(name, name), name, scores)
    return "\n".join(lines) + "\n"


def _format_classes(title: str, name: str, scores: Sequence[Score]) -> list[str]:
    shown = {score.condition or score.group: by_class for score in scores if (by_class := score.class_values.get(name))}
    lines = ["", f"| {title} of | {' | '.join(shown)} |", "|---|" + "---|" * len(shown)]
    for label in sorted({label for by_class in shown.values() for label in by_class}):
        values = (by_class.get(label) for by_class in shown.values())
        lines.append(f"| {label} | {' | '.join('–' if value is None else f'{value:.2f}' for value in values)} |")
    return lines
