"""What is asked for text cues, and what it answers.

A source may take as long as it likes: nobody on the frames' path waits for it (:mod:`teso_deploy.cues.worker`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from teso_deploy.cues.sources.registry import is_typed
from teso_deploy.types import CueSourceName, Frame

#: Where a user gives a source more time.
LONGER = "`cues --timeout`, `run --cue-timeout`"


@dataclass(frozen=True, slots=True)
class CueMoment:
    """A picture that a source is asked about, and what the model itself has found in it.

    ``earlier``: pictures before it, oldest first, for captioners of videos. ``tags``: the tagger's words and how sure
    it is of each (0 … 1); None where the bundle has no tagger. ``predicted``: classes that the masks of this picture
    show; None where it was not segmented.
    """

    frame: Frame
    earlier: tuple[Frame, ...] = ()
    tags: Mapping[str, float] | None = None
    predicted: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CueAnswer:
    """Names of what may sound in the picture of ``of_seconds``, the surest first; none: nothing does.

    ``confidences``: one a name (0 … 1), or none at all where the source does not say. ``objects``: all that is to be
    seen. ``ungrounded``: names that were answered, and left out because the caption does not have them. ``caption`` and
    ``reasoning``: what the captioner and the reasoner wrote.
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
        """Whether a person wrote it: it holds for as long as it says, and does not age."""
        return is_typed(self.source)


class CueSource(Protocol):
    """Where text cues come from.

    ``name`` is for people. ``identity`` names all that an answer depends on but the moment (models by their hashes,
    prompts, settings): answers are kept under it.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """What may sound; None where it sees nothing. By one thread at a time.

        Raises :class:`NoCueAnswerError` where it says nothing about this picture, :class:`CueSourceError` where it
        fails.
        """

    def close(self) -> None:
        """Let go of processes and connections; an :meth:`ask` under way ends soon. From any thread, more than once."""


class Message(NamedTuple):
    """A turn of a conversation with a language model."""

    role: Literal["system", "user", "assistant"]
    content: str


class Captioner(Protocol):
    """Says what is to be seen."""

    @property
    def identity(self) -> str: ...

    def caption(self, moment: CueMoment) -> str:
        """A description. Raises :class:`CueSourceError`."""

    def close(self) -> None: ...


class Reasoner(Protocol):
    """A language model."""

    @property
    def identity(self) -> str: ...

    def answer(self, messages: Sequence[Message]) -> str:
        """What it says next, whole; only the last message differs from call to call. Raises :class:`CueSourceError`."""

    def close(self) -> None: ...
