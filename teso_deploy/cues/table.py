"""The words that a bundle has embeddings for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from teso_deploy.array_files import Expected
from teso_deploy.bundle import Bundle, TaggerEntry
from teso_deploy.cues.singulars import make_singular
from teso_deploy.errors import BundleError, CueError
from teso_deploy.text import is_name
from teso_deploy.types import Cues, CueSourceName

#: Typed word → the word that a table may have instead. Used only if the table lacks the typed word.
SYNONYMS = {
    "aeroplane": "airplane", "plane": "airplane", "jet": "airplane", "automobile": "car", "lorry": "truck",
    "telephone": "phone", "cellphone": "phone", "mobile phone": "phone", "sax": "saxophone", "drums": "drum kit",
    "drum set": "drum kit", "keyboard": "piano", "guitar": "electric guitar", "hen": "chicken", "puppy": "dog",
}  # fmt: skip


def spell_plainly(word: str) -> str:
    """Return a word in lower case, with single spaces."""
    return " ".join(word.lower().replace("_", " ").split())


def list_variants(word: str) -> list[str]:
    """List the spellings under which a table may have a word: in lower case, in the singular, and their synonyms.

    >>> list_variants("Hens")
    ['hens', 'hen', 'chicken']
    """
    word = spell_plainly(word)
    found = list(dict.fromkeys((word, make_singular(word))))
    return found + [SYNONYMS[name] for name in found if name in SYNONYMS]


#: The word whose embedding fills unused slots of a bundle with this kind of padding (``none-embedding``).
NO_CUE = "none"


def _read_words(names: NDArray[np.str_], what: str) -> list[str]:
    """Return the words of a table's file. Raises :class:`BundleError` for a word that can't be printed."""
    try:
        words: list[str] = names.tolist()
    except (ValueError, SystemError):  # code points beyond the last character
        words = [""]
    if unprintable := [word for word in words if not word or not is_name(word)]:
        raise BundleError(f"{what} has a word that can't be printed ({unprintable[0]!a:.60}); export the bundle again")
    return words


class CueTable:
    """Words (K) and their embeddings (K, d_T) float32, from which cues of N_T slots are made.

    ``pads``: True if slots without a cue hold the embedding of the word "none" and count as valid, as in the released
    code. ``keeps_repeats``: True if a repeated word takes several slots, as there. The default for both is False.
    """

    def __init__(
        self,
        names: Sequence[str],
        embeddings: NDArray[np.float32],
        *,
        max_cues: int,
        pads: bool = False,
        keeps_repeats: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.max_cues, self.keeps_repeats = max_cues, keeps_repeats
        self._embeddings = embeddings
        self._row = {name: row for row, name in enumerate(self.names)}
        self._plural = {make_singular(name): name for name in self.names}
        self._pads = pads
        if pads and NO_CUE not in self._row:
            raise BundleError(f"the cue table has no {NO_CUE!r} to pad with: export the bundle again")

    @classmethod
    def open(cls, bundle: Bundle) -> CueTable:
        """Open the bundle's table. A bundle without a table knows no words.

        Raises :class:`BundleError` if the table is damaged.
        """
        cue = bundle.manifest.cue
        if cue is None:  # the method has no cues
            return cls((), np.zeros((0, 0), np.float32), max_cues=0)
        if cue.table is None:
            return cls((), np.zeros((0, cue.dim), np.float32), max_cues=cue.max_cues)
        wanted = {"names": Expected("U", (None,)), "embeddings": Expected("f", (None, cue.dim))}
        arrays = bundle.arrays(cue.table, wanted)
        names, embeddings = arrays.get("names"), arrays.get("embeddings")
        if names is None or embeddings is None or len(embeddings) != len(names):
            raise BundleError(
                f"{bundle.folder}: {cue.table} is not {cue.dim} numbers for each name; export the bundle again"
            )
        words = _read_words(names, f"{bundle.folder}: {cue.table}")
        if not np.isfinite(embeddings).all():
            raise BundleError(f"{bundle.folder}: {cue.table} has numbers that are not finite; export the bundle again")
        return cls(
            words,
            embeddings.astype(np.float32),
            max_cues=cue.max_cues,
            pads=cue.padding == "none-embedding",
            keeps_repeats=cue.words == "raw",
        )

    def find(self, word: str) -> str | None:
        """Return the table's spelling of a word, found by singular, plural or synonym; None if it lacks the word."""
        found = list_variants(word)
        name = next((name for name in found if name in self._row), None)
        return name if name is not None else next((self._plural[name] for name in found if name in self._plural), None)

    def require(self, word: str) -> str:
        """Return :meth:`find`. Raises :class:`CueError`, with the closest words, if the table lacks the word."""
        if (name := self.find(word)) is not None:
            return name
        if not self.max_cues:
            raise CueError("the bundle's method takes no cues: run it without cues")
        close = difflib.get_close_matches(list_variants(word)[0], self.names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else f"it knows {self._examples()}"
        raise CueError(f"the bundle has no embedding for the cue {word!r}: {hint}")

    def _examples(self) -> str:
        more = f" and {len(self.names) - 8} more" if len(self.names) > 8 else ""
        return (", ".join(self.names[:8]) + more) or "no words; export it with a cue table"

    def get_embedding(self, name: str) -> NDArray[np.float32]:
        """Return the embedding (d_T,) of one of ``names``."""
        row: NDArray[np.float32] = self._embeddings[self._row[name]]
        return row

    def lookup(self, words: Sequence[str]) -> Cues:
        """Return the cues of the first N_T words; without words :meth:`none`.

        Raises :class:`CueError` for a word that the table lacks.
        """
        names = [self.require(word) for word in words if word.strip()]
        return self.fill(((name, self.get_embedding(name)) for name in names), "manual")

    def fill(self, embedded: Iterable[tuple[str, NDArray[np.float32]]], source: CueSourceName) -> Cues:
        """Return the cues of the first N_T names with their embeddings (d_T,); without names :meth:`none`.

        A repeated name is omitted, unless the table keeps repeats. Names beyond N_T are not read.
        """
        cues, found = self.none(), list[str]()
        for name, embedding in embedded:
            if self.keeps_repeats or name not in found:
                cues.embeddings[len(found)] = embedding
                cues.valid[len(found)] = True
                found.append(name)
            if len(found) == self.max_cues:
                break  # before the next name is embedded
        names = tuple(found)
        return Cues(names, cues.embeddings, cues.valid, source=source) if names else cues

    def select_tags(self, tags: NDArray[np.float32], tagger: TaggerEntry) -> Cues:
        """Return the N_T most certain tags (K,) that reach the threshold, as cues; without any :meth:`none`."""
        surest = np.argsort(-tags, kind="stable")[: self.max_cues]
        cues = self.lookup([tagger.words[k] for k in surest if tags[k] >= tagger.threshold])
        return replace(cues, source="tagger") if cues.names else cues

    def none(self) -> Cues:
        """Return cues without names: only padding, or zero rows that are not valid.

        With zero rows the network uses its trained fallback cue.
        """
        if self._pads:
            padding = np.repeat(self._embeddings[self._row[NO_CUE]][None], self.max_cues, axis=0)
            return Cues((), padding, np.ones(self.max_cues, np.bool_), source="none")
        embeddings = np.zeros((self.max_cues, self._embeddings.shape[1]), np.float32)
        return Cues((), embeddings, np.zeros(self.max_cues, np.bool_), source="none")
