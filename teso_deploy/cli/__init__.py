"""The command line: one thin module for each command, imported when the command is called."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from itertools import takewhile
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from teso_deploy._version import __version__
from teso_deploy.cli.signals import end_by_exception, printing
from teso_deploy.errors import OutputError, TesoError
from teso_deploy.redaction import make_child_environment
from teso_deploy.requirements import find_outdated, write_upgrade_command
from teso_deploy.text import shorten_middle, to_one_line, to_printable

#: An address of a server. A library's error may quote it with its credentials.
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)\S+")
_LEAST_SECRET = 8
#: What the user can do about a system error that no command has explained.
_MENDABLE = {
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "name what the link should lead to",
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EFBIG: "name another place",
    errno.EMFILE: "allow more open files with `ulimit -n`",
    errno.ENFILE: "close other programs",
}
#: Command → its module in this package, and the function in it.
COMMANDS = {
    "doctor": ("doctor", "doctor"),
    "demo": ("demo", "demo"),
    "export": ("export", "export"),
    "export-cues": ("export_cues", "export_cues"),
    "verify": ("verify", "verify"),
    "bench": ("bench", "bench"),
    "run": ("run", "run"),
    "live": ("live", "live"),
    "cues": ("cues", "cues"),
    "eval": ("eval", "evaluate"),
    "check-data": ("check_data", "check_data"),
    "score": ("score", "score"),
    "compare": ("compare", "compare"),
    "figure": ("figure", "figure"),
    "table": ("table", "table"),
    "train": ("train", "train"),
    "calibrate": ("calibrate", "calibrate"),
}


class _Command(TyperCommand):
    """A command whose error for an unknown option names the commands that have this option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Compare by name: the class is from click, or from typer's own copy of click.
            if type(error).__name__ == "NoSuchOption":
                flag = str(getattr(error, "option_name", ""))
                if others := _find_commands_with(flag):
                    refused: Any = error
                    refused.message = f"{self.name} has no option {flag}: it is an option of {others}"
                    refused.possibilities = None
            raise


def _find_commands_with(flag: str) -> str:
    """The commands that have an option of this name, for a message."""
    found = []
    for name in COMMANDS:
        with suppress(ImportError):  # a package of that command is not installed
            parameters = _LazyCommands().get_command(None, name).params
            if any(flag in (*one.opts, *one.secondary_opts) for one in parameters):
                found.append(f"`{name}`")
    return ", ".join(found)


class _LazyCommands(TyperGroup):
    """Imports a command's module only when it is called, so that ``doctor`` works where others can't be loaded."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name]
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(cmd_name, cls=_Command)(getattr(import_module(f"teso_deploy.cli.{module}"), function))
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
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from; also if TESO_TRACEBACK is set.")
    ] = False,
) -> None:
    pass


def _hold_standard_streams() -> None:
    """Open descriptors 0 to 2 if they are closed. Otherwise printed text could go into a result file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)


def _print_error(text: str) -> None:
    with suppress(OSError):  # stderr is a pipe that ended
        if sys.stderr is not None:
            print(f"teso-deploy: {shorten_middle(to_printable(text))}", file=sys.stderr, flush=True)


def _describe_fault(error: BaseException) -> str:
    """Return one sentence about an unexpected error, without what may be secret."""
    if isinstance(error, MemoryError):
        return "there is not enough memory: close other programs, or run less at a time (--size, --threads)"
    text = _ADDRESS.sub(r"\1***", str(error))
    for name in os.environ.keys() - make_child_environment().keys():
        if len(os.environ[name]) >= _LEAST_SECRET:
            text = text.replace(os.environ[name], "***")
    shown = to_one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__, 160)
    advice = _describe_outdated() or "please report it with what `teso-deploy --traceback ...` shows"
    return f"this went wrong unexpectedly: {shown}; {advice}"


def _describe_outdated() -> str:
    """Say that a package is older than this one supports, which may be the cause of an error; "" if none is."""
    try:
        outdated = find_outdated()
    except Exception:  # the metadata can't be read: say nothing rather than hide the error
        return ""
    for package, (version, bound) in outdated.items():
        return f"{package} {version} is too old, which may be the cause: {write_upgrade_command(package, bound)}"
    return ""


def _report_error(error: BaseException, shows_all: bool) -> int:
    """Print an error as one sentence. Returns the exit code."""
    if shows_all:
        traceback.print_exception(error)
    if isinstance(error, OSError) and not isinstance(error, TesoError) and error.errno in _MENDABLE:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        where = _ADDRESS.sub(r"\1***", f"{name}: ") if name else ""
        error = OutputError(f"{where}{error.strerror}: {_MENDABLE[error.errno]}")
    _print_error(str(error) if isinstance(error, TesoError) else _describe_fault(error))
    return error.exit_code if isinstance(error, TesoError) else 1


def _run() -> int:
    """Run the command that the arguments name. Returns the exit code."""
    options = takewhile(lambda argument: argument.startswith("-"), sys.argv[1:])
    shows_all = "--traceback" in options or bool(os.environ.get("TESO_TRACEBACK"))

    def report_thread(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is not None:
            _report_error(failed.exc_value, shows_all)

    before, threading.excepthook = threading.excepthook, report_thread
    try:
        try:
            app(prog_name="teso-deploy")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        with printing():  # print the rest of the buffer
            pass
        return code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        return _report_error(error, shows_all)
    finally:
        threading.excepthook = before


def main() -> None:
    """Run the command line. An error is one sentence on stderr and an exit code; ``--traceback`` shows its origin."""
    _hold_standard_streams()
    end_by_exception()
    sys.exit(_run())
