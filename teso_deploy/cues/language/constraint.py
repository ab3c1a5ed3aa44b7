"""Keeps a reasoner's answer in the form ``{"objects": ["…"], "sounding": ["…"]}``: other tokens are rejected."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.answers import MAX_NAME_CHARACTERS, MAX_NAME_WORDS
from teso_deploy.cues.language.generation import is_looping

FIELDS = ("objects", "sounding")
#: A list with more names than this is rambling.
MAX_NAMES = 12
#: This many tokens are reserved for the object. An answer that thinks aloud for longer is cut short.
RESERVE_TOKENS = 128
#: When fewer tokens are left, no new name is begun.
CLOSING_TOKENS = 24
#: This many of the most likely tokens are tried first. The others are tried only if none of them fits.
_FIRST = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """The part of an object that has been written; :meth:`after` continues it with a text.

    Attributes:
        rest: The characters that must come next.
        field: The index of the current list.
        name: The written part of the current name; None between names.
        names: The earlier names of the list.
        is_begun: True if the list has a name, or the beginning of one.
        is_closing: True if no new name may begin.
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
        """Return the shape after ``text``; None if the text breaks the form."""
        shape: Shape | None = self
        for character in text:
            if shape is None:
                return None
            shape = shape._with(character)
        return shape

    def closing(self) -> Shape:
        """Return this shape with no new name allowed."""
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
        # After a name is repeated, no new names are to be expected.
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
    """A :class:`Constraint` to one object, with free text before it if the model reasons.

    The object begins with the first brace. It begins at the latest when the model would end, when it repeats itself, or
    when ``RESERVE_TOKENS`` are left.

    Attributes:
        pieces: The text of every token.
        end: The tokens that end a model's answer.
        reasons: True if the model may write freely before the object.
        new_line: The tokens that are put before an object that is forced.
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
        """Choose the next token, see :meth:`Constraint.choose`."""
        if self._shape is None:
            token = int(np.argmax(logits))
            is_over = token in self.end or is_looping(self._said) or tokens_left <= RESERVE_TOKENS
            piece = self.pieces[token] if token < len(self.pieces) else ""  # the embedding table may be padded
            if not is_over and "{" not in piece:
                self._said.append(token)
                return token
            self._shape = Shape()
            if is_over:
                self._queue.extend(self.new_line)
            else:  # a piece may hold text before the brace, and a part of the object after it
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
        """Return the most likely token that the shape allows."""
        assert self._shape is not None
        first = np.argpartition(-logits, min(_FIRST, len(logits) - 1))[:_FIRST]
        for candidates in (first[np.argsort(-logits[first], kind="stable")], np.argsort(-logits, kind="stable")):
            for token in candidates:
                piece = self.pieces[token] if token < len(self.pieces) else ""
                # Some tokenizers begin every text with a blank, which then belongs to the first token.
                shape = self._shape.after(piece.removeprefix(" ") if self._is_first else piece) if piece else None
                if shape is not None:
                    self._shape, self._is_first = shape, False
                    return int(token)
        return None  # a vocabulary that lacks the characters of the object
