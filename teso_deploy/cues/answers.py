"""Reads names out of a language model's answer. Whatever the model wrote, the result is valid names or none."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

#: If an answer is longer, only its two ends are read: long answers must not cost time, and the final answer comes last.
MAX_CHARACTERS = 20_000
#: A list with more names than this is rambling.
MAX_NAMES = 32
MAX_NAME_CHARACTERS = 40
MAX_NAME_WORDS = 4
#: Opening brackets that an answer may leave unclosed → their closing brackets.
_CLOSERS = {"{": "}", "[": "]"}
_NOTHING = {"", "none", "nothing", "no", "no object", "no objects", "no sounding object", "no sounding objects", "n/a",
            "na", "null", "nil", "empty", "unknown", "silence", "not applicable"}  # fmt: skip
_ARTICLES = re.compile(r"^(?:the|a|an|some|one|two|three|several|many)\s+", re.IGNORECASE)
_NAME = re.compile(r"[^\W\d_](?:[\w'’-]|\s(?=\w))*")
_LABELLED = re.compile(
    r"^[\W_]{0,8}(?:final\s+)?(?:answer|sounding(?:\s+objects?)?)[\W_]{0,4}?(?:\s{1,4}(?:is|are))?[\W_]{0,4}?"
    r"[:：=][ \t*]*(?P<names>[^\n\[\]{}]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_CONFIDENCES = ("confidence", "score", "probability")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+(?P<name>[^\n]+)$")
_SEPARATOR = re.compile(r"[,;/、，]|\s+(?:and|&)\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """Names in lower case, in their order, without repetition.

    ``sounding`` is None if the answer does not say what sounds. ``confidences`` holds one number (0 to 1) per sounding
    name. It is empty if any name has no number.
    """

    objects: tuple[str, ...]
    sounding: tuple[str, ...] | None
    confidences: tuple[float, ...] = ()

    @property
    def is_valid(self) -> bool:
        return self.sounding is not None


def read_answer(text: str) -> Answer:
    """Read the last statement of what sounds: ``{"objects": […], "sounding": […]}``, or a labelled line.

    It never raises. Junk, prose, another form, and cut-off or endless answers give an answer that is not valid.
    """
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS // 2] + "\n" + text[-MAX_CHARACTERS // 2 :]
    for found in _find_objects(text):
        lowered = {str(key).strip().lower().replace("_", " "): value for key, value in found.items()}
        sounding = next(
            (lowered[key] for key in ("sounding", "sounding objects", "sounding object") if key in lowered), _ABSENT
        )
        if sounding is not _ABSENT:
            listed = _read_names(sounding)
            if listed is not None:
                confidences = tuple(listed.values())
                said = tuple(confidence for confidence in confidences if confidence is not None)
                objects = _read_names(lowered.get("objects")) or listed
                return Answer(tuple(objects), tuple(listed), said if len(said) == len(confidences) else ())
    names = _find_labelled(text)
    return Answer(names or (), names)


_ABSENT = object()


def _find_objects(text: str) -> Iterator[Mapping[object, object]]:
    """Yield the JSON objects of a text from last to first. Common mistakes of models are repaired."""
    starts = [match.start() for match in re.finditer(r"\{", text)][-64:]
    decoder = json.JSONDecoder()
    for start in reversed(starts):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            found = _repair(text[start : start + 4000])
        if isinstance(found, Mapping):
            yield found


def _repair(text: str) -> object:
    """Parse an object with single quotes, trailing commas or a missing end. None if it can't be repaired."""
    closing: list[str] = []
    quote = ""
    end = len(text)
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[place - 1] != "\\" else quote
        elif character == '"' or (
            character == "'" and not (text[place - 1].isalnum() and text[place + 1 : place + 2].isalnum())
        ):
            quote = character
        elif character in _CLOSERS:
            closing.append(_CLOSERS[character])
        elif closing and character == closing[-1]:
            closing.pop()
            if not closing:
                end = place + 1
                break
    text = text[:end]
    if quote:  # the text ends within a name, which may be half a word
        text = text[: text.rfind(quote)]
    text = re.sub(r",\s*$", "", text)
    if closing and text.rstrip().endswith("["):  # a list that was cut off before its first name is unknown, not empty
        return None
    text += "".join(reversed(closing))
    text = re.sub(r",(\s*[\]}])", r"\1", text)
    for read in (json.loads, ast.literal_eval):
        try:
            found: object = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        return found
    return None


def _read_names(value: object) -> dict[str, float | None] | None:
    """Return the names in a list or a string, each with its confidence or None.

    The result is {} if the value says that nothing sounds, and None if it is neither list nor string. A confidence
    stands next to the name: ``{"name": …, "confidence": …}``, or ``{name: number}`` for all names.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        parts: Iterable[object] = _SEPARATOR.split(value)
    elif isinstance(value, Mapping):
        numbers = all(isinstance(number, bool | int | float) for number in value.values())
        parts = [{"name": name, "confidence": number} for name, number in value.items()] if numbers else ()
        if value and not numbers:
            return None
    elif isinstance(value, list | tuple | set):
        parts = value
    else:
        return None
    found: dict[str, float | None] = {}
    junk = 0
    for part in parts:
        confidence = None
        if isinstance(part, Mapping):
            confidence = _read_confidence(next((part[key] for key in _CONFIDENCES if key in part), None))
            part = next((part[key] for key in ("name", "object", "label") if key in part), None)
        name = as_name(part) if isinstance(part, str) else None
        if name:
            found.setdefault(name, confidence)
        junk += name is None
        if len(found) > MAX_NAMES:
            return None
    return found if found or not junk else None


def _read_confidence(value: object) -> float | None:
    """Return a confidence from 0 to 1, given as a fraction or in percent."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        return None
    return float(value) if value <= 1 else value / 100


def as_name(text: str) -> str | None:
    """Return a name in lower case, without article or decoration; "" for "nothing", None if it is not a name.

    >>> as_name(' **The acoustic guitar** '), as_name("none"), as_name("I think that it could be a guitar")
    ('acoustic guitar', '', None)
    """
    text = re.sub(r"\([^)]*\)", " ", text)
    name = " ".join(text.strip(" \t\r\n\"'`*_.:!?-–—[]{}<>").replace("_", " ").lower().split())
    if name in _NOTHING:
        return "" if name or not text.strip() else None
    name = _ARTICLES.sub("", name)
    if len(name) > MAX_NAME_CHARACTERS or len(name.split()) > MAX_NAME_WORDS or not _NAME.fullmatch(name):
        return None
    return name


def _find_labelled(text: str) -> tuple[str, ...] | None:
    """Return the names after the last "sounding objects:" or "answer:", on its line or as bullets below it."""
    for match in reversed(list(_LABELLED.finditer(text))):
        rest = match["names"].strip()
        if rest:
            names = _read_names(rest)
        else:
            bullets = []
            for line in text[match.end() :].strip("\n").splitlines():
                bullet = _BULLET.match(line)
                if bullet is None:
                    break
                bullets.append(bullet["name"])
            names = _read_names(bullets) if bullets else None
        if names is not None:
            return tuple(names)
    return None
