"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from teso_deploy.evaluation.tables.claims import Judgement
from teso_deploy.evaluation.tables.filling import FilledRow
from teso_deploy.evaluation.tables.grid import Grid
from teso_deploy.evaluation.tables.schema import TableDefinition

_MARKDOWN = str.maketrans({"|": r"\|", "*": r"\*", "_": r"\_", "<": "&lt;", "`": r"\`", "[": r"\[", "]": r"\]"})
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "–": "--", "−": "$-$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "×": r"$\times$", "→": r"$\rightarrow$", "≤": r"$\le$", "≥": r"$\ge$", "ξ": r"$\xi$",
    "Δ": r"$\Delta$", "β": r"$\beta$", "τ": r"$\tau$", "²": "$^2$", "’": "'", "“": "``", "”": "''", "…": r"\dots{}",
    "Ω": r"$\Omega$",
}  # fmt: skip
_SPECIAL = re.compile("|".join(re.escape(one) for one in _LATEX))


def write_markdown(grid: Grid, judgements: Sequence[Judgement], facts: Sequence[str]) -> str:
    """Write a page: the table, its notes, what became of its claims, and how it was measured.

    Args:
        grid: The table.
        judgements: The claims; none are written if it is empty.
        facts: What the numbers hold for; none are written if it is empty.
    """
    headings = list(grid.headings[: grid.text_columns])
    numbers = iter(grid.headings[grid.text_columns :])
    for group, count in grid.groups:
        headings += [f"{group} {next(numbers)}".strip() for _ in range(count)]
    alignments = ["---"] * grid.text_columns + ["---:"] * (len(headings) - grid.text_columns)
    lines = [f"# {_escape(grid.title)}", "", _escape(grid.shows), ""]
    lines += [_make_line([_escape(heading) for heading in headings]), _make_line(alignments)]
    lines += [_make_line([_escape(cell) for cell in row]) for row in grid.rows]
    lines += ["", *(f"- {_escape(note)}" for note in grid.notes)]
    if judgements:
        lines += ["", "## Do the claims hold on our data?", ""]
        lines += ["| claim | row | verdict | numbers |", "|---|---|---|---|"]
        lines += [_make_line([_escape(one) for one in (j.says, j.row, j.verdict, j.details)]) for j in judgements]
    if facts:
        lines += ["", "## How was it measured?", ""]
        lines += [f"- {_escape(fact)}" for fact in facts]
    return "\n".join(lines) + "\n"


def _make_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return text.translate(_MARKDOWN)


def write_csv(table: TableDefinition, rows: Sequence[FilledRow]) -> str:
    """Write one line for each row's measured numbers and one for its quoted numbers, in the units of the columns."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["row", "name", *table.labels, "origin", "source", *(column.key for column in table.columns)])
    for row in rows:
        cells = [row.cells[column.key] for column in table.columns]
        if row.described:
            ours = ["" if cell.measured is None else cell.measured for cell in cells]
            lines.writerow([row.key, row.name, *row.labels, "measured", row.described, *ours])
        if row.source is not None or not row.described:
            quoted = ["" if cell.quoted is None else cell.quoted for cell in cells]
            lines.writerow([row.key, row.name, *row.labels, "quoted", row.source or "", *quoted])
    return file.getvalue()


def write_latex(grid: Grid, label: str) -> str:
    r"""Write a ``table`` with the rules of booktabs, and without any other package.

    Args:
        grid: The table.
        label: The name after ``tab:`` for ``\ref``.
    """
    columns = len(grid.headings)
    lines = [
        r"% In the preamble: \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(grid.title)}. {escape_latex(grid.shows)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9.:-]', '-', label)}}}",
        rf"\begin{{tabular}}{{{'l' * grid.text_columns}{'r' * (columns - grid.text_columns)}}}",
        r"\toprule",
    ]
    if any(name for name, _ in grid.groups):
        lines += _write_groups(grid)
    lines += [_make_row(grid.headings), r"\midrule"]
    for number, row in enumerate(grid.rows):
        lines += [r"\midrule", _make_row(row)] if number in grid.rules else [_make_row(row)]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    lines += [rf"\par\smallskip{{\footnotesize {escape_latex(note)}\par}}" for note in grid.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _write_groups(grid: Grid) -> list[str]:
    cells, rules, first = [""] * grid.text_columns, [], grid.text_columns + 1
    for name, count in grid.groups:
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(name)}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
        first += count
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _make_row(cells: Sequence[str]) -> str:
    row = " & ".join(escape_latex(cell) for cell in cells) + r" \\"
    # LaTeX would read a bracket at the start of a row as an argument of the command that ended the row above.
    return "{}" + row if row.startswith("[") else row


def escape_latex(text: str) -> str:
    """Write plain text for LaTeX.

    >>> print(escape_latex("66.02† (50 %), x_1"))
    66.02$^\\dagger$ (50 \\%), x\\_1
    """
    return _SPECIAL.sub(lambda found: _LATEX[found[0]], text)
