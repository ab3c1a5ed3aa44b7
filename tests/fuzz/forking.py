"""Run command lines in forks of one process that has imported everything: a case costs milliseconds, not seconds.

``python -m tests.fuzz.forking`` is the server. It reads one request per line, forks, watches the child, and answers
with a line. It opens no model and starts no thread itself, so that forking is safe. :class:`ForkServer` is its client.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

#: Imported by the server before its first fork. Modules that are not installed are skipped.
PRELOADED = (
    "numpy", "av", "onnxruntime", "PIL.Image", "pydantic", "rich.console", "torch", "safetensors.torch", "tomllib",
    "concurrent.futures", "http.client", "ssl",
    "teso_deploy.cli.run", "teso_deploy.cli.verify", "teso_deploy.cli.cues", "teso_deploy.cli.export",
    "teso_deploy.cli.eval", "teso_deploy.cli.doctor", "teso_deploy.conversion.plan",
    "teso_deploy.conversion.bundle_export",
    "teso_deploy.conversion.pytorch_engine", "teso_deploy.models.assembly",
)  # fmt: skip
_PR_SET_CHILD_SUBREAPER = 36
_POLL_MILLISECONDS = 10
#: How long a process may take to end after its command has ended.
_GRACE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one command. ``memory_bytes``: in addition to the server's own memory."""

    cpu_seconds: int = 30
    wall_seconds: float = 120.0
    memory_bytes: int = 600 << 20
    file_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Request:
    """One command line.

    ``stdin``: a file. ``command``: a function ``module:name`` that replaces ``teso-deploy``. ``ends_fully``: end as any
    Python process does, which takes longer.
    """

    arguments: Sequence[str]
    folder: str
    stdout: str
    stderr: str
    stdin: str = os.devnull
    environment: dict[str, str] | None = None
    limits: Limits = Limits()
    command: str = "teso_deploy.cli:main"
    ends_fully: bool = True


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    ``stopped``: the limit that it exceeded. ``memory_bytes``: its peak beyond the server's memory.
    """

    code: int | None
    signal: int | None
    stopped: str | None
    seconds: float
    memory_bytes: int
    processes_left: int


class ForkServer:
    """The server in a separate process; a context manager. It runs one command at a time."""

    def __init__(self, environment: dict[str, str], preloaded: Sequence[str] = PRELOADED) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.forking", *preloaded],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[2],
        )

    def run(self, request: Request) -> Ended:
        """Run a command line to its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._process.wait(10)}")
        return Ended(**json.loads(line))

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def _own_bytes(process: int | str) -> int:
    """Return the private memory of a process, without mapped files such as libraries."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) * 1024


def _watch(child: int, limits: Limits) -> Ended:
    """Wait for the end of a child, and kill it if it exceeds a limit."""
    began, before, most = time.monotonic(), _own_bytes("self"), 0
    stopped: str | None = None
    descriptor = os.pidfd_open(child)
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while not poller.poll(_POLL_MILLISECONDS):
        most = max(most, _own_bytes(child) - before)
        if stopped is None and most > limits.memory_bytes:
            stopped = "memory"
        if stopped is None and time.monotonic() - began > limits.wall_seconds:
            stopped = "time"
        if stopped is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
    os.close(descriptor)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        stopped = "time"
    seconds = usage.ru_utime + usage.ru_stime
    return Ended(code if code >= 0 else None, -code if code < 0 else None, stopped, seconds, most, _end_orphans())


def _end_orphans() -> int:
    """Kill processes that a command left running, which are now this process's children. Return their number."""
    listing = Path(f"/proc/self/task/{os.getpid()}/children")
    until = time.monotonic() + _GRACE_SECONDS
    while (found := listing.read_text().split()) and time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.01)
    for process in found:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(int(process), signal.SIGKILL)
            os.waitpid(int(process), 0)
    return len(found)


def _prepare_child(request: dict[str, Any]) -> None:
    """Set the forked process up as a shell would: its own group, folder, streams and limits."""
    os.setsid()
    for number, (path, flags) in enumerate(
        (
            (request["stdin"], os.O_RDONLY),
            (request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        )
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["folder"])
    os.environ.update(request["environment"] or {})
    tempfile.tempdir = None
    limits = Limits(**request["limits"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.argv = ["teso-deploy", *request["arguments"]]
    faulthandler.enable()
    faulthandler.dump_traceback_later(limits.wall_seconds * 0.9)


def serve() -> dict[str, Any] | None:
    """Serve until the input ends. In a forked child this returns the request that the child must run."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            import_module(name)
    gc.collect()
    gc.freeze()
    waiting = b""
    while True:
        while b"\n" not in waiting:
            piece = os.read(0, 1 << 16)
            if not piece:
                return None
            waiting += piece
        line, _, waiting = waiting.partition(b"\n")
        request = json.loads(line)
        child = os.fork()
        if not child:
            _prepare_child(request)
            return dict(request)
        ended = _watch(child, Limits(**request["limits"]))
        os.write(1, json.dumps(asdict(ended)).encode() + b"\n")


def run_command(wanted: dict[str, Any]) -> None:
    """Run the command of a request, and end this process with its exit code.

    Unless the request ends fully, threads are waited for and exit functions run, but modules are not destroyed. For
    torch and similar libraries, that would take ten times as long as a small case.
    """
    module, _, function = wanted["command"].partition(":")
    command = getattr(import_module(module), function)
    if wanted["ends_fully"]:
        command()
        return
    code = 0
    try:
        command()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    wanted = serve()
    if wanted is not None:
        run_command(wanted)
