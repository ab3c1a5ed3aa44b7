"""``--json FILE|-`` of every command, and the bar and table for people."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from teso_deploy.outputs import as_json, check_file, write_text

STDOUT = Path("-")


def check_json(target: Path | None) -> None:
    """Refuse a file that can't be written, before work starts (:class:`OutputError`)."""
    if target is not None and target != STDOUT:
        check_file(target)


def write_json(target: Path | None, report: Any) -> None:
    """Write a report to a file, to stdout (``-``), or nowhere."""
    if target == STDOUT:
        sys.stdout.write(as_json(report))
    elif target is not None:
        write_text(target, as_json(report))


def shown_in(status: Status) -> Callable[[str], None]:
    """Shows what is worked on in a status line, as it is: brackets are no markup."""
    return lambda text: status.update(Text(text))


def say(console: Console, text: str) -> None:
    """Print a line that stays, as it is: brackets are no markup, and nothing is broken in two."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """A bar on a console that shows what is worked on."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
