"""Text that others wrote, made safe to print: a server's answer, a file's metadata, a message of a library."""

from __future__ import annotations

import re
import unicodedata

#: Characters of foreign text that one message shows.
LIMIT = 300
#: Characters of a whole message. A path may have 4096.
MESSAGE_LIMIT = 1000
_MORE = "…"
#: Sequences that terminals obey: colours, titles, links, cursor movements.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]", re.DOTALL
)
#: Control characters beyond those that JSON escapes, and marks that turn text round or are not to be seen.
_HIDDEN = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def to_printable(text: str) -> str:
    """Return one line without characters that a terminal obeys or hides.

    Line ends, control characters, and marks that turn or hide text become a space. A byte that is not text in a file's
    name becomes ``�``. Spaces between words stay as they are, so that the names of files do.

    >>> to_printable("a\\x1b[31mred\\x1b[0m\\nteso-deploy: all is well")
    'ared teso-deploy: all is well'
    """
    text = _ESCAPES.sub("", text)
    if text.isprintable():
        return text.strip()
    characters = ("�" if "\ud800" <= c <= "\udfff" else c if c.isprintable() else "\n" for c in text)
    return re.sub(r"\n+", " ", re.sub(r" *\n[ \n]*", "\n", "".join(characters))).strip()


def replace_undecodable(text: str) -> str:
    """Return text that can be written as UTF-8: a byte that is not text in the name of a file becomes ``�``.

    >>> replace_undecodable("caf\\udce9.mp4")
    'caf�.mp4'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def escape_hidden(json_text: str) -> str:
    """Return JSON whose strings hold no raw character that a terminal obeys or hides; it says the same.

    JSON itself escapes the first 32 characters alone.

    >>> escape_hidden('"\u202e\x9b\x7f 犬"')
    '"\\\\u202e\\\\u009b\\\\u007f 犬"'
    """
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", json_text)


def to_one_line(text: object, limit: int = LIMIT) -> str:
    """Return foreign text as one printable line of at most ``limit`` characters, without runs of spaces.

    >>> to_one_line("Traceback:\\n    line 1", limit=12)
    'Traceback: …'
    """
    # A text of megabytes is cut first: what is cut off later is not worth cleaning.
    line = " ".join(to_printable(str(text)[: 20 * limit]).split())
    return line if len(line) <= limit else line[: limit - len(_MORE)] + _MORE


def shorten_middle(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Return at most ``limit`` characters of a message: what is wrong is at its beginning, what to do at its end.

    >>> shorten_middle("/tmp/" + "a" * 99 + " does not exist: name a video", limit=60)
    '/tmp/aaaaaaaaaaaaaaaaaaaaaa … a does not exist: name a video'
    """
    if len(text) <= limit:
        return text
    end = limit // 2
    return f"{text[: limit - end - 3]} {_MORE} {text[-end:].lstrip()}"


#: Marks that turn the direction of what follows.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_name(text: str) -> bool:
    """Return whether text has no character that ends a line, that a terminal obeys, or that turns what follows.

    Joiners and wide spaces are letters of names in many languages, though Python does not call them printable.

    >>> is_name("می\u200cخوانم"), is_name("a\\x1b[31m")
    (True, False)
    """
    return text.isprintable() or not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _TURNING for c in text
    )
