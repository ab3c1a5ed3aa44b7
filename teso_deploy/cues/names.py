"""From names to F_T, the text features of the fusion. A person, a tagger or a language model gives the names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teso_deploy.bundle import Bundle
from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.singulars import make_singular
from teso_deploy.cues.table import CueTable, spell_plainly
from teso_deploy.cues.text_encoder import TextEncoder
from teso_deploy.types import Cues

#: A name as the table or the encoder spells it, and its embedding (d_T,).
_Named = tuple[str, NDArray[np.float32]]


class CueNames:
    """A bundle's table of words, and its text encoder for all other words."""

    def __init__(self, table: CueTable, encoder: TextEncoder | None = None) -> None:
        self._table, self._encoder = table, encoder

    @classmethod
    def open(cls, bundle: Bundle) -> CueNames:
        """Open the names of a bundle. Raises :class:`BundleError` for a damaged table."""
        return cls(CueTable.open(bundle), TextEncoder.open(bundle))

    def look_up_words(self, words: Sequence[str]) -> Cues:
        """Return the cues of the first N_T words that a person typed; without words :meth:`CueTable.none`.

        Raises :class:`CueError`, with the closest words, if the table lacks a word and the bundle has no encoder.
        Raises what :meth:`TextEncoder.embed` raises.
        """
        if self._encoder is None:
            return self._table.lookup(words)
        encoder = self._encoder
        embedded = (self._find_in_table(word) or self._encode(word, encoder) for word in words if word.strip())
        return self._table.fill(embedded, "manual")

    def look_up_answer(self, answer: CueAnswer) -> Cues:
        """Return the cues of the N_T most certain names of an answer, or of the first ones if it has no confidences.

        Without an encoder, a name that the table lacks is replaced by the noun that it ends in ("red fire truck", "fire
        truck", "truck"), or omitted. Names with the same replacement share one slot, with the highest confidence,
        unless the table keeps repeats. Raises what :meth:`TextEncoder.embed` raises.
        """
        names = answer.names
        if answer.confidences:
            names = tuple(names[k] for k in np.argsort(-np.array(answer.confidences), kind="stable"))
        named = (self._find(name) for name in names if name.strip())
        return self._table.fill((each for each in named if each is not None), answer.source)

    def _find(self, name: str) -> _Named | None:
        if (named := self._find_in_table(name)) is not None:
            return named
        return self._find_by_its_end(name) if self._encoder is None else self._encode(name, self._encoder)

    def _find_in_table(self, word: str) -> _Named | None:
        name = self._table.find(word)
        if self._table.keeps_repeats and self._encoder is not None and name != spell_plainly(word):
            return None  # the encoder embeds the word as it is written
        return None if name is None else (name, self._table.get_embedding(name))

    def _encode(self, word: str, encoder: TextEncoder) -> _Named:
        name = spell_plainly(word) if self._table.keeps_repeats else make_singular(spell_plainly(word))
        return name, encoder.embed(name)

    def _find_by_its_end(self, name: str) -> _Named | None:
        words = name.replace("_", " ").split()
        ends = (self._find_in_table(" ".join(words[start:])) for start in range(1, len(words)))
        return next((named for named in ends if named is not None), None)
