"""The contract of sources of text cues: the question, the answer, and the models that a source may use.

A source may be slow: no frame waits for it (:mod:`teso_deploy.cues.worker`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from teso_deploy.cues.sources.registry import is_typed
from teso_deploy.types import CueSourceName, Frame

#: The options that give a source more time.
LONGER = "`cues --timeout`, `run --cue-timeout`"


@dataclass(frozen=True, slots=True)
class CueMoment:
    """The question to a source: a picture, and what the segmentation model found in it.

    Attributes:
        frame: The picture.
        earlier: Pictures before it, the oldest first, for captioners of videos.
        tags: Word → how sure the tagger is of it (0 to 1); None if the bundle has no tagger.
        predicted: The classes that the masks of this picture show; None if it was not segmented.
    """

    frame: Frame
    earlier: tuple[Frame, ...] = ()
    tags: Mapping[str, float] | None = None
    predicted: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CueAnswer:
    """The answer of a source.

    Attributes:
        names: Things in the picture that may sound, the surest first. Empty: nothing sounds.
        source: The source's name in the registry.
        of_seconds: The time of the picture.
        confidences: One for each name (0 to 1); empty if the source does not give any.
        objects: Everything that is visible.
        ungrounded: Names in the model's answer that were omitted because the caption does not have them.
        caption: The captioner's text.
        reasoning: The reasoner's text.
    """

    names: tuple[str, ...]
    source: CueSourceName
    of_seconds: float = 0.0
    confidences: tuple[float, ...] = ()
    objects: tuple[str, ...] = ()
    ungrounded: tuple[str, ...] = ()
    caption: str = ""
    reasoning: str = ""

    def __post_init__(self) -> None:
        if self.confidences and len(self.confidences) != len(self.names):
            raise ValueError(f"{len(self.confidences)} confidences for {len(self.names)} names: give one each, or none")

    @property
    def is_typed(self) -> bool:
        """Whether a person wrote it. Such cues hold for all of their span and do not age."""
        return is_typed(self.source)


class CueSource(Protocol):
    """A source of text cues.

    ``name`` is shown to people. ``identity`` names everything that an answer depends on except the moment (models by
    their hashes, prompts, settings). Answers are kept on disk under it.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Say what may sound; None if the source sees nothing. One thread at a time may call this.

        Raises :class:`NoCueAnswerError` if there is no answer about this picture, :class:`CueSourceError` if the source
        fails.
        """

    def close(self) -> None:
        """Close processes and connections; a running :meth:`ask` ends soon. Any thread may call it repeatedly."""


class Message(NamedTuple):
    """A turn of a conversation with a language model."""

    role: Literal["system", "user", "assistant"]
    content: str


class Captioner(Protocol):
    """A model that describes pictures."""

    @property
    def identity(self) -> str: ...

    def caption(self, moment: CueMoment) -> str:
        """Describe the picture. Raises :class:`CueSourceError`."""

    def close(self) -> None: ...


class Reasoner(Protocol):
    """A language model."""

    @property
    def identity(self) -> str: ...

    def answer(self, messages: Sequence[Message]) -> str:
        """Continue a conversation. Only its last message differs between calls. Raises :class:`CueSourceError`."""

    def close(self) -> None: ...
