"""SAM's mask decoder (Kirillov et al., 2023, figure 14), with its mask tokens as TeSO's queries.

The paper reports TeSO with SAM (table J11) but not its wiring, which is ours. SAM's own prompts, points and boxes, are
not used: the mask tokens after PMQS are the prompt. The head that predicts IoUs is not built. Its token stays, because
the other tokens attend to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from teso_deploy.models.layers import FeedForward, attend, make_adapter_or_identity, split_heads
from teso_deploy.models.sam import EPS, LayerNorm2d
from teso_deploy.recipe import SamRecipe


class NarrowAttention(nn.Module):
    """Multi-head attention at a fraction of the width, with an adapter after its output projection."""

    def __init__(self, dim: int, *, heads: int, downsample: int, adapter: bool) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads = heads
        self.scale = (inner // heads) ** -0.5
        self.query = nn.Linear(dim, inner)
        self.key = nn.Linear(dim, inner)
        self.value = nn.Linear(dim, inner)
        self.output = nn.Linear(inner, dim)
        self.adapter = make_adapter_or_identity(adapter, dim)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, d).
            keys: (B, S, d).
            values: (B, S, d).

        Returns:
            (B, Q, d).
        """
        q = split_heads(self.query(queries) * self.scale, self.heads)
        k, v = split_heads(self.key(keys), self.heads), split_heads(self.value(values), self.heads)
        return self.adapter(self.output(attend(q @ k.transpose(-1, -2), v)))


class TwoWayLayer(nn.Module):
    """Self-attention of tokens, tokens to picture, MLP, picture to tokens; all post-norm.

    The ε of the norms is that of Hugging Face's code; Meta's code uses 1e-5.
    """

    def __init__(self, recipe: SamRecipe, is_first: bool, adapter: bool) -> None:
        super().__init__()
        dim, heads = recipe.dim, recipe.decoder_heads
        self.is_first = is_first
        self.self_attention = NarrowAttention(dim, heads=heads, downsample=1, adapter=adapter)
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.to_image = NarrowAttention(dim, heads=heads, downsample=recipe.attention_downsample, adapter=adapter)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = FeedForward(dim, recipe.decoder_mlp_dim, nn.ReLU())
        self.norm3 = nn.LayerNorm(dim, EPS)
        self.to_tokens = NarrowAttention(dim, heads=heads, downsample=recipe.attention_downsample, adapter=adapter)
        self.norm4 = nn.LayerNorm(dim, EPS)

    def forward(self, tokens: Tensor, image: Tensor, token_positions: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Update tokens and picture.

        Args:
            tokens: (B, T, d).
            image: (B, S, d).
            token_positions: (B, T, d).
            positions: (S, d).

        Returns:
            Tokens and image, in the same shapes.
        """
        if self.is_first:  # the first layer's tokens are the positions themselves: do not add them twice
            tokens = self.self_attention(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attention(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.to_image(tokens + token_positions, image + positions, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.to_tokens(image + positions, tokens + token_positions, tokens))
        return tokens, image


def make_hypernetwork(dim: int, outside: int) -> nn.Sequential:
    """A network from a token to the weights of its mask over the upscaled picture."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outside))


class SamMaskDecoder(nn.Module):
    """Prompted mask tokens (B, M, d) and image embeddings (B, d, h, w) → mask logits (B, M, 4h, 4w)."""

    def __init__(self, recipe: SamRecipe, image_size: int, adapters: tuple[str, ...] = ()) -> None:
        super().__init__()
        dim, adapter = recipe.dim, "sam_decoder" in adapters
        self.side = image_size // recipe.patch
        self.iou_token = nn.Parameter(torch.randn(1, dim))
        self.no_mask = nn.Parameter(torch.randn(dim))
        self.frequencies: Tensor
        # SAM's random Fourier features: not learned, but part of every checkpoint.
        self.register_buffer("frequencies", torch.randn(2, dim // 2))
        self.layers = nn.ModuleList(TwoWayLayer(recipe, i == 0, adapter) for i in range(recipe.decoder_layers))
        self.final_attention = NarrowAttention(
            dim, heads=recipe.decoder_heads, downsample=recipe.attention_downsample, adapter=adapter
        )
        self.final_norm = nn.LayerNorm(dim)
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2), LayerNorm2d(dim // 4), nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2), nn.GELU(),
        )  # fmt: skip
        self.hypernetworks = nn.ModuleList(make_hypernetwork(dim, dim // 8) for _ in range(recipe.mask_tokens))

    def positions(self) -> Tensor:
        """Position embedding of each cell of the picture, (h·w, d)."""
        place = (torch.arange(self.side, device=self.frequencies.device, dtype=torch.float32) + 0.5) / self.side
        along = (2 * place - 1)[:, None]
        # x uses the first row of the frequencies, y the second; the sum equals the product with the whole matrix.
        angle = (along * self.frequencies[1])[:, None] + (along * self.frequencies[0])[None]
        angle = 2 * math.pi * angle.flatten(0, 1)
        return torch.cat((angle.sin(), angle.cos()), dim=1)

    def forward(self, queries: Tensor, image_embeddings: Tensor) -> Tensor:
        batch = queries.shape[0]
        tokens = torch.cat((self.iou_token.expand(batch, -1, -1), queries), dim=1)
        token_positions, positions = tokens, self.positions()
        image = (image_embeddings + self.no_mask[:, None, None]).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_positions, positions)
        tokens = self.final_norm(tokens + self.final_attention(tokens + token_positions, image + positions, image))
        upscaled = self.upscale(image.transpose(1, 2).unflatten(2, (self.side, self.side)))
        weights = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.hypernetworks)], dim=1)
        return (weights @ upscaled.flatten(2)).unflatten(2, (upscaled.shape[2], upscaled.shape[3]))
