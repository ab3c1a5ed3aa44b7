"""The cache of engines that were built on this machine. Their names depend on all inputs of the build."""

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

from teso_deploy.backends.tensorrt.sidecar import SUFFIX, get_sidecar_path
from teso_deploy.errors import OutputError
from teso_deploy.resources import cache_folder

#: A build deletes engines that were not used for this long, and beyond this size the least recently used ones.
UNUSED_SECONDS = 90 * 86_400
MOST_BYTES = 32 << 30


def compute_content_key(parts: Mapping[str, Any]) -> str:
    """Hash all inputs of a build into one name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


class EngineCache:
    """A folder of engines with their sidecars, shared by processes.

    The folder is created readable for this user only. If it can't be created or written, engines can still be read from
    it, and only builds fail.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder("engines")
        with suppress(OSError):  # builds raise the error later; engines of a bundle need no folder
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, graph: str, key: str) -> Path:
        """The path of a graph's engine, whether it exists or not."""
        return self.folder / f"{graph}-{key}.engine"

    def has(self, path: Path) -> bool:
        """Whether an engine exists. The sidecar is written last, so an engine without one was interrupted."""
        return os.path.isfile(path) and os.path.isfile(get_sidecar_path(path))

    def mark_used(self, path: Path) -> None:
        """Note that an engine was used now; :meth:`prune` deletes the least recently used ones."""
        with suppress(OSError):  # a read-only folder, which is not pruned either
            os.utime(path)

    def timing_cache_path(self, library_version: str, gpu: str) -> Path:
        """The path of TensorRT's timings for one version on one kind of GPU."""
        name = "".join(letter if letter.isalnum() else "-" for letter in gpu.lower())
        return self.folder / f"timings-{library_version}-{name}.cache"

    @contextmanager
    def lock(self, path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep other processes from building this engine.

        The kernel holds the lock, so it ends with the process that took it, however that process ends.

        Args:
            path: The engine.
            on_wait: Called if another process is building the engine now. Default: ignored.

        Raises:
            OutputError: The folder can't be written.
        """
        try:
            file = path.with_suffix(".lock").open("w")
        except OSError as error:
            raise self._describe_unwritable(error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # a file system without locks
                raise self._describe_unwritable(error) from error
            yield

    def _describe_unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"the engine can't be stored in {self.folder} ({error.strerror}): name another folder with XDG_CACHE_HOME"
        )

    def prune(self) -> None:
        """Delete engines that were not used for long, and beyond the size limit the least recently used ones.

        Files that can't be deleted stay. Lock files stay as well, because another process may be about to lock one.
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
                    # Delete the sidecar first: then no process takes the engine any more.
                    get_sidecar_path(path).unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
