"""An exported captioner: a picture in, a sentence out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from teso_deploy.cues.contracts import Message
from teso_deploy.cues.language.conversation import write_out
from teso_deploy.cues.language.decoder import Cache, Decoder, open_session
from teso_deploy.cues.language.generation import generate
from teso_deploy.cues.language.pictures import prepare_picture
from teso_deploy.cues.model_bundle import TOKENIZER_FILE, ModelEntry
from teso_deploy.cues.tokens import Tokens
from teso_deploy.errors import BundleError


class LocalCaptioner:
    """A captioner: a vision-encoder-decoder, a pix2struct or a LLaVA. Only LLaVA uses the prompt.

    Args:
        folder: The folder of the manifest.
        entry: The model's entry in the manifest.
        identity: The name of the model, its hash included.
        threads: How many threads it uses.
        max_new_tokens: The longest caption in tokens. Default: 96.

    Raises:
        BundleError: The model is damaged or can't take pictures.
        MissingExtraError: A package is not installed.
    """

    def __init__(
        self, folder: Path, entry: ModelEntry, *, identity: str, threads: int, max_new_tokens: int = 96
    ) -> None:
        if entry.image is None:
            raise BundleError(f"{entry.name} takes no pictures: export it as a captioner")
        self.identity, self._entry, self._image, self._limit = identity, entry, entry.image, max_new_tokens
        base = folder / entry.folder
        self._tokens = Tokens(base / TOKENIZER_FILE)
        self._decoder = Decoder(base / entry.graphs["decoder"], entry.decoder, threads)
        self._graphs = {
            name: open_session(base / file, threads) for name, file in entry.graphs.items() if name != "decoder"
        }
        self._is_closed = threading.Event()

    def caption(self, image: NDArray[np.uint8], prompt: str = "") -> str:
        """Describe a picture (H, W, 3) uint8 RGB."""
        said = self._caption_by_llava(image, prompt) if self._entry.kind == "llava" else self._caption_by_encoder(image)
        return " ".join(self._tokens.text(said).split())

    def close(self) -> None:
        """End a running caption. Any thread may call this, more than once."""
        self._is_closed.set()

    def _caption_by_encoder(self, image: NDArray[np.uint8]) -> list[int]:
        shown = prepare_picture(image, self._image)
        hidden = self._graphs["encoder"].run(["last_hidden_state"], shown)[0]
        start = np.array(self._entry.decoder.start, np.int64)
        # These are all inputs that a decoder may take at its first word. Some graphs only use the shape.
        given = {"encoder_hidden_states": hidden, "input_ids": start[None], "attention_mask": np.ones_like(start[None])}
        if "attention_mask" in shown:
            given["encoder_attention_mask"] = shown["attention_mask"]
        extras = _run_graph(self._graphs["picture"], given)
        if "attention_mask" in shown:
            extras["encoder_attention_mask"] = onnxruntime.OrtValue.ortvalue_from_numpy(shown["attention_mask"])

        def step(cache: Cache, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float32], Cache]:
            return self._decoder.step(cache, tokens, extras)

        logits, cache = step(self._decoder.empty(), start)
        return self._generate(step, logits, cache)

    def _caption_by_llava(self, image: NDArray[np.uint8], prompt: str) -> list[int]:
        chat, token = self._entry.chat, self._entry.image_token
        if chat is None or token is None:
            raise BundleError(f"{self._entry.name} has no place for a picture in its prompt: export it again")
        features = self._graphs["vision"].run(None, prepare_picture(image, self._image))[0][0]
        # Special tokens in the prompt are broken up, so that it can't say where the picture goes.
        asked = write_out([Message("user", f"{_PICTURE}\n{prompt}")], chat, self._tokens)
        ids = self._tokens.ids(asked.replace(_PICTURE, self._tokens.token(token)))
        place = ids.index(token)
        parts = [self._embed(ids[:place]), features, self._embed(ids[place + 1 :])]
        logits, cache = self._decoder.step(self._decoder.empty(), np.concatenate(parts))

        def step(cache: Cache, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float32], Cache]:
            return self._decoder.step(cache, self._embed(tokens.tolist()))

        return self._generate(step, logits, cache)

    def _embed(self, ids: list[int]) -> NDArray[np.float32]:
        feeds = {"input_ids": np.array(ids, np.int64)[None]}
        found: NDArray[np.float32] = self._graphs["embeddings"].run(None, feeds)[0][0]
        return found

    def _generate(self, step: Any, logits: NDArray[np.float32], cache: Cache) -> list[int]:
        return generate(
            step,
            logits,
            cache,
            end=self._entry.decoder.end,
            max_new_tokens=min(self._limit, self._entry.decoder.context - cache.tokens),
            should_stop=self._is_closed.is_set,
        )


#: Stands for the picture in the written-out question.
_PICTURE = "\N{OBJECT REPLACEMENT CHARACTER}"


def _run_graph(session: onnxruntime.InferenceSession, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return a graph's outputs by name, in ONNX Runtime's memory. ``feeds`` may have more than the graph takes."""
    names, taken = [value.name for value in session.get_outputs()], [value.name for value in session.get_inputs()]
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feeds[name])) for name in taken}
    return dict(zip(names, session.run_with_ort_values(names, values), strict=True))
