"""Keep the kernels that TensorRT-RTX compiles for this GPU when an engine first runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teso_deploy.outputs import read_vouched, write_vouched


class JitCache:
    """The runtime cache of one engine. It contains code, so a file whose hash does not match is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runtime_cache: Any = None
        self._bytes = 0

    def use_in(self, runtime_config: Any) -> None:
        """Let the contexts of a runtime configuration use and fill this cache."""
        if self._runtime_cache is None:
            self._runtime_cache = runtime_config.create_runtime_cache()
            content = read_vouched(self.path)
            if content is not None and self._runtime_cache.deserialize(content):
                self._bytes = len(content)
        runtime_config.set_runtime_cache(self._runtime_cache)

    def save(self) -> None:
        """Write the cache if it has grown. A folder that can't be written is not an error."""
        if self._runtime_cache is None:
            return
        content = bytes(self._runtime_cache.serialize())
        if len(content) > self._bytes:
            write_vouched(self.path, content)
            self._bytes = len(content)
