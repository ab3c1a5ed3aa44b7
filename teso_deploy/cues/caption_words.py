"""The words of a caption: its known nouns (TeSOn), and whether it mentions a name.

The paper (section 3.1, table 6) finds nouns with NLTK's tagger. A list of things that can be seen and heard needs no
tagger, and every word that it finds has an embedding.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from teso_deploy.cues.table import SYNONYMS, list_variants

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
#: Phrases that say nothing about the picture.
_FRAMES = re.compile(
    r"\b(?:the |an? )?(?:image|picture|photo|photograph|frame|scene|video)s?(?: (?:of|shows?|features?|depicts?))\b"
)
#: Word → other words for it that a caption may have.
_OTHER_WORDS: dict[str, set[str]] = {}
for _word, _meant in SYNONYMS.items():
    _OTHER_WORDS.setdefault(_meant, set()).add(_word)


def split_words(caption: str) -> list[str]:
    """Return the caption's words in lower case, without phrases such as "a photo of"."""
    return _WORD.findall(_FRAMES.sub(" ", caption.lower()).replace("’", "'"))


def find_nouns(caption: str, known: Collection[str], first: Collection[str] = ()) -> list[str]:
    """List the known words of a caption, without repetition: first those of ``first``, then in the caption's order.

    Of overlapping words the longest counts ("fire truck", not "truck"). Plurals and synonyms count as their known word.

    Args:
        caption: The caption.
        known: The words that are looked for, in lower case.
        first: Words that come first in the result. Default: none.

    >>> find_nouns("Two dogs next to a fire truck.", {"dog", "truck", "fire truck"})
    ['dog', 'fire truck']
    """
    words, longest = split_words(caption), max((name.count(" ") + 1 for name in known), default=0)
    found: dict[str, None] = {}
    place = 0
    while place < len(words):
        for length in range(min(longest, len(words) - place), 0, -1):
            spoken = " ".join(words[place : place + length])
            name = next((variant for variant in list_variants(spoken) if variant in known), None)
            if name is not None:
                found[name] = None
                place += length
                break
        else:
            place += 1
    return sorted(found, key=lambda name: name not in first)


def _yield_phrases(words: Sequence[str], longest: int = 4) -> Iterator[str]:
    for length in range(1, longest + 1):
        for place in range(len(words) - length + 1):
            yield " ".join(words[place : place + length])


def is_mentioned(caption: str, name: str) -> bool:
    """Return whether a caption contains a name or the noun that it ends in, also as plural or synonym.

    >>> is_mentioned("A man plays drums.", "drum kit"), is_mentioned("A man plays drums.", "dog")
    (True, False)
    """
    spoken = {variant for phrase in _yield_phrases(split_words(caption)) for variant in list_variants(phrase)}
    meant = set(list_variants(name)) | set(list_variants(name.split()[-1] if name.split() else name))
    meant |= {other for variant in meant for other in _OTHER_WORDS.get(variant, ())}
    return bool(spoken & meant)
