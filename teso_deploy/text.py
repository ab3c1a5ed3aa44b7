"""Making foreign text safe to print: a server's answer, a file's metadata, a library's message."""

from __future__ import annotations

import re
import unicodedata

#: The most characters of foreign text in one message.
LIMIT = 300
#: The most characters of a whole message. A path may have 4096.
MESSAGE_LIMIT = 1000
_MORE = "…"
#: Sequences that terminals execute: colours, titles, links, cursor movements.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]", re.DOTALL
)
#: Control characters that JSON does not escape, and invisible or direction-changing marks.
_HIDDEN = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def to_printable(text: str) -> str:
    """Return one line without characters that a terminal executes or hides.

    Line ends, control characters, and marks that reverse or hide text become a space. An undecodable byte in a file
    name becomes ``�``. Spaces between words stay, so that file names stay the same.
    >>> to_printable("a\\x1b[31mred\\x1b[0m\\nteso-deploy: all is well")
    'ared teso-deploy: all is well'
    """
    text = _ESCAPES.sub("", text)
    if text.isprintable():
        return text.strip()
    characters = ("�" if "\ud800" <= c <= "\udfff" else c if c.isprintable() else "\n" for c in text)
    return re.sub(r"\n+", " ", re.sub(r" *\n[ \n]*", "\n", "".join(characters))).strip()


def replace_undecodable(text: str) -> str:
    """Return text that can be written as UTF-8: an undecodable byte in a file name becomes ``�``.

    >>> replace_undecodable("caf\\udce9.mp4")
    'caf�.mp4'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def escape_hidden(json_text: str) -> str:
    """Escape the characters in JSON strings that a terminal executes or hides. The meaning stays the same.

    JSON itself escapes only the first 32 characters.

    >>> escape_hidden('"\u202e\x9b\x7f 犬"')
    '"\\\\u202e\\\\u009b\\\\u007f 犬"'
    """
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", json_text)


def to_one_line(text: object, limit: int = LIMIT) -> str:
    """Return foreign text as one printable line of at most ``limit`` characters, without runs of spaces.

    >>> to_one_line("Traceback:\\n    line 1", limit=12)
    'Traceback: …'
    """
    # Cut a text of megabytes first: cleaning the rest would be wasted work.
    line = " ".join(to_printable(str(text)[: 20 * limit]).split())
    return line if len(line) <= limit else line[: limit - len(_MORE)] + _MORE


def shorten_middle(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Return at most ``limit`` characters of a message. Keep the start (what is wrong) and the end (what to do).

    >>> shorten_middle("/tmp/" + "a" * 99 + " does not exist: name a video", limit=60)
    '/tmp/aaaaaaaaaaaaaaaaaaaaaa … a does not exist: name a video'
    """
    if len(text) <= limit:
        return text
    end = limit // 2
    return f"{text[: limit - end - 3]} {_MORE} {text[-end:].lstrip()}"


#: Marks that change the direction of the following text.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_name(text: str) -> bool:
    """Whether text has no line end, no character that a terminal executes, and no change of direction.

    Joiners and wide spaces are parts of names in many languages, although Python does not call them printable.

    >>> is_name("می\u200cخوانم"), is_name("a\\x1b[31m")
    (True, False)
    """
    return text.isprintable() or not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _TURNING for c in text
    )
