"""The exported graphs of TeSO: their modules, and the names of their tensors (docs/design.md)."""

from __future__ import annotations

from torch import Tensor, nn

from teso_deploy.models.decoder import Memory
from teso_deploy.models.methods import GraphSpec, Method, Model
from teso_deploy.models.pixel_decoder import LEVELS
from teso_deploy.models.teso import Teso, find_foundation, require_teso
from teso_deploy.program import TESO
from teso_deploy.recipe import Recipe


def list_memory_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the decoder's inputs that depend on the picture, in the order of :func:`flatten_memory`."""
    return find_foundation(recipe).list_memory_names(recipe)


def flatten_memory(memory: Memory | Tensor) -> tuple[Tensor, ...]:
    """Return a :class:`Memory`, or SAM's single tensor, as a flat tuple."""
    if isinstance(memory, Tensor):
        return (memory,)
    return (memory.mask_features, *memory.resized, *memory.keys, *memory.values)


def unflatten_memory(tensors: tuple[Tensor, ...]) -> Memory | Tensor:
    """Inverse of :func:`flatten_memory`."""
    if len(tensors) == 1:
        return tensors[0]
    layers = (len(tensors) - 1 - LEVELS) // 2
    first, middle = 1 + LEVELS, 1 + LEVELS + layers
    return Memory(tensors[0], list(tensors[1:first]), list(tensors[first:middle]), list(tensors[middle:]))


def list_graph_specs(recipe: Recipe) -> dict[str, GraphSpec]:
    """Return every graph of a recipe, in the order in which they run."""
    memory = list_memory_names(recipe)
    tags = ("tags",) if recipe.tagger.words else ()
    return {
        "visual_encoder": GraphSpec(("image",), (*memory, *tags)),
        "audio_encoder": GraphSpec(("waveform",), ("audio",)),
        "fusion": GraphSpec(("audio", "cues", "cue_valid"), ("queries", "cue_gate")),
        # The decoder never uses the level-32 … 8 features directly, only keys and values.
        "decoder": GraphSpec(("queries", *memory), ("masks",)),
    }


class _VisualGraph(nn.Module):
    def __init__(self, model: Teso) -> None:
        super().__init__()
        self.encoder = model.visual_encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        memory = self.encoder(image)
        # Stride 8 is fine enough for naming, and has a quarter of the cells of the mask features.
        tagger = getattr(self.encoder, "tagger", None)
        tags = () if tagger is None else (tagger(memory.resized[-1]),)
        return (*flatten_memory(memory), *tags)


class _FusionGraph(nn.Module):
    # An extra module level: otherwise the learned queries and the output "queries" would have the same name.
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
        self.recipe, self.foundation = model.recipe, model.foundation

    def forward(self, queries: Tensor, *memory: Tensor) -> Tensor:
        return self.foundation.score_classes(
            self.recipe, self.decoder, queries=queries, memory=unflatten_memory(memory)
        )


def make_graph_modules(model: Teso) -> dict[str, nn.Module]:
    """Return modules that take and return plain tensors in the order of :func:`list_graph_specs`."""
    return {
        "visual_encoder": _VisualGraph(model),
        "audio_encoder": model.audio_encoder,
        "fusion": _FusionGraph(model),
        "decoder": _DecoderGraph(model),
    }


class _TesoMethod:
    program = TESO

    def build(self, recipe: Recipe) -> Teso:
        return Teso(recipe)

    def list_graph_specs(self, recipe: Recipe) -> dict[str, GraphSpec]:
        return list_graph_specs(recipe)

    def get_graph_modules(self, model: Model) -> dict[str, nn.Module]:
        return make_graph_modules(require_teso(model))


METHOD: Method = _TesoMethod()
