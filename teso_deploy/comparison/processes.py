"""The parent's side of a worker process."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from teso_deploy.comparison.turns import TurnFailedError
from teso_deploy.redaction import make_child_environment

#: A worker whose stdin is closed ends within this time, and so do the processes that it started.
GRACE_SECONDS = 10


class WorkerProcess:
    """A worker (:mod:`teso_deploy.comparison.worker`) as a context manager: it ends with the block.

    Every method raises :class:`TurnFailedError` if the worker died or reports a failure.

    Args:
        subject: MODULE:FUNCTION that builds what is timed.
        settings: The argument of this function.
    """

    def __init__(self, subject: str, settings: dict[str, Any]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [sys.executable, "-m", "teso_deploy.comparison.worker", subject, json.dumps(settings)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=make_child_environment(),
        )

    def stages(self) -> tuple[str, ...]:
        """Return what can be timed. Call it once and first: it waits until everything is built."""
        return tuple(self._reply()["stages"])

    def turn(self, stage: str) -> list[float]:
        """Run a stage a few times and return the seconds of each run."""
        return list(self._ask({"turn": stage})["seconds"])

    def finish(self) -> dict[str, float | None]:
        """Return ``peak_rss_mb`` and ``mask_iou``. The worker answers nothing after this."""
        return self._ask({"finish": True})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise TurnFailedError(self._cause()) from None
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise TurnFailedError(self._cause())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise TurnFailedError(reply["error"])
        return reply

    def _cause(self) -> str:
        """Say why the process ended: the signal, or the last line that it printed."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, as the system does when memory runs out"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"its process ended with code {code}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the rest of the buffer has no reader any more
            self._process.stdin.close()
        try:
            self._process.wait(timeout=0 if error else GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
