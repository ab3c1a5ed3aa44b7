"""A finished table and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from teso_deploy.evaluation.tables.claims import Judgement, judge_claims
from teso_deploy.evaluation.tables.filling import FilledRow, fill_rows, make_report
from teso_deploy.evaluation.tables.grid import Grid, make_grid
from teso_deploy.evaluation.tables.measuring import Measured
from teso_deploy.evaluation.tables.picture import save_picture
from teso_deploy.evaluation.tables.schema import TableDefinition, list_shipped_tables
from teso_deploy.evaluation.tables.writers import write_csv, write_latex, write_markdown
from teso_deploy.outputs import as_json, make_folder, write_text

_ENDINGS = ("md", "json", "csv", "tex", "png")


@dataclass(frozen=True, slots=True)
class TableResult:
    """A table with its measured numbers.

    Attributes:
        name: The table's name.
        definition: The table.
        rows: Its rows.
        judgements: What became of its claims; empty if nothing was measured.
        evaluations: What is known of each evaluation, ready for JSON.
    """

    name: str
    definition: TableDefinition
    rows: Sequence[FilledRow]
    judgements: Sequence[Judgement]
    evaluations: Sequence[Mapping[str, Any]]

    @property
    def grid(self) -> Grid:
        """The table as text. The title of a shipped table says which one of the paper it is."""
        grid = make_grid(self.definition, self.rows)
        is_shipped = self.name in list_shipped_tables()
        return replace(grid, title=f"Table {self.name} of the paper: {grid.title}") if is_shipped else grid

    def make_report(self) -> dict[str, Any]:
        """Return the report, ready for JSON."""
        run = {"claims": [asdict(one) for one in self.judgements], "evaluations": list(self.evaluations)}
        return make_report(self.name, self.definition, self.rows, run=run)

    def write(self, folder: Path) -> None:
        """Write all formats to a folder, which is made if it is missing. Raises :class:`OutputError`."""
        make_folder(folder)
        page, report, numbers, latex, picture = list_outputs(folder, self.name)
        write_text(page, write_markdown(self.grid, self.judgements, describe_evaluations(self.evaluations)))
        write_text(report, as_json(self.make_report()))
        write_text(numbers, write_csv(self.definition, self.rows))
        write_text(latex, write_latex(self.grid, f"table-{self.name}"))
        save_picture(picture, self.grid)


def finish_table(name: str, definition: TableDefinition, measured: Measured, *, ours: str | None = None) -> TableResult:
    """Put measured numbers into a table, and judge its claims.

    Args:
        name: The table's name.
        definition: The table.
        measured: The measured rows; none: only quoted numbers are shown.
        ours: The key of the row that claims call ``ours``. Default: no row is.
    """
    rows = fill_rows(definition, measured.rows)
    judgements = judge_claims(definition, rows, ours) if measured.rows else []
    return TableResult(name, definition, rows, judgements, measured.reports)


def list_outputs(folder: Path, name: str) -> list[Path]:
    """Return the files of a table: Markdown, JSON, CSV, LaTeX, PNG."""
    return [folder / f"table-{name}.{ending}" for ending in _ENDINGS]


def describe_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each evaluation what was scored and how, in a line each. A folder's path is not part of it."""
    lines = []
    for one in evaluations:
        cues = Path(str(one["cues"])).name
        filters = ", which filter the masks" if one.get("filters_by_cues") else ""
        skipped = f"; {len(one['skipped'])} clips skipped" if one.get("skipped") else ""
        notes = "".join(f"; {note}" for note in one.get("notes", ()))
        data = f"{one['dataset']}: {one['data']} (fingerprint {str(one['fingerprint'])[:12]})"
        lines.append(
            f"{data}, protocol {one['protocol']}; "
            f"bundle {one['bundle']}, cues {cues}{filters}, {one['precision']} on {one['backend']}{skipped}{notes}"
        )
    return lines
