"""Merge the reports that the parts of ``gpu.sh`` wrote to a folder.

python -m benchmarks.gpu_report FOLDER --out FILE.json     writes FILE.md, too
python -m benchmarks.gpu_report --name                     the name of the GPU, for file names
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from teso_deploy.backends.cuda.opening import open_device
from teso_deploy.comparison.report import markdown
from teso_deploy.errors import InputNotFoundError, TesoError
from teso_deploy.outputs import as_json, check_file, write_text

TESTS = "tests"
#: The order in which gpu.sh runs them.
ORDER = (
    TESTS,
    "kernels",
    *(f"engines-{precision}-{batch}" for batch in (1, 8, 32) for precision in ("fp32", "fp16")),
    "live",
    "training",
    "finetuning",
)
REASON_CHARACTERS = 400


def slug(name: str) -> str:
    """Return ``nvidia-h100-80gb-hbm3`` for ``NVIDIA H100 80GB HBM3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _line(text: str | None) -> str:
    return " ".join((text or "").split())[:REASON_CHARACTERS]


def tests_of(text: str) -> dict[str, Any]:
    """Read pytest's JUnit file: outcomes, failures and skips with their reasons, and recorded properties."""
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    recorded: dict[str, str] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        recorded |= {one.get("name", ""): _line(one.get("value")) for one in case.iter("property")}
        ends = {kind: case.find(kind) for kind in ("failure", "error", "skipped")}
        outcome = next((kind for kind, found in ends.items() if found is not None), "passed")
        counts[outcome] += 1
        end = ends.get(outcome)
        if end is not None:
            rows.append({"name": case.get("name"), "outcome": outcome, "reason": _line(end.get("message"))})
    return {"schema_version": 1, **counts, "rows": rows, "recorded": recorded}


def _place(part: str) -> tuple[int, str]:
    """Return the sort key of a part. Parts that gpu.sh does not know come last."""
    return ORDER.index(part) if part in ORDER else len(ORDER), part


def merged(folder: Path) -> dict[str, Any]:
    """Return all reports of a folder by their parts, and why other parts have none.

    Raises :class:`InputNotFoundError` if the folder has no report.
    """
    parts: dict[str, Any] = {}
    failed = {path.stem: _line(path.read_text(encoding="utf-8")) for path in folder.glob("*.failed")}
    for path in folder.glob("*.json"):
        try:
            parts[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # the file was cut off
            failed.setdefault(path.stem, f"{path.name} is no report: {error}")
    results = folder / f"{TESTS}.xml"
    if results.is_file():
        try:
            parts[TESTS] = tests_of(results.read_text(encoding="utf-8"))
        except ElementTree.ParseError as error:
            failed.setdefault(TESTS, f"{results.name} is no report: {error}")
    if not (parts or failed):
        raise InputNotFoundError(f"{folder} holds no reports: run benchmarks/gpu.sh first")
    return {
        "schema_version": 1,
        "gpu": folder.resolve().name,
        "parts": {name: parts[name] for name in sorted(parts, key=_place)},
        "failed": {name: failed[name] for name in sorted(failed, key=_place)},
    }


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(columns), ["---"] * len(columns), *cells)]


def page(title: str, report: dict[str, Any]) -> str:
    """Format a part as Markdown: the harness's page, and the contenders that did not run."""
    alone = {key: value for key, value in report.items() if isinstance(value, str | int | float)}
    for key in ("schema_version", "bound_by"):
        alone.pop(key, None)
    shared = {"bound_by": "", **report, "environment": {**alone, **report.get("environment", {})}}
    lines = [markdown(title, shared)]
    if report.get("failures"):
        rows = [[one["name"], one["size"], one["batch"], one["reason"]] for one in report["failures"]]
        lines += _table(("did not run", "size", "batch", "why"), rows)
    return "\n".join(lines).rstrip() + "\n"


def tests_page(report: dict[str, Any]) -> str:
    """Format the tests as Markdown."""
    counts = [f"{report[kind]} {kind}" for kind in ("passed", "failure", "error", "skipped") if kind in report]
    lines = ["# tests", "", ", ".join(counts), ""]
    for name, columns, rows in (
        ("rows", ("test", "outcome", "why"), [list(row.values()) for row in report["rows"]]),
        ("recorded", ("recorded", ""), list(report["recorded"].items())),
    ):
        if report[name]:
            lines += [*_table(columns, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def whole_page(report: dict[str, Any]) -> str:
    """Format all parts as Markdown."""
    sections = [f"# {report['gpu']}\n"]
    if report["failed"]:
        sections.append("\n".join(_table(("failed", "why"), list(report["failed"].items()))) + "\n")
    for name, part in report["parts"].items():
        sections.append("#" + (tests_page(part) if name == TESTS else page(name, part)))
    return "\n".join(sections)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--name", action="store_true")
    options = parser.parse_args(arguments)
    if options.name == (options.folder is not None) or (options.out is None) != options.name:
        parser.error("give FOLDER and --out, or --name")
    try:
        if options.name:
            print(slug(open_device().name))
            return 0
        check_file(options.out)
        report = merged(options.folder)
        write_text(options.out, as_json(report))
        write_text(options.out.with_suffix(".md"), whole_page(report))
    except TesoError as error:
        parser.exit(error.exit_code, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
