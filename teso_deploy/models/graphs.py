"""The graphs that are exported: their modules, and the names of their tensors (docs/design.md)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from teso_deploy.models.decoder import Memory, segmentation_scores
from teso_deploy.models.pixel_decoder import LEVELS
from teso_deploy.models.teso import Teso
from teso_deploy.recipe import Recipe


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """Names of a graph's inputs and outputs, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def memory_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of a :class:`Memory`'s tensors, in the order of :func:`flatten_memory`."""
    layers = range(recipe.decoder.layers)
    return (
        "mask_features",
        *(f"mask_features_{i}" for i in range(LEVELS)),
        *(f"keys_{i}" for i in layers),
        *(f"values_{i}" for i in layers),
    )


def flatten_memory(memory: Memory) -> tuple[Tensor, ...]:
    """A :class:`Memory` as a flat tuple."""
    return (memory.mask_features, *memory.resized, *memory.keys, *memory.values)


def unflatten_memory(tensors: tuple[Tensor, ...]) -> Memory:
    """Inverse of :func:`flatten_memory`."""
    layers = (len(tensors) - 1 - LEVELS) // 2
    first, middle = 1 + LEVELS, 1 + LEVELS + layers
    return Memory(tensors[0], list(tensors[1:first]), list(tensors[first:middle]), list(tensors[middle:]))


def graph_specs(recipe: Recipe) -> dict[str, GraphSpec]:
    """Every graph of a recipe, in the order in which they run."""
    memory = memory_names(recipe)
    tags = ("tags",) if recipe.tagger.words else ()
    return {
        "visual_encoder": GraphSpec(("image",), (*memory, *tags)),
        "audio_encoder": GraphSpec(("waveform",), ("audio",)),
        "fusion": GraphSpec(("audio", "cues", "cue_valid"), ("queries", "cue_gate")),
        # The decoder never looks at the level-32 … 8 features themselves, only at keys and values.
        "decoder": GraphSpec(("queries", *memory), ("masks",)),
    }


class _VisualGraph(nn.Module):
    def __init__(self, model: Teso) -> None:
        super().__init__()
        self.encoder = model.visual_encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        memory = self.encoder(image)
        # Stride 8 is fine enough to name things, and a quarter of the cells of the mask features.
        tags = () if self.encoder.tagger is None else (self.encoder.tagger(memory.resized[-1]),)
        return (*flatten_memory(memory), *tags)


class _FusionGraph(nn.Module):
    # A level of its own: the learned queries would else share the name of the output "queries".
    def __init__(self, model: Teso) -> None:
        super().__init__()
        self.fusion = model.fusion

    def forward(self, audio: Tensor, cues: Tensor, cue_valid: Tensor) -> tuple[Tensor, Tensor]:
        queries, gate = self.fusion(audio, cues, cue_valid)
        return queries, gate


class _DecoderGraph(nn.Module):
    def __init__(self, model: Teso) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.head = model.recipe.head

    def forward(self, queries: Tensor, *memory: Tensor) -> Tensor:
        class_logits, mask_logits = self.decoder(queries, unflatten_memory(memory))
        return segmentation_scores(class_logits, mask_logits, self.head)


def graph_modules(model: Teso) -> dict[str, nn.Module]:
    """Modules that take and return plain tensors in the order of :func:`graph_specs`."""
    return {
        "visual_encoder": _VisualGraph(model),
        "audio_encoder": model.audio_encoder,
        "fusion": _FusionGraph(model),
        "decoder": _DecoderGraph(model),
    }
