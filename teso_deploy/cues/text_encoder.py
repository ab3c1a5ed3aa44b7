"""Embeddings of words that a bundle's table lacks, by the text encoder that made the table."""

from __future__ import annotations

import hashlib
import threading
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.bundle import Bundle, TextEncoderEntry
from teso_deploy.cues.tokens import Tokens
from teso_deploy.errors import BundleError
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.resources import cache_folder


class TextEncoder:
    """A text encoder that is loaded at the first word that is not in its cache on disk.

    ``folder``: the cache, by text and encoder. Default: a folder in the user's cache.
    """

    def __init__(self, bundle: Bundle, entry: TextEncoderEntry, folder: Path | None = None) -> None:
        self._bundle, self._entry = bundle, entry
        self._folder = folder or cache_folder("cues") / "embeddings"
        files = bundle.manifest.files
        hashes = [files[name].sha256 for name in (entry.graph, entry.weights, entry.tokenizer)]
        self._identity = ":".join(hashes)
        self._lock = threading.Lock()  # threads share a pipeline, but the encoder is loaded once
        #: How many words the graph has run for.
        self.computed = 0

    @classmethod
    def open(cls, bundle: Bundle) -> TextEncoder | None:
        """Open the bundle's encoder; None if it has none."""
        cue = bundle.manifest.cue
        return None if cue is None or cue.encoder is None else cls(bundle, cue.encoder)

    @cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self._bundle.path(self._entry.tokenizer))

    @cached_property
    def _engine(self) -> OnnxRuntimeEngine:
        engine = OnnxRuntimeEngine(self._bundle.path(self._entry.graph), threads=1)
        if engine.inputs != ("input_ids",) or "cue" not in engine.outputs:
            raise BundleError(
                f"{self._bundle.folder}: {self._entry.graph} does not take input_ids and give cue; "
                "export the bundle again"
            )
        return engine

    def embed(self, word: str) -> NDArray[np.float32]:
        """Embed a word (d_T,) in the bundle's template. Raises :class:`MissingExtraError`, :class:`BundleError`."""
        cue = self._bundle.manifest.cue
        assert cue is not None  # a bundle with a text encoder takes cues
        sentence = cue.template.replace("{cue}", word)
        path = self._folder / f"{hashlib.sha256(f'{self._identity}:{sentence}'.encode()).hexdigest()}.f32"
        kept = read_vouched(path)
        if kept is not None and len(kept) == 4 * cue.dim:
            return np.frombuffer(kept, "<f4").astype(np.float32)
        with self._lock:
            ids = np.array([self._tokens.sentence(sentence)], np.int64)
            found: NDArray[np.float32] = self._engine.run({"input_ids": ids})["cue"].reshape(-1)
        if found.shape != (cue.dim,):
            raise BundleError(
                f"{self._bundle.folder}: the text encoder gives {found.size} numbers, the bundle's cues have "
                f"{cue.dim}; export the bundle again"
            )
        with self._lock:
            self.computed += 1
        write_vouched(path, found.astype("<f4").tobytes())
        return found
