"""The source ``llm`` (the paper's): an exported captioner and an exported language model."""

from __future__ import annotations

from teso_deploy.cues.contracts import CueSource
from teso_deploy.cues.sources.parts import SourceParts
from teso_deploy.cues.sources.reasoned import ReasonedSource


def make_llm(parts: SourceParts) -> CueSource:
    """Make the source. Raises :class:`CueError` if there is no captioner or no exported language model."""
    return ReasonedSource(
        "llm", captioner=parts.make_captioner("llm"), reasoner=parts.make_exported_reasoner("llm"), prompt=parts.prompt
    )
