"""The folder of an evaluation: its report, the scores of each sample, and the state that a killed run resumes from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from teso_deploy.errors import OutputError
from teso_deploy.evaluation.scoring import Progress, SampleResult, ScoringObserver
from teso_deploy.outputs import as_json, check_folder, explain_errors, make_folder, replace_non_finite, write_whole
from teso_deploy.staging import clear_leftovers, is_staged

REPORT = "report.json"
TABLE = "table.md"
LINES = "clips.jsonl"
STATE = "state.json"
#: The state is written at most this often. What was scored since then is scored again after a kill.
_SECONDS_BETWEEN_STATES = 5.0


class ResultsFolder(ScoringObserver[Any]):
    """The folder of one evaluation. It is locked while it is open.

    Args:
        path: The folder. It may be new, empty, or of an evaluation with the same settings.
        settings: Everything on which the scores depend, ready for JSON.
        overwrite: If True, the results of an evaluation with other settings are replaced.

    Raises:
        OutputError: The folder can't be written, holds other files or other settings, or another run writes to it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self._key = hashlib.sha256(as_json(settings).encode()).hexdigest()
        check_folder(path)
        make_folder(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._lock()
            self._found = self._read_found(overwrite)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._lines: BinaryIO | None = None
        self._written = float("-inf")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another run writes to {self.path}: wait for it, or name another folder") from None
        except OSError:  # a file system without locks
            pass

    def _read_found(self, overwrite: bool) -> dict[str, Any]:
        """Return the stored state; empty if the folder has none, or if lines that it counts were removed."""
        clear_leftovers(self.path)
        check_results_folder(self.path)
        found = _read(self.path / STATE)
        if not found:
            return {}
        if found["settings_sha256"] == self._key:
            lines = self.path / LINES
            return found if lines.is_file() and lines.stat().st_size >= found["line_bytes"] else {}
        if not overwrite:
            raise OutputError(
                f"{self.path} has results of other settings, data, weights or version: name another folder, or replace "
                "them with --overwrite"
            )
        with explain_errors(self.path):
            for name in (STATE, REPORT, TABLE, LINES):
                (self.path / name).unlink(missing_ok=True)
        return {}

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()
        os.close(self._descriptor)

    def read_progress(self) -> Progress | None:
        """Return where an interrupted run was, and remove what it scored after that. None: at the beginning."""
        if "progress" not in self._found:
            return None
        with explain_errors(self.path), open(self.path / LINES, "ab") as lines:
            lines.truncate(self._found["line_bytes"])
        return Progress.from_dict(self._found["progress"])

    def read_lines(self) -> Iterator[dict[str, Any]]:
        """Yield the scores of the samples that were done before, see :meth:`read_progress`."""
        with explain_errors(self.path), open(self.path / LINES, "rb") as lines:
            yield from map(json.loads, lines)

    def see_sample(self, result: SampleResult[Any]) -> None:
        """Write the lines of a sample."""
        with explain_errors(self.path):
            if self._lines is None:
                self._lines = open(self.path / LINES, "ab" if "progress" in self._found else "wb")  # noqa: SIM115
            for line in result.lines:
                text = json.dumps(replace_non_finite(line), ensure_ascii=False, allow_nan=False)
                self._lines.write(text.encode() + b"\n")

    def see_batch(self, get_progress: Callable[[], Progress]) -> None:
        """Write the state, if the last one is some seconds old."""
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_STATES:
            self._write_state(get_progress())

    def see_end(self, get_progress: Callable[[], Progress]) -> None:
        """Write the last state, so that the same evaluation is not run again."""
        self._write_state(get_progress())

    def _write_state(self, progress: Progress) -> None:
        if self._lines is None:
            return
        with explain_errors(self.path):
            self._lines.flush()
            os.fsync(self._lines.fileno())
        state = {"settings_sha256": self._key, "line_bytes": self._lines.tell(), "progress": progress.as_dict()}
        write_whole(self.path / STATE, json.dumps(state).encode(), shown=self.path)
        self._written = time.monotonic()

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder whole. Raises :class:`OutputError`."""
        write_whole(self.path / name, text.encode(), shown=self.path)


def check_results_folder(path: Path) -> None:
    """Refuse a folder that holds anything but results of an evaluation, before work starts.

    Raises :class:`OutputError`. A folder that does not exist is new.
    """
    check_folder(path)
    names = {name for name in os.listdir(path) if not is_staged(name)} if path.is_dir() else set()
    if not names <= {LINES} and not _read(path / STATE):
        raise OutputError(f"{path} has files that are not of an evaluation: name an empty folder")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "settings_sha256" in found else {}
