"""The source ``tagger``: the words that the bundle's own tagger finds in the picture."""

from __future__ import annotations

from teso_deploy.bundle import TaggerEntry
from teso_deploy.cues.contracts import CueAnswer, CueMoment, CueSource
from teso_deploy.cues.sources.parts import SourceParts
from teso_deploy.errors import CueError, CueSourceError


class TaggerSource:
    """A source of the words that reach the tagger's threshold. Without such a word it has no answer."""

    name = "tagger"

    def __init__(self, tagger: TaggerEntry) -> None:
        self._tagger = tagger
        self.identity = f"tagger:{tagger.threshold}"

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Words above the threshold, the surest first."""
        if moment.tags is None:
            raise CueSourceError("the tagger gave no tags: use a bundle that has one")
        sure = sorted((-score, word) for word, score in moment.tags.items() if score >= self._tagger.threshold)
        if not sure:
            return None
        names = tuple(word for _, word in sure)
        scores = tuple(min(1.0, max(0.0, -score)) for score, _ in sure)
        return CueAnswer(names, "tagger", moment.frame.pts_seconds, scores, objects=names)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def make_tagger(parts: SourceParts) -> CueSource:
    """Make the source. Raises :class:`CueError` if the bundle has no tagger."""
    manifest = parts.bundle.manifest
    if manifest.tagger is None:
        raise CueError(f"bundle {manifest.name} has no tagger: name another source of cues")
    return TaggerSource(manifest.tagger)
