"""The source ``nouns`` (TeSOn): the nouns of a caption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence

from teso_deploy.cues.caption_words import find_nouns
from teso_deploy.cues.contracts import Captioner, CueAnswer, CueMoment, CueSource
from teso_deploy.cues.sources.parts import SourceParts, describe
from teso_deploy.cues.table import CueTable


class NounSource:
    """The nouns of a caption, those of the model's classes first.

    Args:
        captioner: The model that describes the picture.
        known: Words that have an embedding; other nouns are not looked for.
        classes: The classes that the model can segment.
    """

    name = "nouns"

    def __init__(self, captioner: Captioner, known: Collection[str], classes: Sequence[str] = ()) -> None:
        self._captioner, self._known, self._classes = captioner, frozenset(known), frozenset(classes)
        words = json.dumps([sorted(self._known), sorted(self._classes)])
        self._words = hashlib.sha256(words.encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """The captioner's identity, and a hash of the words that are looked for."""
        return f"nouns:{self._captioner.identity}:{self._words}"

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Known nouns of the caption; None if it has none."""
        caption = describe(self._captioner, moment)
        names = tuple(find_nouns(caption, self._known, self._classes))
        if not names:
            return None
        return CueAnswer(names, "nouns", moment.frame.pts_seconds, objects=names, caption=caption)

    def close(self) -> None:
        """Close the captioner."""
        self._captioner.close()


def make_nouns(parts: SourceParts) -> CueSource:
    """Make the source. Raises :class:`CueError` if there is no captioner."""
    known = CueTable.open(parts.bundle).names
    return NounSource(parts.make_captioner("nouns"), known, parts.bundle.classes)
