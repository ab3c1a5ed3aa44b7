"""SAM's image encoder (Kirillov et al., 2023, appendix A): a windowed ViT with relative positions, and a neck."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.layers import FeedForward, attend, make_adapter_or_identity, split_heads
from teso_deploy.models.swin import join_windows, split_windows
from teso_deploy.recipe import SamRecipe

EPS = 1e-6


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, EPS)
        return normed.permute(0, 3, 1, 2)


def compute_relative_index(size: int) -> Tensor:
    """Table row for each pair of positions along an axis, (size, size) int64."""
    place = torch.arange(size)
    return place[:, None] - place[None, :] + size - 1


class DecomposedAttention(nn.Module):
    """Self-attention over a square of ``size`` × ``size`` with relative positions along each axis (Li et al., 2022)."""

    def __init__(self, dim: int, *, heads: int, size: int, adapter: bool) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.adapter = make_adapter_or_identity(adapter, dim)
        self.rows = nn.Parameter(torch.zeros(2 * size - 1, dim // heads))
        self.columns = nn.Parameter(torch.zeros(2 * size - 1, dim // heads))
        self.index: Tensor
        self.register_buffer("index", compute_relative_index(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, size², C) → (N, size², C)."""
        size = self.size
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        grid = q.unflatten(2, (size, size))  # (N, heads, y, x, d)
        # Multiply every query by the table's row for each key's row, and by that for its column.
        tall = torch.einsum("nhyxd,ykd->nhyxk", grid, self.rows[self.index])
        wide = torch.einsum("nhyxd,xkd->nhyxk", grid, self.columns[self.index])
        bias = (tall[..., :, None] + wide[..., None, :]).flatten(4).flatten(2, 3)
        scores = (q * self.scale) @ k.transpose(-1, -2) + bias
        return self.adapter(self.output(attend(scores, v)))


class SamBlock(nn.Module):
    """Pre-norm attention and MLP. With ``window`` 0 it attends to the whole picture."""

    def __init__(self, recipe: SamRecipe, side: int, *, window: int, adapter: bool) -> None:
        super().__init__()
        self.side, self.window = side, window
        self.norm1 = nn.LayerNorm(recipe.embed_dim, EPS)
        self.attention = DecomposedAttention(recipe.embed_dim, heads=recipe.heads, size=window or side, adapter=adapter)
        self.norm2 = nn.LayerNorm(recipe.embed_dim, EPS)
        self.mlp = FeedForward(recipe.embed_dim, recipe.mlp_dim, nn.GELU())

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window:
            return self.attention(x)
        below = -self.side % self.window
        padded = self.side + below
        image = F.pad(x.unflatten(1, (self.side, self.side)), (0, 0, 0, below, 0, below))
        image = join_windows(
            self.attention(split_windows(image, self.window)), self.window, height=padded, width=padded
        )
        return image[:, : self.side, : self.side].flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, side², C) → (B, side², C)."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SamVisualEncoder(nn.Module):
    """image (B, 3, S, S), normalised → image embeddings (B, d, S / patch, S / patch)."""

    def __init__(self, recipe: SamRecipe, image_size: int, adapters: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.side = image_size // recipe.patch
        self.patch = nn.Conv2d(3, recipe.embed_dim, recipe.patch, stride=recipe.patch)
        self.positions = nn.Parameter(torch.zeros(self.side * self.side, recipe.embed_dim))
        self.blocks = nn.ModuleList(
            SamBlock(
                recipe,
                self.side,
                window=0 if i in recipe.global_layers else recipe.window,
                adapter="sam_encoder" in adapters,
            )
            for i in range(recipe.layers)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(recipe.embed_dim, recipe.dim, 1, bias=False), LayerNorm2d(recipe.dim),
            nn.Conv2d(recipe.dim, recipe.dim, 3, padding=1, bias=False), LayerNorm2d(recipe.dim),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.neck(x.transpose(1, 2).unflatten(2, (self.side, self.side)))
