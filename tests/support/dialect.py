"""The phrases that the prose check counts, each with the reason why it stops a reader."""

from __future__ import annotations

import re
from typing import NamedTuple


class Marker(NamedTuple):
    name: str
    pattern: re.Pattern[str]
    reason: str


def _compile(name: str, pattern: str, reason: str) -> Marker:
    # A phrase goes on across a line break.
    spaced = pattern.replace(" ", r"\s+")
    return Marker(name, re.compile(rf"\b(?:{spaced})\b", re.IGNORECASE), reason)


_NOUN_VERBS = "heard|seen|told|asked|said|shown|spoken|played|meant|wanted|known|left|given|taken|found"

MARKERS = (
    _compile("behind", "behind", "Write 'after' for a step or a time; 'behind' is a place."),
    _compile(
        "nobody", "nobody|whoever|everybody|anybody|somebody", "Code has callers, threads and sinks: name which one."
    ),
    _compile(
        "is no",
        r"(?<!there\s)(?:is|are|was|were|be|being|isn't|it's) no\b(?! longer| more| less| better| worse)",
        "Write 'X is not a Y'; 'there is no Y' is plain.",
    ),
    _compile(
        "has not",
        "(?:has|have|had) not (?:a|an|the|any|one|it|them|this|that|these|those|its|their|all|what|enough)",
        "Write 'X has no Y' or 'X does not have the Y'.",
    ),
    _compile("tell", "tell|tells|told|telling", "Write what happens: 'reports', 'passes', 'distinguishes'."),
    _compile("leave away", r"(?:leave|leaves|leaving|left)(?: [\w'’-]+){0,3} away", "Write 'omit'."),
    _compile("anew", "anew", "Write 'again'."),
    _compile("seldom", "seldom", "Write 'rarely'."),
    _compile(
        "so many", "so many|so much|so few|so long|so large a|so small a", "Write the number, 'until' or 'while'."
    ),
    _compile(
        "what is heard",
        rf"what (?:is|was|are|were|it|has been)(?: \w+)? (?:{_NOUN_VERBS})",
        "Name the thing: 'the audio window', 'the request'.",
    ),
    _compile(
        "where there is",
        "where there (?:is|are|was|were) (?:one|none|no|any|some)|where (?:it is|they are)(?: not)? there",
        "Write 'if one exists' or 'if it is installed'.",
    ),
    _compile("lies", "lies|lie|lay", "Things are in a folder; they do not lie there."),
    _compile("of its own", "of its own|of their own|of one's own|of our own", "Write 'a separate' or 'its own Y'."),
    _compile("ever", "ever again|once more", "Write 'again', or leave the word out."),
    _compile("of others", "of others|of strangers|strangers?'?", "Say whose: 'the user's arrays', 'untrusted text'."),
    _compile(
        "comes",
        "comes? (?:in )?(?:from )?of it|becomes? of it|what comes|come what may|what becomes",
        "Name the result.",
    ),
    _compile("at hand", "at hand|off the frames|by heart", "Say where the thing is."),
    _compile("let go", "lets? go of|letting go of", "Write 'release' or 'free'."),
)

#: The goal, in markers per 10,000 words of each kind of text; "all" is every marker together.
GOAL = {"all": 10.0, "behind": 2.0, "nobody": 1.0}
#: What the check allows now. Lower it as text is rewritten, until only the goal is left. Never raise it.
LIMITS = {
    "comments and docstrings": GOAL,
    "messages": GOAL,
    "documents": GOAL,
}
