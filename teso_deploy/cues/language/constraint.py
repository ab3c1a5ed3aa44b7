"""What holds a reasoner to ``{"objects": ["…"], "sounding": ["…"]}``: tokens that would leave it are not taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.answers import MAX_NAME_CHARACTERS, MAX_NAME_WORDS
from teso_deploy.cues.language.generation import is_looping

FIELDS = ("objects", "sounding")
#: More names in a list are a ramble.
MAX_NAMES = 12
#: So many tokens are kept for the object: an answer that thinks aloud for longer is cut short.
RESERVE_TOKENS = 128
#: With fewer tokens left nothing new is begun.
CLOSING_TOKENS = 24
#: The surest tokens are looked at first; all the others only where none of them may come.
_FIRST = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """How far an object has been written; :meth:`after` says where a text leads.

    ``rest``: characters that must come next; ``field``: which list it is in; ``name``: of the name that is being
    written, None between names; ``names``: those before it.
    """

    rest: str = '{"objects": ['
    field: int = 0
    name: str | None = None
    names: tuple[str, ...] = ()
    is_begun: bool = False
    is_closing: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the object is closed."""
        return self.field == len(FIELDS) and not self.rest

    def after(self, text: str) -> Shape | None:
        """The shape after ``text``; None if that is not the beginning of such an object."""
        shape: Shape | None = self
        for character in text:
            if shape is None:
                return None
            shape = shape._with(character)
        return shape

    def closing(self) -> Shape:
        """The same, with nothing new begun."""
        return Shape(self.rest, self.field, self.name, self.names, self.is_begun, True)

    def _with(self, character: str) -> Shape | None:
        if self.rest:
            if character != self.rest[0]:
                return None
            return Shape(self.rest[1:], self.field, self.name, self.names, self.is_begun, self.is_closing)
        if self.is_whole:
            return self if character.isspace() else None
        if self.name is not None:
            return self._in_name(character)
        if character == "]" and (self.names or not self.is_begun):
            return self._next_list()
        if not self.names and character == '"' and not self.is_closing:
            return Shape("", self.field, "", self.names, True, self.is_closing)
        # Behind a name for the second time nothing new is to be expected.
        may_go_on = len(self.names) < MAX_NAMES and self.names[-1:] and self.names[-1] not in self.names[:-1]
        if character == "," and may_go_on and not self.is_closing:
            return Shape(' "', self.field, "", self.names, True, self.is_closing)
        return None

    def _next_list(self) -> Shape:
        following = self.field + 1
        rest = f', "{FIELDS[following]}": [' if following < len(FIELDS) else "}"
        return Shape(rest, following, None, (), False, self.is_closing)

    def _in_name(self, character: str) -> Shape | None:
        name = self.name or ""
        if character == '"':
            whole = name and not name.endswith((" ", "-", "'"))
            return Shape("", self.field, None, (*self.names, name), True, self.is_closing) if whole else None
        is_letter = character.isalpha() or (name != "" and character.isdecimal())
        joins = character in " -'" and name != "" and name[-1] not in " -'" and len(name) < MAX_NAME_CHARACTERS - 1
        if self.is_closing and name and name[-1] not in " -'":
            return None
        too_long = len(name) >= MAX_NAME_CHARACTERS or (character == " " and name.count(" ") + 1 >= MAX_NAME_WORDS)
        if not (is_letter or joins) or too_long:
            return None
        return Shape("", self.field, name + character, self.names, True, self.is_closing)


@dataclass
class ObjectConstraint:
    """See :class:`Constraint`. ``pieces``: the text of every token, ``end``: tokens that end a model's answer.

    ``reasons``: the model may say what it likes before the object; it begins with the first brace, at the latest when
    the model would end, goes round in circles, or has ``RESERVE_TOKENS`` left. ``new_line``: what is said before it
    then.
    """

    pieces: Sequence[str]
    end: Collection[int]
    reasons: bool
    new_line: Sequence[int] = ()
    _said: list[int] = field(default_factory=list)
    _queue: deque[int] = field(default_factory=deque)
    _shape: Shape | None = None
    _is_first: bool = False

    def __post_init__(self) -> None:
        self._shape, self._is_first = (None, False) if self.reasons else (Shape(), True)

    def choose(self, logits: NDArray[np.float32], tokens_left: int) -> int | None:
        """See :class:`Constraint`."""
        if self._shape is None:
            token = int(np.argmax(logits))
            is_over = token in self.end or is_looping(self._said) or tokens_left <= RESERVE_TOKENS
            piece = self.pieces[token] if token < len(self.pieces) else ""  # the table of words may be padded
            if not is_over and "{" not in piece:
                self._said.append(token)
                return token
            self._shape = Shape()
            if is_over:
                self._queue.extend(self.new_line)
            else:  # a piece may have more than the brace, and before it what was said
                before, _, after = piece.partition("{")
                if not before.strip() and (begun := Shape().after("{" + after)) is not None:
                    self._shape = begun
                    return token
        if self._queue:
            return self._queue.popleft()
        if self._shape.is_whole:
            return None
        if tokens_left <= CLOSING_TOKENS:
            self._shape = self._shape.closing()
        return self._allowed(logits)

    def _allowed(self, logits: NDArray[np.float32]) -> int | None:
        """The surest token that the shape allows."""
        assert self._shape is not None
        first = np.argpartition(-logits, min(_FIRST, len(logits) - 1))[:_FIRST]
        for candidates in (first[np.argsort(-logits[first], kind="stable")], np.argsort(-logits, kind="stable")):
            for token in candidates:
                piece = self.pieces[token] if token < len(self.pieces) else ""
                # Of tokenizers that begin every text with a blank, the first token has it.
                shape = self._shape.after(piece.removeprefix(" ") if self._is_first else piece) if piece else None
                if shape is not None:
                    self._shape, self._is_first = shape, False
                    return int(token)
        return None  # a vocabulary without the letters of the object
