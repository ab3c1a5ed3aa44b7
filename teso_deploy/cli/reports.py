"""``--json FILE|-`` of every command, and the bars and tables that people read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from teso_deploy.cli.signals import printing
from teso_deploy.errors import OutputError
from teso_deploy.outputs import STDOUT, as_json, check_file, write_text
from teso_deploy.text import to_printable


def toml_file(name: str | None) -> Path | None:
    """Return the file that an option names; None if it names something shipped."""
    return Path(name) if name is not None and name.endswith(".toml") else None


def check_json(target: Path | None) -> None:
    """Refuse a file that can't be written, before work starts. Raises :class:`OutputError`."""
    if target == STDOUT and sys.stdout is None:
        raise OutputError("the report can't go to -: standard output is closed; name a file")
    if target is not None and target != STDOUT:
        check_file(target)


def write_json(target: Path | None, report: Any) -> None:
    """Write a report to a file, to stdout (``-``), or nowhere. Raises :class:`OutputError`."""
    if target == STDOUT:
        _print_json(report)
    elif target is not None:
        write_text(target, as_json(report))


def _print_json(report: Any) -> None:
    text = as_json(report)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal whose encoding has few characters
        text = json.dumps(json.loads(text), indent=1) + "\n"
    with printing():
        sys.stdout.write(text)


def as_markup(text: object) -> str:
    """Make foreign text safe for a table, a bar or a status line: one printable line, without markup in brackets."""
    return escape(to_printable(str(text)))


def list_shown(status: Status) -> Callable[[str], None]:
    """Return a function that shows its text in a status line, without markup in brackets."""
    return lambda text: status.update(Text(to_printable(text)))


def say(console: Console, text: str) -> None:
    """Print a line that stays. Brackets are not read as markup, and the line is not wrapped."""
    console.print(to_printable(text), markup=False, highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """Make a progress bar that names the current work."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
