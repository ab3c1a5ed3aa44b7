"""The foundation ``mask2former``: Swin, the pixel decoder and the masked decoder."""

from __future__ import annotations

from torch import Tensor, nn

from teso_deploy.models.decoder import DecoderMemory, MaskedDecoder, Memory, compute_scores
from teso_deploy.models.foundations.contracts import Foundation
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

    def forward(self, image: Tensor) -> Memory:
        mask_features, maps = self.pixel_decoder(self.swin(image))
        return self.memory(mask_features, maps)


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
