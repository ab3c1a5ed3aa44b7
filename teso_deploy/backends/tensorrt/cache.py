"""Engines that were built on this machine, by what they are: the same question never takes minutes twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from teso_deploy.backends.tensorrt.sidecar import SUFFIX, sidecar_path
from teso_deploy.errors import OutputError
from teso_deploy.resources import cache_folder

#: A build drops what nobody has used for so long, and beyond so much what was not used for the longest time.
UNUSED_SECONDS = 90 * 86_400
MOST_BYTES = 32 << 30


def content_key(parts: Mapping[str, Any]) -> str:
    """One name for everything that an engine depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


class EngineCache:
    """A folder of engines with their sidecars, shared by processes.

    It is made, for this user alone, if it can be; only who builds has to write to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder("engines")
        with suppress(OSError):  # a bundle may bring all engines; who builds one is told by the lock
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, graph: str, key: str) -> Path:
        """Where the engine of a graph lies, or will."""
        return self.folder / f"{graph}-{key}.engine"

    def has(self, path: Path) -> bool:
        """Whether an engine is there; one without its sidecar is half a write."""
        return os.path.isfile(path) and os.path.isfile(sidecar_path(path))

    def used(self, path: Path) -> None:
        """An engine was used now: :meth:`prune` goes by that."""
        with suppress(OSError):  # of a folder that can only be read nothing is pruned
            os.utime(path)

    def timing_cache_path(self, library_version: str, gpu: str) -> Path:
        """TensorRT's timings, of one version on one kind of GPU."""
        name = "".join(letter if letter.isalnum() else "-" for letter in gpu.lower())
        return self.folder / f"timings-{library_version}-{name}.cache"

    @contextmanager
    def locked(self, path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Nobody else builds this engine meanwhile. ``on_wait``: called when another process does.

        The lock is the kernel's: it ends with the process that holds it, however that ends.
        Raises :class:`OutputError` where the folder can't be written.
        """
        try:
            file = path.with_suffix(".lock").open("w")
        except OSError as error:
            raise self._unwritable(error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # a file system without locks
                raise self._unwritable(error) from error
            yield

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"the engine can't be kept in {self.folder} ({error.strerror}): name another folder with XDG_CACHE_HOME"
        )

    def prune(self) -> None:
        """Drop what was not used for long, and the least recently used beyond a bound; what can't be dropped stays.

        Locks stay as well: another process may be about to take one that is deleted.
        """
        left = []
        with suppress(OSError):
            for path in self.folder.iterdir():
                with suppress(OSError):
                    if path.suffix != ".lock" and not path.name.endswith(f".engine{SUFFIX}") and path.is_file():
                        left.append((path.stat().st_mtime, path.stat().st_size, path))
        total, now = 0, time.time()
        for used_at, size, path in sorted(left, reverse=True):
            total += size
            if now - used_at > UNUSED_SECONDS or total > MOST_BYTES:
                with suppress(OSError):
                    sidecar_path(path).unlink(missing_ok=True)  # first, so that nobody takes the engine any more
                    path.unlink(missing_ok=True)
