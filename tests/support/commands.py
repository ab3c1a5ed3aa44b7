"""The command line, called from a test."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from teso_deploy.cli import main


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def teso(*arguments: object) -> Done:
    """Run ``teso-deploy`` with arguments, in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["teso-deploy", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def refused(*arguments: object, names: str) -> str:
    """Run a command, and check that it is refused in one sentence that contains ``names``."""
    done = teso(*arguments)
    assert done.code == 2, done
    lines = [line for line in done.err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("teso-deploy: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], done.err
    assert names in errors[0]
    assert "Traceback" not in done.err
    return errors[0]


def names_in(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
