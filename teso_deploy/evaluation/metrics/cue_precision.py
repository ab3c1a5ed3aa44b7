"""How well cues name what sounds, before and after the dynamic mask (REC#1 and REC#2 of the paper).

The formula of the paper's average precision is not public. Ours is the area below the curve of precision over recall of
one frame, in steps, averaged over frames. Before the mask all cues of a frame have the same rank; after it the accepted
ones are ranked by ξ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike

from teso_deploy.cues.table import list_variants
from teso_deploy.errors import DataError
from teso_deploy.evaluation.metrics.masks import Mean


class CuePrecision:
    """Adds up the average precision of the cues of frames.

    ``cue_precision`` counts all offered cues, ``masked_cue_precision`` those with ξ > 0. Frames in which nothing sounds
    are omitted. A word that sounds and is not offered counts as missed in both.
    """

    def __init__(self) -> None:
        self._offered, self._accepted = Mean(), Mean()

    def add(self, offered: Sequence[str], gate: ArrayLike, sounding: Collection[str]) -> None:
        """Add a frame.

        Args:
            offered: The names of the offered cues.
            gate: ξ of each of them. More numbers, of slots without a name, are ignored.
            sounding: The words that sound. A cue names a word if it or its singular or synonym is the word, or the same
                holds for the word. Several cues for one word count as one, with the highest ξ.

        Raises:
            DataError: A cue has no ξ.
        """
        gates = np.asarray(gate, np.float64).ravel()
        if len(gates) < len(offered):
            raise DataError(f"{len(offered)} cues have {len(gates)} gates: give one for each")
        if not sounding:
            return
        by_word: dict[str, float] = {}
        for name, value in zip(offered, gates, strict=False):
            word = find_word(name, sounding) or name
            by_word[word] = max(value, by_word.get(word, -np.inf))
        words = set(sounding)
        scores, relevant = np.array(list(by_word.values())), np.array([word in words for word in by_word], bool)
        self._offered.add(compute_average_precision(np.zeros(len(scores)), relevant, len(words)))
        accepted = scores > 0
        self._accepted.add(compute_average_precision(scores[accepted], relevant[accepted], len(words)))

    def values(self) -> dict[str, float | None]:
        """Both means; None if nothing sounds in any frame."""
        return {"cue_precision": self._offered.value, "masked_cue_precision": self._accepted.value}


def find_word(name: str, words: Collection[str]) -> str | None:
    """Return the word that a cue names; None if it names none of them.

    >>> find_word("Hens", ["dog", "chicken"]), find_word("cat", ["dog"])
    ('chicken', None)
    """
    spellings = set(list_variants(name))
    return next((word for word in words if spellings & set(list_variants(word))), None)


def compute_average_precision(scores: ArrayLike, relevant: ArrayLike, count: int) -> float:
    """Return the sum over distinct scores of the precision at that score times the gain in recall.

    Args:
        scores: (N,) score of each item; higher ones come first, and equal ones together.
        relevant: (N,) whether an item is right.
        count: How many right items there are, also those that are not among the N. At least 1.

    Returns:
        The average precision in [0, 1]; 0 without items.

    >>> compute_average_precision([0.9, 0.5], [False, True], 1), compute_average_precision([1, 1], [True, False], 2)
    (0.5, 0.25)
    """
    values, right = np.asarray(scores, np.float64).ravel(), np.asarray(relevant, bool).ravel()
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(right[order])
    # The last item of each group of equal scores: there all of the group has been counted.
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True)) if len(values) else np.zeros(0, int)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / count
    return float((precision * np.diff(recall, prepend=0.0)).sum())
