"""The command line: one thin module a command, imported when its command is called."""

from __future__ import annotations

import signal
import sys
import threading
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from teso_deploy import __version__
from teso_deploy.errors import TesoError

#: Command → its module in this package and the function in it.
COMMANDS = {
    "doctor": ("doctor", "doctor"),
    "demo": ("demo", "demo"),
    "export": ("export", "export"),
    "export-cues": ("export_cues", "export_cues"),
    "verify": ("verify", "verify"),
    "bench": ("bench", "bench"),
    "run": ("run", "run"),
    "cues": ("cues", "cues"),
    "eval": ("eval", "evaluate"),
    "train": ("train", "train"),
    "calibrate": ("calibrate", "calibrate"),
}


class _LazyCommands(TyperGroup):
    """Imports a command's module only when it is called, so that ``doctor`` works where others can't be loaded."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name]
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(cmd_name)(getattr(import_module(f"teso_deploy.cli.{module}"), function))
        return typer.main.get_command(single)


app = typer.Typer(
    cls=_LazyCommands,
    help="Text-guided sounding-object segmentation: export it, check it, run it on video.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"teso-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _end(number: int, frame: object) -> None:
    # As an exception, so that whatever is half written vanishes on the way out.
    sys.exit(128 + number)


def main() -> None:
    """Entry point. An error that the user can mend is one sentence on stderr, and its exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    try:
        app(prog_name="teso-deploy")
    except TesoError as error:
        print(f"teso-deploy: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
