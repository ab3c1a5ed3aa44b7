"""Answers of a source, kept on disk: the same picture is never described twice."""

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
    """A source whose answers are kept by its identity and the pictures of the moment (default: in the user's cache).

    For sources that go by pictures alone: tags and masks are not looked at. ``is_fresh``: answers that are there are
    not taken. ``asked`` and ``found`` count the moments that the source was asked about, and those that it did not
    have to be.
    """

    def __init__(self, source: CueSource, folder: Path | None = None, *, is_fresh: bool = False) -> None:
        self._source, self._folder, self._is_fresh = source, folder or cache_folder("cues") / "answers", is_fresh
        self.name = source.name
        self.asked = self.found = 0

    @property
    def identity(self) -> str:
        """Of the source; of one on a server it may change with the first answer, when the model is known."""
        return self._source.identity

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """The kept answer, of the time of this picture, or that of the source. Raises what the source raises."""
        if not self._is_fresh and (stored := read_vouched(self._path(moment))) is not None:
            kept = json.loads(stored)
            if kept is not None:  # earlier versions wrote "null" also where a server's answer was not understood
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
        """Of the source."""
        self._source.close()
