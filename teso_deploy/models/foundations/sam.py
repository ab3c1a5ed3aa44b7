"""The foundation ``sam``: its image encoder and its mask decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teso_deploy.models.decoder import Memory
from teso_deploy.models.foundations.contracts import Decoded, Encoded, Foundation
from teso_deploy.models.sam import SamVisualEncoder
from teso_deploy.models.sam_decoder import SamMaskDecoder
from teso_deploy.recipe import Recipe


class _Sam:
    def query_shape(self, recipe: Recipe) -> tuple[int, int]:
        return recipe.sam.mask_tokens, recipe.sam.dim

    def make_visual_encoder(self, recipe: Recipe) -> nn.Module:
        return SamVisualEncoder(recipe.sam, recipe.image.sizes[0][0], recipe.adapters)

    def make_decoder(self, recipe: Recipe) -> nn.Module:
        return SamMaskDecoder(recipe.sam, recipe.image.sizes[0][0], recipe.adapters)

    def encode(self, encoder: nn.Module, image: Tensor) -> Encoded:
        return Encoded(encoder(image))

    def decode_states(self, recipe: Recipe, decoder: nn.Module, *, queries: Tensor, memory: Memory | Tensor) -> Decoded:
        # SAM has no classes. Its answer is the mask of one mask token.
        return Decoded(decoder(queries, memory)[:, recipe.sam.mask_token, None].float())

    def score_logits(self, recipe: Recipe, decoded: Decoded) -> Tensor:
        return torch.sigmoid(decoded.mask_logits)

    def score_classes(self, recipe: Recipe, decoder: nn.Module, *, queries: Tensor, memory: Memory | Tensor) -> Tensor:
        return torch.sigmoid(decoder(queries, memory)[:, recipe.sam.mask_token, None])

    def list_memory_names(self, recipe: Recipe) -> tuple[str, ...]:
        return ("image_embeddings",)


FOUNDATION: Foundation = _Sam()
