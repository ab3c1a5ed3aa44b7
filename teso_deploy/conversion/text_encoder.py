"""The text encoder of a cue table as a graph, for words that are not in the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.bundle import TextEncoderEntry
from teso_deploy.conversion.clip_tokens import make_sentence_tokenizer
from teso_deploy.conversion.cue_weights import save_graph
from teso_deploy.conversion.graphs import export_module
from teso_deploy.conversion.vocabulary import MINILM_DIM, MiniLM
from teso_deploy.cues.table import CueTable
from teso_deploy.cues.tokens import Tokens
from teso_deploy.errors import CheckpointError, RecipeError
from teso_deploy.models.assembly import WeightSource, build_text_tower
from teso_deploy.models.methods import find_method
from teso_deploy.recipe import Recipe

ENTRY = TextEncoderEntry(
    graph="text_encoder.onnx", weights="text_encoder.onnx.data", tokenizer="text_encoder.tokenizer.json"
)
#: Number of the table's words that are embedded again, and the allowed difference: the table is stored in float16.
CHECKED_WORDS, LARGEST_ERROR = 8, 2e-3


class _MiniLmGraph(nn.Module):
    def __init__(self, minilm: MiniLM) -> None:
        super().__init__()
        self._minilm = minilm

    def forward(self, input_ids: Tensor) -> Tensor:
        return self._minilm.forward(input_ids)


@dataclass(frozen=True, slots=True)
class TextGraph:
    """The encoder of a recipe's cues: ids (1, L) → (1, d_T), and the tokenizer that turns sentences into ids."""

    module: nn.Module
    tokenizer: Any


def find_text_graph(recipe: Recipe, tower: WeightSource | None) -> TextGraph:
    """Return the text encoder for a recipe's cues. Nothing is written.

    Args:
        recipe: The recipe.
        tower: CLIP's checkpoint, with its vocabulary in the same folder. None: MiniLM from its package.

    Returns:
        The encoder and its tokenizer.

    Raises:
        RecipeError: The cues have another encoder, or the method takes no cues.
        CheckpointError: The vocabulary is missing.
        MissingExtraError: A package is not installed.
    """
    if not find_method(recipe).program.takes("cues"):
        raise RecipeError(f"recipe {recipe.name} is of the method {recipe.method}, without cues: omit --text-encoder")
    if tower is not None:
        return TextGraph(build_text_tower(tower, recipe), make_sentence_tokenizer(tower.beside, recipe.clip_text))
    if recipe.text.encoder == "clip":
        raise RecipeError(
            f"recipe {recipe.name} embeds its cues with CLIP's text tower: for --text-encoder export it from its "
            "recipe with --checkpoint text=FILE"
        )
    if recipe.text.dim != MINILM_DIM:
        raise RecipeError(
            f"text.dim is {recipe.text.dim}, but the text encoder MiniLM-L6 has width {MINILM_DIM}: omit --text-encoder"
        )
    minilm = MiniLM()
    return TextGraph(_MiniLmGraph(minilm), minilm.tokenizer)


def write_text_encoder(
    folder: Path, graph: TextGraph, recipe: Recipe, *, table: CueTable, metadata: Mapping[str, str] = {}
) -> TextEncoderEntry:
    """Write the text encoder's graph, weights and tokenizer to a staged bundle.

    Args:
        folder: The staged bundle.
        graph: The encoder.
        recipe: The recipe, for the template around a word.
        table: The cue table.
        metadata: Metadata of the ONNX file. Default: none.

    Returns:
        The encoder's entry in the manifest.

    Raises:
        CheckpointError: Another encoder made the table.
    """
    graph.tokenizer.save(str(folder / ENTRY.tokenizer))
    tokens = Tokens(folder / ENTRY.tokenizer)
    example = torch.tensor([tokens.sentence(recipe.text.template.replace("{cue}", "dog"))])
    length: Any = torch.export.Dim.AUTO
    model = export_module(graph.module.eval(), [example], inputs=["input_ids"], outputs=["cue"], shapes=({1: length},))
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value)
    save_graph(model, folder / ENTRY.graph)
    onnx.checker.check_model(str(folder / ENTRY.graph))
    _check(folder, recipe=recipe, tokens=tokens, table=table)
    return ENTRY


def _check(folder: Path, *, recipe: Recipe, tokens: Tokens, table: CueTable) -> None:
    """Check that the graph computes the embeddings of the table."""
    engine = OnnxRuntimeEngine(folder / ENTRY.graph, threads=1)
    step = max(1, len(table.names) // CHECKED_WORDS)
    for name in table.names[::step]:
        ids = np.array([tokens.sentence(recipe.text.template.replace("{cue}", name))], np.int64)
        expected, found = table.get_embedding(name), engine.run({"input_ids": ids})["cue"][0]
        if np.abs(found - expected).max() > LARGEST_ERROR * max(1.0, float(np.abs(expected).max())):
            raise CheckpointError(
                f"this text encoder gives {name!r} another embedding than the bundle's table has: omit "
                "--text-encoder, or export the bundle from its recipe"
            )
