"""A text file of JSON lines. For files it appears at the end of the run; for streams it can be read while it grows."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from teso_deploy.outputs import explain_errors, open_growing, open_staged_file, replace_non_finite
from teso_deploy.sinks.contracts import InputKind
from teso_deploy.text import escape_hidden, replace_undecodable


class JsonLines:
    """Writes JSON lines; a context manager.

    Args:
        path: The file, a device or a pipe.
        kind: For files, the text appears when it is complete, and not at all after an error. For streams, each line can
            be read as soon as it is written.

    Raises:
        OutputError: The file can't be written.
    """

    def __init__(self, path: Path, kind: InputKind) -> None:
        self._path, self._is_growing = path, kind == "streams"
        self._stack = ExitStack()
        if self._is_growing:
            self._file = open_growing(path)
            self._stack.callback(self._file.close)
        else:
            self._file = self._stack.enter_context(open_staged_file(path))

    def write(self, line: object) -> None:
        """Write a line. Raises :class:`OutputError`."""
        text = json.dumps(replace_non_finite(line), ensure_ascii=False)
        with explain_errors(self._path):
            self._file.write(escape_hidden(replace_undecodable(text)).encode() + b"\n")
            if self._is_growing:
                self._file.flush()

    def close(self) -> None:
        """Finish the file. Raises :class:`OutputError`."""
        with explain_errors(self._path):
            self._stack.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with explain_errors(self._path):
            self._stack.__exit__(kind, error, trace)
