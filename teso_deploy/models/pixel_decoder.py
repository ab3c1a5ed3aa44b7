"""Mask2Former's pixel decoder: MSDA layers over strides 32, 16, 8, then one step of an FPN to stride 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.layers import FeedForward, compute_sine_positions, group_norm
from teso_deploy.models.msda import DeformableAttention, Shapes
from teso_deploy.recipe import PixelDecoderRecipe

LEVELS = 3


def compute_reference_points(shapes: Shapes, device: torch.device | None = None) -> Tensor:
    """Centre of every cell of every level, x then y, in 0 … 1: (S, 2)."""
    levels = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        levels.append(torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=1))
    return torch.cat(levels)


class DeformableLayer(nn.Module):
    """Post-norm deformable self-attention and feed-forward."""

    def __init__(self, recipe: PixelDecoderRecipe, adapter: bool) -> None:
        super().__init__()
        self.attention = DeformableAttention(
            recipe.dim, heads=recipe.heads, levels=LEVELS, points=recipe.points, adapter=adapter
        )
        self.norm1 = nn.LayerNorm(recipe.dim)
        self.ffn = FeedForward(recipe.dim, recipe.ffn_dim, nn.ReLU())
        self.norm2 = nn.LayerNorm(recipe.dim)

    def forward(self, x: Tensor, positions: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Transform all levels together.

        Args:
            x: (B, S, d).
            positions: (S, d).
            reference: (S, 2), x then y, 0 … 1.
            shapes: (H_l, W_l) of each level.

        Returns:
            (B, S, d).
        """
        x = self.norm1(x + self.attention(x, positions, reference, shapes))
        return self.norm2(x + self.ffn(x))


class PixelDecoder(nn.Module):
    """Four backbone maps → mask features (B, D, H/4, W/4) and maps at strides 32, 16, 8."""

    def __init__(self, recipe: PixelDecoderRecipe, in_dims: list[int], adapters: bool = False) -> None:
        super().__init__()
        dim = recipe.dim
        self.dim = dim
        # From the coarsest on: stride 32, 16, 8.
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, 1), group_norm(dim)) for width in in_dims[:0:-1]
        )
        self.level_embedding = nn.Parameter(torch.randn(LEVELS, dim))
        self.layers = nn.ModuleList(DeformableLayer(recipe, adapters) for _ in range(recipe.layers))
        self.lateral = nn.Sequential(nn.Conv2d(in_dims[0], dim, 1, bias=False), group_norm(dim))
        self.smooth = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), group_norm(dim), nn.ReLU())
        self.mask_projection = nn.Conv2d(dim, recipe.mask_dim, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        levels = [project(x) for project, x in zip(self.projections, maps[:0:-1], strict=True)]
        shapes = [(x.shape[2], x.shape[3]) for x in levels]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
        positions = torch.cat(
            [
                compute_sine_positions(height, width, self.dim, device=tokens.device) + self.level_embedding[level]
                for level, (height, width) in enumerate(shapes)
            ]
        )
        reference = compute_reference_points(shapes, tokens.device)
        for layer in self.layers:
            tokens = layer(tokens, positions, reference, shapes)
        parts = tokens.split([height * width for height, width in shapes], dim=1)
        outputs = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
        fine = self.lateral(maps[0])
        fine = fine + F.interpolate(outputs[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.mask_projection(self.smooth(fine)), outputs
