"""A table with measured numbers beside the quoted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from teso_deploy.evaluation.tables.schema import NOT_REPORTED, Column, Row, TableDefinition


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """The measured numbers of one row.

    Attributes:
        key: The row of the table that they belong to, or the key of a new row.
        name: The name of a new row.
        described: What was measured: bundle, cues.
        values: Column → the number, not scaled.
        reasons: Column → why it has no number.
    """

    key: str
    name: str
    described: str
    values: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """A row's numbers in one column, in the column's unit.

    Attributes:
        measured: Our number.
        quoted: The source's number.
        is_unreported: Whether the source shows that it has no number.
        reason: Why the row was measured and has no number of ours here.
    """

    measured: float | None = None
    quoted: float | None = None
    is_unreported: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FilledRow:
    """A row with all of its numbers.

    Attributes:
        key: Its key.
        name: Its name.
        labels: Its texts; as many as the table has headings for them.
        cells: Column → numbers.
        source: Where its quoted numbers are from; None if it has none.
        described: What was measured; empty if nothing was.
        rule: Whether a line separates it from the row above.
        note: A remark on it.
    """

    key: str
    name: str
    labels: tuple[str, ...]
    cells: Mapping[str, Cell]
    source: str | None = None
    described: str = ""
    rule: bool = False
    note: str = ""


def fill_rows(table: TableDefinition, measured: Sequence[MeasuredRow]) -> list[FilledRow]:
    """Put measured numbers beside the quoted ones.

    Args:
        table: The table.
        measured: The measured rows. Those that the table lacks come after its own.

    Returns:
        All rows, in the table's order.
    """
    by_key = {one.key: one for one in measured}
    rows = [_fill_row(table, row, by_key.get(row.key)) for row in table.rows]
    known = {row.key for row in table.rows}
    added = [one for one in measured if one.key not in known]
    for number, one in enumerate(added):
        row = Row(key=one.key, name=one.name, rule=number == 0 and bool(rows))
        rows.append(_fill_row(table, row, one))
    return rows


def _fill_row(table: TableDefinition, row: Row, measured: MeasuredRow | None) -> FilledRow:
    return FilledRow(
        key=row.key,
        name=row.name,
        labels=row.labels or ("",) * len(table.labels),
        cells={column.key: _fill_cell(column, row, measured) for column in table.columns},
        source=row.source if row.quoted else None,
        described="" if measured is None else measured.described,
        rule=row.rule,
        note=row.note,
    )


def _fill_cell(column: Column, row: Row, measured: MeasuredRow | None) -> Cell:
    quoted = row.quoted.get(column.key)
    value = None if measured is None else measured.values.get(column.key)
    return Cell(
        measured=None if value is None else value * column.scale,
        quoted=quoted if isinstance(quoted, int | float) else None,
        is_unreported=quoted == NOT_REPORTED,
        reason="" if measured is None or value is not None else measured.reasons.get(column.key, "not measured"),
    )


def make_report(
    name: str, table: TableDefinition, rows: Sequence[FilledRow], *, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the table's report, ready for JSON. Numbers have the unit of their column.

    Args:
        name: The table's name.
        table: The table.
        rows: Its rows.
        run: How the numbers were measured, and what became of the claims.
    """
    return {
        "schema_version": 1,
        "table": name,
        "title": table.title,
        "shows": table.shows,
        **run,
        "sources": table.sources,
        "notes": table.notes,
        "columns": [column.model_dump() for column in table.columns],
        "rows": [_report_row(table, row) for row in rows],
    }


def _report_row(table: TableDefinition, row: FilledRow) -> dict[str, Any]:
    return {
        "row": row.key,
        "name": row.name,
        "labels": dict(zip(table.labels, row.labels, strict=True)),
        "source": row.source,
        "measured_with": row.described or None,
        "note": row.note or None,
        "cells": {
            key: {"measured": cell.measured, "quoted": cell.quoted, "reason": cell.reason or None}
            for key, cell in row.cells.items()
        },
    }
