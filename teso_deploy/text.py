"""Text that others wrote, made safe to print: a server's answer, a file's metadata, a message of a library."""

from __future__ import annotations

import re

#: Characters of foreign text that one message shows.
LIMIT = 300
_MORE = "…"
#: Sequences that terminals obey: colours, titles, links, cursor movements.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]", re.DOTALL
)


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


def to_one_line(text: object, limit: int = LIMIT) -> str:
    """Return foreign text as one printable line of at most ``limit`` characters, without runs of spaces.

    >>> to_one_line("Traceback:\\n    line 1", limit=12)
    'Traceback: …'
    """
    # A text of megabytes is cut first: what is cut off later is not worth cleaning.
    line = " ".join(to_printable(str(text)[: 20 * limit]).split())
    return line if len(line) <= limit else line[: limit - len(_MORE)] + _MORE
