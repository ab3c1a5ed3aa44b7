"""Engines that were built on this machine, by what they are: the same question never takes minutes twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teso_deploy.errors import OutputError
from teso_deploy.resources import cache_folder


def content_key(parts: Mapping[str, Any]) -> str:
    """One name for everything that an engine depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


class EngineCache:
    """A folder of engines with their sidecars, shared by processes.

    Raises :class:`OutputError` where the folder can't be made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder("engines")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.folder} can't be written ({error.strerror}): name another with XDG_CACHE_HOME"
            ) from error

    def path(self, graph: str, key: str) -> Path:
        """Where the engine of a graph lies, or will."""
        return self.folder / f"{graph}-{key}.engine"

    def timing_cache_path(self, library_version: str, gpu: str) -> Path:
        """TensorRT's timings, of one version on one kind of GPU."""
        name = "".join(letter if letter.isalnum() else "-" for letter in gpu.lower())
        return self.folder / f"timings-{library_version}-{name}.cache"

    @contextmanager
    def locked(self, path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Nobody else builds this engine meanwhile. ``on_wait``: called when another process does.

        The lock is the kernel's: it ends with the process that holds it, however that ends.
        """
        with path.with_suffix(".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
