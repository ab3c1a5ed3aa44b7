"""A language model that answers the same question about one caption after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.contracts import Message
from teso_deploy.cues.language.constraint import RESERVE_TOKENS, ObjectConstraint
from teso_deploy.cues.language.conversation import write_out
from teso_deploy.cues.language.decoder import Cache, Decoder, open_session
from teso_deploy.cues.language.generation import generate
from teso_deploy.cues.model_bundle import TOKENIZER_FILE, ModelEntry
from teso_deploy.cues.tokens import Tokens
from teso_deploy.errors import BundleError, CueSourceError


@dataclass(frozen=True, slots=True)
class AnswerStats:
    """Measurements of one answer.

    Attributes:
        prompt_tokens: How many tokens the prompt has.
        kept_tokens: How many of them were in the cache.
        new_tokens: How many tokens the answer has.
        prefill_seconds: The time for the prompt's other tokens.
        first_token_seconds: The time from the question to the first token.
        decode_seconds: The time for all later tokens.
    """

    prompt_tokens: int
    kept_tokens: int
    new_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float


class LocalReasoner:
    """An exported decoder.

    It keeps the keys and values of all turns except the last. It computes them again only if one of these turns
    changes.

    Args:
        folder: The folder of the manifest.
        entry: The model's entry in the manifest.
        identity: The name of the model, its hash included.
        threads: How many threads it uses.
        keep_prefix: If False, all turns are computed each time. Default: True.
        max_new_tokens: The longest answer in tokens. Default: 400.

    Raises:
        BundleError: The model is damaged or can't write out a conversation.
        MissingExtraError: A package is not installed.
    """

    def __init__(
        self,
        folder: Path,
        entry: ModelEntry,
        *,
        identity: str,
        threads: int,
        keep_prefix: bool = True,
        max_new_tokens: int = 400,
    ) -> None:
        if entry.chat is None:
            raise BundleError(f"{entry.name} has no way to write out a conversation: export it as a reasoner")
        self.identity = identity
        self._entry, self._chat, self._keeps, self._limit = entry, entry.chat, keep_prefix, max_new_tokens
        base = folder / entry.folder
        self._tokens = Tokens(base / TOKENIZER_FILE)
        self._decoder = Decoder(base / entry.graphs["decoder"], entry.decoder, threads)
        embeddings = entry.graphs.get("embeddings")
        self._embeddings = None if embeddings is None else open_session(base / embeddings, threads)
        self._empty = self._decoder.empty()
        self._kept: tuple[list[int], Cache] = ([], self._empty)
        self._is_closed = threading.Event()
        self.last_stats = AnswerStats(0, 0, 0, 0.0, 0.0, 0.0)

    @cached_property
    def _pieces(self) -> list[str]:
        return self._tokens.pieces()

    def answer(self, messages: Sequence[Message], *, reasons: bool = True, constrained: bool = True) -> str:
        """Return the model's next message.

        Args:
            messages: The conversation, with the question last.
            reasons: If True, the model may write freely before the object. Default: True.
            constrained: If True, the answer ends with ``{"objects": […], "sounding": […]}``. Default: True.

        Raises:
            CueSourceError: The conversation is longer than the model's context.
        """
        ids = self._tokens.ids(write_out(messages, self._chat, self._tokens))
        context = self._entry.decoder.context
        if len(ids) + (RESERVE_TOKENS if constrained else 1) > context:
            raise CueSourceError(
                f"the prompt has {len(ids)} tokens, {self._entry.name} holds {context}: take a prompt with fewer shots"
            )
        began = time.perf_counter()
        kept_before = self._kept
        self._keep_prefix(ids, messages)
        prefix, cache = self._kept
        logits, cache = self._step(cache, np.array(ids[len(prefix) :], np.int64))
        prefilled = time.perf_counter()
        constraint = None
        if constrained:
            constraint = ObjectConstraint(self._pieces, self._entry.decoder.end, reasons, self._tokens.ids("\n"))
        first = list[float]()

        def step(cache: Cache, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float32], Cache]:
            if not first:  # this call passes the first token, which is known by now
                first.append(time.perf_counter())
            return self._step(cache, tokens)

        said = generate(
            step,
            logits,
            cache,
            end=self._entry.decoder.end,
            max_new_tokens=min(self._limit, context - len(ids)),
            constraint=constraint,
            should_stop=self._is_closed.is_set,
        )
        ended = time.perf_counter()
        first_at = first[0] if first else ended
        kept = len(prefix) if self._kept is kept_before else 0
        self.last_stats = AnswerStats(len(ids), kept, len(said), prefilled - began, first_at - began, ended - first_at)
        return self._tokens.text(said)

    def _keep_prefix(self, ids: list[int], messages: Sequence[Message]) -> None:
        """Compute the turns before the last one, unless the cache holds them."""
        kept, _ = self._kept
        if not self._keeps or (kept and ids[: len(kept)] == kept and len(kept) < len(ids)):
            return
        # Two conversations that differ only in their last turn share exactly the tokens before it.
        other = self._tokens.ids(write_out([*messages[:-1], Message("user", "…")], self._chat, self._tokens))
        common = next((k for k, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), 0)
        _, cache = self._step(self._empty, np.array(ids[:common], np.int64)) if common else (None, self._empty)
        self._kept = ids[:common], cache

    def _step(self, cache: Cache, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float32], Cache]:
        if self._embeddings is None:
            return self._decoder.step(cache, tokens)
        embedded = self._embeddings.run(None, {"input_ids": tokens[None]})[0][0]
        return self._decoder.step(cache, embedded)

    def close(self) -> None:
        """End a running answer. Any thread may call this, more than once."""
        self._is_closed.set()
