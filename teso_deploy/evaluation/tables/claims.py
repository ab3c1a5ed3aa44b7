"""Whether what a paper claims holds on measured numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from teso_deploy.evaluation.tables.filling import FilledRow
from teso_deploy.evaluation.tables.schema import OURS, Claim, Column, TableDefinition

Verdict = Literal["holds", "does not hold", "can't be judged"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a claim.

    Attributes:
        says: The claim.
        verdict: Whether it holds.
        details: The numbers, or why there are none.
        row: The name of the row that was judged; empty if none was.
    """

    says: str
    verdict: Verdict
    details: str
    row: str = ""


def judge_claims(table: TableDefinition, rows: Sequence[FilledRow], ours: str | None = None) -> list[Judgement]:
    """Judge the claims of a table on its measured numbers. Quoted numbers prove nothing.

    Args:
        table: The table.
        rows: Its rows.
        ours: The key of the row that claims call ``ours``. Default: no row is.

    Returns:
        One judgement for each claim and row that it is about; at least one for each claim.
    """
    by_key = {row.key: row for row in rows}
    named = {**by_key, OURS: by_key[ours]} if ours in by_key else by_key
    columns = {column.key: column for column in table.columns}
    judgements = []
    for claim in table.claims:
        others = [row for row in rows if row.described and row.key != claim.than_row]
        judged = others if claim.row is None else [named[claim.row]] if claim.row in named else []
        judgements += [_judge_row(claim, row, columns=columns, rows=named) for row in judged]
        if not judged:
            judgements.append(Judgement(claim.says, "can't be judged", "nothing was measured for it"))
    return judgements


def _judge_row(
    claim: Claim, row: FilledRow, *, columns: Mapping[str, Column], rows: Mapping[str, FilledRow]
) -> Judgement:
    column = columns[claim.column]

    def show(number: float) -> str:
        return f"{number:.{column.decimals}f}{' %' if column.shown == 'percent' else ''}"

    found = row.cells[claim.column].measured
    if found is None:
        return Judgement(claim.says, "can't be judged", f"{column.heading} was not measured", row.name)
    if (limit := claim.above if claim.above is not None else claim.below) is not None:
        is_above = claim.above is not None
        holds = found > limit if is_above else found < limit
        details = f"it is {show(found)}, the limit is {show(limit)}"
    else:
        other_row = row if claim.than_row is None else rows.get(claim.than_row)
        other_column = claim.than_column or claim.column
        other = None if other_row is None else other_row.cells[other_column].measured
        if other_row is None or other is None:
            return Judgement(claim.says, "can't be judged", "what it is compared with was not measured", row.name)
        holds = found > other if column.better == "higher" else found < other
        compared = columns[other_column]
        against = f"{compared.group} {compared.heading}".strip() if claim.than_row is None else other_row.name
        details = f"it is {show(found)}, {against} has {show(other)}"
    return Judgement(claim.says, "holds" if holds else "does not hold", details, row.name)
