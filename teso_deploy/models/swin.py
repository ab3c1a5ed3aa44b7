"""Swin transformer (Liu et al., 2021) as in Mask2Former: four normed stages, with optional adapters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.layers import FeedForward, attend, group_norm, make_adapter_or_identity, split_heads
from teso_deploy.recipe import SwinRecipe


def split_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) → (B · windows, size², C), row by row of windows."""
    _, height, width, channels = x.shape
    x = x.view(-1, height // size, size, width // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size * size, channels)


def join_windows(x: Tensor, size: int, *, height: int, width: int) -> Tensor:
    """Invert :func:`split_windows`.

    Args:
        x: (B · windows, size², C).
        size: Side of a window.
        height: H.
        width: W.

    Returns:
        (B, H, W, C).
    """
    x = x.view(-1, height // size, width // size, size, size, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def compute_relative_positions(size: int) -> Tensor:
    """Index into the bias table for each pair of positions in a window, (size², size²) int64."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    place = torch.stack((y.flatten(), x.flatten()))
    offset = place[:, :, None] - place[:, None, :] + size - 1
    return offset[0] * (2 * size - 1) + offset[1]


def shift_mask(height: int, width: int, *, size: int, shift: int, device: torch.device) -> Tensor:
    """Return 0, or -100 between positions of a shifted window that are not neighbours in the picture.

    -100 is Swin's own constant; scores are small. The small table of regions is a constant and the large mask is
    computed from it, so an exported graph contains only the table.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        size: Side of a window.
        shift: How far the windows are shifted.
        device: Where to compute it.

    Returns:
        (windows, size², size²).
    """
    region = np.zeros((height, width), np.int32)
    edges = (0, height - size, height - shift, height), (0, width - size, width - shift, width)
    for i, j in np.ndindex(3, 3):
        region[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]] = 3 * i + j
    cells = torch.tensor(region, device=device)
    cells = split_windows(cells.view(1, height, width, 1), size).squeeze(-1)
    return (cells[:, None, :] != cells[:, :, None]).float() * -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned relative position bias."""

    def __init__(self, dim: int, *, heads: int, window: int, adapter: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.adapter = make_adapter_or_identity(adapter, dim)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.bias_index: Tensor
        self.register_buffer("bias_index", compute_relative_positions(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B · windows, S, C), (windows, S, S) or None → (B · windows, S, C)."""
        length = x.shape[1]
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        bias = self.bias_table[self.bias_index.flatten()].view(length, length, self.heads).permute(2, 0, 1)
        scores = (q * self.scale) @ k.transpose(-1, -2) + bias
        if mask is not None:
            per_picture = scores.view(-1, mask.shape[0], self.heads, length, length) + mask[None, :, None]
            scores = per_picture.view(-1, self.heads, length, length)
        return self.adapter(self.output(attend(scores, v)))


class ConvolvedFeedForward(nn.Module):
    """Feed-forward with a depthwise 3×3 convolution inside (PVT v2: Wang et al., 2022, section 3.3)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden_dim)
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.outer = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Transform a map.

        Args:
            x: (B, H·W, C).
            height: H.
            width: W.

        Returns:
            (B, H·W, C).
        """
        image = self.inner(x).transpose(1, 2).unflatten(2, (height, width))
        return self.outer(F.gelu(self.depthwise(image)).flatten(2).transpose(1, 2))


def make_convolutional_stem(dim: int) -> nn.Sequential:
    """Three small convolutions to stride 4 instead of one of 4×4 (Xiao et al., 2021)."""
    half = dim // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 3, stride=2, padding=1), group_norm(half), nn.GELU(),
        nn.Conv2d(half, dim, 3, stride=2, padding=1), group_norm(dim), nn.GELU(),
        nn.Conv2d(dim, dim, 3, padding=1),
    )  # fmt: skip


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP; every second block shifts its windows by half."""

    def __init__(self, dim: int, *, heads: int, recipe: SwinRecipe, shifted: bool, adapter: bool) -> None:
        super().__init__()
        self.window = recipe.window
        self.shifted = shifted
        self.shift_covered = recipe.shift_covered
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads=heads, window=recipe.window, adapter=adapter)
        self.norm2 = nn.LayerNorm(dim)
        self.convolved = recipe.convolutions
        hidden = int(dim * recipe.mlp_ratio)
        self.mlp = ConvolvedFeedForward(dim, hidden) if self.convolved else FeedForward(dim, hidden, nn.GELU())

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Transform a map.

        Args:
            x: (B, H·W, C).
            height: H.
            width: W.

        Returns:
            (B, H·W, C).
        """
        size = self.window
        shift = size // 2 if self.shifted and (self.shift_covered or min(height, width) > size) else 0
        image = self.norm1(x).view(-1, height, width, x.shape[-1])
        below, right = -height % size, -width % size
        if below or right:
            image = F.pad(image, (0, 0, 0, right, 0, below))
        tall, wide = height + below, width + right
        mask = None
        if shift:
            image = torch.roll(image, (-shift, -shift), (1, 2))
            mask = shift_mask(tall, wide, size=size, shift=shift, device=x.device)
        image = join_windows(self.attention(split_windows(image, size), mask), size, height=tall, width=wide)
        if shift:
            image = torch.roll(image, (shift, shift), (1, 2))
        if below or right:
            image = image[:, :height, :width]
        x = x + image.reshape(x.shape)
        normed = self.norm2(x)
        return x + (self.mlp(normed, height, width) if self.convolved else self.mlp(normed))


class PatchMerging(nn.Module):
    """2×2 neighbours → one token of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Halve a map.

        Args:
            x: (B, H·W, C).
            height: H.
            width: W.

        Returns:
            (B, ⌈H/2⌉·⌈W/2⌉, 2C).
        """
        image = x.view(-1, height, width, x.shape[-1])
        if height % 2 or width % 2:
            image = F.pad(image, (0, 0, 0, width % 2, 0, height % 2))
        parts = (image[:, 0::2, 0::2], image[:, 1::2, 0::2], image[:, 0::2, 1::2], image[:, 1::2, 1::2])
        return self.reduction(self.norm(torch.cat(parts, dim=-1).flatten(1, 2)))


class Swin(nn.Module):
    """(B, 3, H, W) → four normed maps (B, C·2^i, H / 2^(i+2), W / 2^(i+2))."""

    def __init__(self, recipe: SwinRecipe, adapters: bool = False) -> None:
        super().__init__()
        self.patch = (
            make_convolutional_stem(recipe.embed_dim)
            if recipe.convolutions
            else nn.Conv2d(3, recipe.embed_dim, 4, stride=4)
        )
        self.patch_norm = nn.LayerNorm(recipe.embed_dim)
        self.dims = [recipe.embed_dim << i for i in range(4)]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(dim, heads=heads, recipe=recipe, shifted=bool(i % 2), adapter=adapters) for i in range(depth)
            )
            for dim, heads, depth in zip(self.dims, recipe.heads, recipe.depths, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(dim) for dim in self.dims[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in self.dims)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch(image)
        height, width = x.shape[2:]
        x = self.patch_norm(x.flatten(2).transpose(1, 2))
        maps = []
        for i, blocks in enumerate(self.stages):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, height, width)
            maps.append(self.norms[i](x).transpose(1, 2).unflatten(2, (height, width)))
            if i < len(self.merges):
                x = self.merges[i](x, height, width)
                height, width = (height + 1) // 2, (width + 1) // 2
        return maps
