"""A filled table as rows of text, which every format writes in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from teso_deploy.evaluation.tables.filling import Cell, FilledRow
from teso_deploy.evaluation.tables.schema import Column, TableDefinition

#: Marks a quoted number.
MARK = "†"
#: Stands where a number can't be given.
DASH = "–"
_ARROWS = {"higher": "↑", "lower": "↓"}


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text.

    Attributes:
        title: The title.
        shows: What it shows.
        text_columns: How many columns of text come first.
        groups: (heading, number of columns) above the headings, for all columns after those of text. A heading may be
            empty.
        headings: A heading for each column.
        rows: The rows.
        rules: The numbers of the rows that have a line above them.
        notes: Remarks below the table.
    """

    title: str
    shows: str
    text_columns: int
    groups: tuple[tuple[str, int], ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: frozenset[int]
    notes: tuple[str, ...]


class _Notes:
    """Numbered remarks; equal ones share a number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def refer(self, text: str) -> str:
        """Return the reference to a remark, with a space before it; empty for an empty remark."""
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"


def make_grid(table: TableDefinition, rows: Sequence[FilledRow]) -> Grid:
    """Write a table as text. Quoted numbers have a dagger, and stand in brackets beside a number of ours."""
    notes = _Notes()
    lines = tuple(
        (
            row.name + notes.refer(row.note),
            *row.labels,
            *(format_cell(column, row.cells[column.key], notes.refer) for column in table.columns),
        )
        for row in rows
    )
    numbered = [f"[{number}] {text}" for number, text in enumerate(notes.texts, start=1)]
    return Grid(
        title=table.title,
        shows=table.shows,
        text_columns=1 + len(table.labels),
        groups=tuple((name, len(list(found))) for name, found in groupby(column.group for column in table.columns)),
        headings=("Method", *table.labels, *map(format_heading, table.columns)),
        rows=lines,
        rules=frozenset(number for number, row in enumerate(rows) if row.rule and number),
        notes=(*_explain_quoted(table, rows), *numbered, *_explain_measured(rows), *table.notes),
    )


def format_heading(column: Column) -> str:
    """Return a column's heading with its unit and the direction in which numbers are better."""
    unit = " (%)" if column.shown == "percent" else ""
    return f"{column.heading}{unit} {_ARROWS[column.better]}"


def format_cell(column: Column, cell: Cell, refer: object = None) -> str:
    """Return the text of a cell; empty if no number was found.

    Args:
        column: Its column.
        cell: Its numbers.
        refer: Reason → reference to a note. Default: none.
    """
    quoted = _format_quoted(column, cell)
    if cell.measured is not None:
        ours = f"{cell.measured:.{column.decimals}f}"
    elif cell.reason:
        ours = DASH + (refer(cell.reason) if callable(refer) else "")
    else:
        return quoted
    return f"{ours} ({quoted})" if cell.quoted is not None else ours


def _format_quoted(column: Column, cell: Cell) -> str:
    if cell.quoted is not None:
        return f"{cell.quoted:.{column.decimals}f}{MARK}"
    return DASH + MARK if cell.is_unreported else ""


def _explain_quoted(table: TableDefinition, rows: Sequence[FilledRow]) -> list[str]:
    """Say where the quoted numbers are from, for each source with its rows."""
    lines = []
    for key, text in table.sources.items():
        if names := [row.name for row in rows if row.source == key]:
            of = "" if len(names) == sum(row.source is not None for row in rows) else f" ({', '.join(names)})"
            lines.append(f"{MARK} quoted, not measured here{of}: {text}")
    if any(not format_cell(c, row.cells[c.key]) for row in rows for c in table.columns):
        lines.append("An empty cell: the source has no such number, or no public source with it was found.")
    return lines


def _explain_measured(rows: Sequence[FilledRow]) -> list[str]:
    return [f"{row.name}: {row.described}." for row in rows if row.described]
