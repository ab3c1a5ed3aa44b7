"""Answers kept on disk, so that the same picture is never described twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from teso_deploy.cues.contracts import CueAnswer, CueMoment, CueSource
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.resources import cache_folder

_NAMED = ("names", "confidences", "objects", "ungrounded")


class KeptAnswers:
    """A source whose answers are kept by its identity and the pictures of the moment.

    Use it for sources that look at pictures alone: tags and masks are not part of the key.

    Args:
        source: The source.
        folder: Where answers are kept. Default: a folder in the user's cache.
        is_fresh: If True, answers on disk are ignored and replaced.

    Attributes:
        asked: How many moments the source was asked about.
        found: How many answers were on disk.
    """

    def __init__(self, source: CueSource, folder: Path | None = None, *, is_fresh: bool = False) -> None:
        self._source, self._folder, self._is_fresh = source, folder or cache_folder("cues") / "answers", is_fresh
        self.name = source.name
        self.asked = self.found = 0

    @property
    def identity(self) -> str:
        """The source's identity. A server's identity may change with its first answer, which names its model."""
        return self._source.identity

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """The kept answer with this picture's time, or the source's answer. Raises what the source raises."""
        if not self._is_fresh and (stored := read_vouched(self._path(moment))) is not None:
            kept = json.loads(stored)
            # Earlier versions also wrote "null" for a server's answer that they did not understand.
            if kept is not None:
                self.found += 1
                if not kept:
                    return None
                kept |= {name: tuple(kept[name]) for name in _NAMED}
                return CueAnswer(**kept | {"of_seconds": moment.frame.pts_seconds})
        self.asked += 1
        answer = self._source.ask(moment)
        content = {} if answer is None else asdict(answer)
        write_vouched(self._path(moment), json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
        return answer

    def _path(self, moment: CueMoment) -> Path:
        digest = hashlib.sha256(self.identity.encode())
        for frame in (*moment.earlier, moment.frame):
            digest.update(str(frame.image.shape).encode())
            digest.update(frame.image.tobytes())
        return self._folder / f"{digest.hexdigest()}.json"

    def close(self) -> None:
        """Close the source."""
        self._source.close()
