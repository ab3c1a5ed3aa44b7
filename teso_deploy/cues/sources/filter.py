"""The source ``filter:SOURCE``, the paper's baseline (table 6): predicted classes that SOURCE names too."""

from __future__ import annotations

from dataclasses import replace

from teso_deploy.cues.contracts import CueAnswer, CueMoment, CueSource
from teso_deploy.cues.sources.parts import SourceParts
from teso_deploy.cues.table import list_variants


class FilterSource:
    """The classes that the masks show and that another source names too."""

    name = "filter"

    def __init__(self, inner: CueSource) -> None:
        self._inner = inner

    @property
    def identity(self) -> str:
        """The identity of the inner source."""
        return f"filter:{self._inner.identity}"

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Predicted classes among the inner source's names; None if it has no answer or nothing was predicted."""
        if moment.predicted is None:
            return None
        answer = self._inner.ask(moment)
        if answer is None:
            return None
        named = {variant for name in answer.names for variant in list_variants(name)}
        names = tuple(label for label in moment.predicted if label in named)
        return replace(answer, names=names, confidences=(), source="filter")

    def close(self) -> None:
        """Close the inner source."""
        self._inner.close()


def make_filter(parts: SourceParts, inner: CueSource) -> CueSource:
    """Make a filter around another source."""
    return FilterSource(inner)
