"""The foundation ``mask2former``: Swin, the pixel decoder and the masked decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teso_deploy.models.decoder import DecoderMemory, MaskedDecoder, Memory, compute_scores
from teso_deploy.models.foundations.contracts import Decoded, Encoded, Foundation
from teso_deploy.models.pixel_decoder import LEVELS, PixelDecoder
from teso_deploy.models.swin import Swin
from teso_deploy.models.tagger import Tagger
from teso_deploy.recipe import Recipe


class VisualEncoder(nn.Module):
    """Swin, pixel decoder and the picture's part of the decoder: (B, 3, H, W) → :class:`Memory`."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.swin = Swin(recipe.swin, "swin" in recipe.adapters)
        self.pixel_decoder = PixelDecoder(recipe.pixel_decoder, self.swin.dims, "msda" in recipe.adapters)
        self.memory = DecoderMemory(recipe.pixel_decoder.dim, recipe.decoder)
        words = len(recipe.tagger.words)
        self.tagger = Tagger(recipe.pixel_decoder.mask_dim, words) if words else None

    def encode(self, image: Tensor) -> tuple[list[Tensor], Tensor, Memory]:
        """Return the backbone's maps, the mask features and the memory."""
        maps = self.swin(image)
        mask_features, levels = self.pixel_decoder(maps)
        return maps, mask_features, self.memory(mask_features, levels)

    def forward(self, image: Tensor) -> Memory:
        return self.encode(image)[2]


class _Mask2Former:
    def query_shape(self, recipe: Recipe) -> tuple[int, int]:
        return recipe.decoder.queries, recipe.pixel_decoder.dim

    def make_visual_encoder(self, recipe: Recipe) -> nn.Module:
        return VisualEncoder(recipe)

    def make_decoder(self, recipe: Recipe) -> nn.Module:
        pixel, classes = recipe.pixel_decoder, len(recipe.head.classes)
        return MaskedDecoder(
            pixel.dim, pixel.mask_dim, recipe=recipe.decoder, classes=classes, adapters=recipe.adapters
        )

    def encode(self, encoder: nn.Module, image: Tensor) -> Encoded:
        assert isinstance(encoder, VisualEncoder)
        maps, mask_features, memory = encoder.encode(image)
        return Encoded(memory, tuple(maps), mask_features)

    def decode_states(self, recipe: Recipe, decoder: nn.Module, *, queries: Tensor, memory: Memory | Tensor) -> Decoded:
        assert isinstance(decoder, MaskedDecoder) and isinstance(memory, Memory)
        states = decoder.refine(queries, memory)
        masks = [decoder.mask_logits(state, memory.mask_features).float() for state in states]
        return Decoded(torch.cat(masks), decoder.classifier(decoder.norm(torch.cat(states))).float())

    def score_logits(self, recipe: Recipe, decoded: Decoded) -> Tensor:
        assert decoded.class_logits is not None
        return compute_scores(decoded.class_logits, decoded.mask_logits, recipe.head)

    def score_classes(self, recipe: Recipe, decoder: nn.Module, *, queries: Tensor, memory: Memory | Tensor) -> Tensor:
        class_logits, mask_logits = decoder(queries, memory)
        return compute_scores(class_logits, mask_logits, recipe.head)

    def list_memory_names(self, recipe: Recipe) -> tuple[str, ...]:
        layers = range(recipe.decoder.layers)
        return (
            "mask_features",
            *(f"mask_features_{i}" for i in range(LEVELS)),
            *(f"keys_{i}" for i in layers),
            *(f"values_{i}" for i in layers),
        )


FOUNDATION: Foundation = _Mask2Former()
