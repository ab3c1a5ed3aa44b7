"""A cache on disk for the exports of tests, shared by all test processes and checkouts of a user.

An entry is one file: a SHA-256, and the tar archive that it belongs to. The file is written under another name and
renamed, so an entry is complete or absent. An entry with a wrong digest is made again. ``TESO_TEST_CACHE`` names
another folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "TESO_TEST_CACHE"
#: Entries that no test used for this long are removed first. Then the oldest are removed until the rest fits the limit.
MAX_AGE_SECONDS = 14 * 24 * 3600.0
MAX_BYTES = 2 * 1024**3
#: An entry's time of use is updated at most this often.
TOUCH_SECONDS = 3600.0
DIGEST_LENGTH = 64


def cache_folder() -> Path:
    """Return the cache's folder: ``TESO_TEST_CACHE``, or a folder in the user's home."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache/teso-deploy/tests"


class DiskCache:
    """Files and folders by a key that names everything that decides their content."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES, max_age_seconds: float = MAX_AGE_SECONDS) -> None:
        self.folder = folder
        self._max_bytes, self._max_age_seconds = max_bytes, max_age_seconds

    def make(self, key: str, make: Callable[[Path], object], out: Path) -> None:
        """Put the entry ``key`` at ``out``, which must not exist. ``make`` writes it if the cache does not have it."""
        with self._locked(key):
            if self._restore(key, out):
                return
            make(out)
            self._store(key, out)

    def prune(self, now: float | None = None) -> None:
        """Remove old entries, then the oldest ones above the size limit, and leftovers of interrupted runs."""
        now = time.time() if now is None else now
        entries = []
        for path in self.folder.glob("*"):
            with suppress(OSError):  # another process removes it too
                state = path.stat()
                if path.suffix == ".tar":
                    entries.append((state.st_mtime, state.st_size, path))
                elif now - state.st_mtime > self._max_age_seconds:
                    path.unlink()
        kept = 0
        for changed, size, path in sorted(entries, reverse=True):
            kept += size
            if kept > self._max_bytes or now - changed > self._max_age_seconds:
                with suppress(OSError):
                    path.unlink()

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """One process makes an entry, and the others wait for it.

        The lock only saves work. Two processes that both make an entry, because the lock's file was removed between
        them, write the same content.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _restore(self, key: str, out: Path) -> bool:
        path = self.folder / f"{key}.tar"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return False
        digest, archive = data[:DIGEST_LENGTH], data[DIGEST_LENGTH:]
        if hashlib.sha256(archive).hexdigest().encode() != digest:
            path.unlink(missing_ok=True)
            return False
        with tempfile.TemporaryDirectory(dir=out.parent) as staged:
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(staged, filter="tar")
            (Path(staged) / "content").rename(out)
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > TOUCH_SECONDS:
                os.utime(path)
        return True

    def _store(self, key: str, made: Path) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            tar.add(made, "content")
        archive = stream.getvalue()
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=f"{key}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(archive).hexdigest().encode() + archive)
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(self.folder / f"{key}.tar")
