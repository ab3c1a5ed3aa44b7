"""The cue words that a bundle brings embeddings for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teso_deploy.bundle import Bundle
from teso_deploy.errors import CueError
from teso_deploy.types import Cues


def variants(word: str) -> list[str]:
    """A word as typed, and the singulars it could be the plural of."""
    word = " ".join(word.lower().replace("_", " ").split())
    found = [word]
    for plural, singular in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", "")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            found.append(word[: -len(plural)] + singular)
    return found


class CueTable:
    """Words (K) and their embeddings (K, d_T) float32, handed out N_T at a time."""

    def __init__(self, names: Sequence[str], embeddings: NDArray[np.float32], max_cues: int) -> None:
        self.names = tuple(names)
        self.max_cues = max_cues
        self._embeddings = embeddings
        self._row = {name: row for row, name in enumerate(self.names)}

    @classmethod
    def open(cls, bundle: Bundle) -> CueTable:
        """The bundle's table; one without a table knows no word."""
        cue = bundle.manifest.cue
        if cue.table is None:
            return cls((), np.zeros((0, cue.dim), np.float32), cue.max_cues)
        arrays = bundle.arrays(cue.table)
        return cls(arrays["names"].tolist(), arrays["embeddings"].astype(np.float32), cue.max_cues)

    def known(self, word: str) -> str:
        """The table's spelling of a word, singular for plural; :class:`CueError` with the closest words."""
        for variant in variants(word):
            if variant in self._row:
                return variant
        close = difflib.get_close_matches(variants(word)[0], self.names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else "see the bundle's cues.npz"
        raise CueError(f"unknown cue {word!r}: {hint}")

    def lookup(self, words: Sequence[str]) -> Cues:
        """Cues of the first N_T different words; without any, no cue is valid (``source: fallback``)."""
        names = tuple(dict.fromkeys(self.known(word) for word in words if word.strip()))[: self.max_cues]
        embeddings = np.zeros((self.max_cues, self._embeddings.shape[1]), np.float32)
        valid = np.zeros(self.max_cues, np.bool_)
        for slot, name in enumerate(names):
            embeddings[slot] = self._embeddings[self._row[name]]
            valid[slot] = True
        return Cues(names, embeddings, valid, source="manual" if names else "fallback")
