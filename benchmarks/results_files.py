"""Where results go, and how two results compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from teso_deploy.comparison.report import markdown
from teso_deploy.errors import InputNotFoundError
from teso_deploy.outputs import as_json, make_folder, write_text

RESULTS = Path(__file__).parent / "results"
#: Not in the repository: the numbers of quick runs mean little.
QUICK_RESULTS = RESULTS / "quick"
#: The columns that together identify a row.
LABELS = ("name", "stage", "precision", "size", "batch", "graph", "architecture", "bundle")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option that all benchmarks share."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder, or FILE.json; default: benchmarks/results")


def record(name: str, title: str, report: dict[str, Any], *, out: Path, page: str | None = None) -> None:
    """Print a report as a page, and write it as JSON with its environment.

    Args:
        name: Of the files in a folder, without an ending.
        title: The page's heading.
        report: With ``rows``, ``environment`` and ``bound_by``, a sentence on what the numbers hold for.
        out: A folder, for ``name.json`` and ``name.md``; or the JSON file itself.
        page: Markdown; default: the report's rows as a table.
    """
    text = markdown(title, report) if page is None else page
    if out.suffix == ".json":
        write_text(out, as_json(report))
    else:
        make_folder(out)
        write_text(out / f"{name}.json", as_json(report))
        write_text(out / f"{name}.md", text)
    print(text, end="")


def read_report(path: Path) -> dict[str, Any]:
    """Read a result. Raises :class:`InputNotFoundError` if the file is missing or is not one."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputNotFoundError(f"{path} can't be read as a result: {error}") from error
    if not isinstance(report, dict) or not isinstance(report.get("rows"), list):
        raise InputNotFoundError(f"{path} is not a result of a benchmark: it has no rows")
    return report


def _label(row: dict[str, Any]) -> str:
    return ", ".join(str(row[name]) for name in LABELS if name in row)


def compare_reports(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Each number that both results have: the row, the column, both values, and their ratio (after / before).

    Rows are matched by :data:`LABELS`; of rows with equal labels the last one counts.
    """
    old = {_label(row): row for row in before["rows"]}
    found = []
    for row in after["rows"]:
        label = _label(row)
        for column, value in row.items():
            previous = old.get(label, {}).get(column)
            numbers = [each for each in (previous, value) if isinstance(each, int | float)]
            if column in LABELS or len(numbers) < 2:
                continue
            ratio = round(value / previous, 4) if previous else None
            found.append({"row": label, "column": column, "before": previous, "after": value, "ratio": ratio})
    return found
