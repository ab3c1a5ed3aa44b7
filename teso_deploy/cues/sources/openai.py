"""The source ``openai``: the language model of an OpenAI-compatible server."""

from __future__ import annotations

from teso_deploy.cues.contracts import CueSource
from teso_deploy.cues.sources.parts import SourceParts
from teso_deploy.cues.sources.reasoned import ReasonedSource


def make_openai(parts: SourceParts) -> CueSource:
    """Make the source. Raises :class:`CueError` without a captioner, :class:`CueSourceError` without a server."""
    captioner = parts.make_captioner("openai")
    return ReasonedSource(
        "openai", captioner=captioner, reasoner=parts.make_served_reasoner("openai"), prompt=parts.prompt
    )
