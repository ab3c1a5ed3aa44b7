"""Small layers that several networks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: A masked score before softmax. A row of -inf would become NaN, and -1e9 is -inf in fp16.
MASKED_SCORE = -3e4


class Adapter(nn.Module):
    """Bottleneck MLP d → d/4 → d after an output projection (paper, section 3.4).

    It is residual and its second layer starts at zero, so a frozen foundation is unchanged at first.
    ``residual=False`` is the form in the authors' release.
    """

    def __init__(self, dim: int, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.down = nn.Linear(dim, max(1, dim // 4))
        self.up = nn.Linear(max(1, dim // 4), dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) → (..., d)."""
        changed = self.up(torch.relu(self.down(x)))
        return x + changed if self.residual else changed


def make_adapter_or_identity(wanted: bool, dim: int) -> nn.Module:
    """Return an :class:`Adapter` if the recipe asks for one, else the identity."""
    return Adapter(dim) if wanted else nn.Identity()


class FeedForward(nn.Module):
    """Linear → activation → Linear."""

    def __init__(self, dim: int, hidden_dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden_dim)
        self.activation = activation
        self.outer = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) → (..., d)."""
        return self.outer(self.activation(self.inner(x)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, d) → (B, heads, S, d / heads)."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, S, d_head) → (B, S, heads · d_head)."""
    return x.transpose(1, 2).flatten(2)


def attend(scores: Tensor, values: Tensor) -> Tensor:
    """softmax(scores) values: (B, heads, Q, S), (B, heads, S, d_head) → (B, Q, heads · d_head)."""
    return merge_heads(torch.softmax(scores, dim=-1) @ values)


class Attention(nn.Module):
    """Multi-head attention with separate projections: queries (B, Q, d), keys of ``key_dim``."""

    def __init__(self, dim: int, heads: int, key_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(key_dim or dim, dim)
        self.value = nn.Linear(key_dim or dim, dim)
        self.output = nn.Linear(dim, dim)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scaled scores before softmax, (B, heads, Q, S)."""
        q = split_heads(self.query(queries) * self.scale, self.heads)
        return q @ split_heads(self.key(keys), self.heads).transpose(-1, -2)

    def attend_values(self, scores: Tensor, values: Tensor) -> Tensor:
        """Return the output projection of the attended values, (B, Q, d)."""
        return self.output(attend(scores, split_heads(self.value(values), self.heads)))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, d).
            keys: (B, S, key_dim).
            values: (B, S, key_dim).

        Returns:
            (B, Q, d).
        """
        return self.attend_values(self.scores(queries, keys), values)


def compute_sine_positions(height: int, width: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """Compute the normalised sine position embedding (DETR, appendix A.4), (H·W, d), y half first.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        dim: d.
        device: Where to compute it. Default: the CPU.
    """
    half = dim // 2
    eps, scale, temperature = 1e-6, 2 * math.pi, 10_000.0
    y = torch.arange(1, height + 1, dtype=torch.float32, device=device) / (height + eps) * scale
    x = torch.arange(1, width + 1, dtype=torch.float32, device=device) / (width + eps) * scale
    exponent = torch.arange(half, dtype=torch.float32, device=device).div(2, rounding_mode="floor") * (2 / half)
    period = torch.pow(torch.tensor(temperature, device=device), exponent)

    def waves(position: Tensor) -> Tensor:
        angle = position[:, None] / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    rows = waves(y)[:, None, :].expand(height, width, half)
    columns = waves(x)[None, :, :].expand(height, width, half)
    return torch.cat((rows, columns), dim=2).reshape(height * width, dim)


def group_norm(dim: int) -> nn.GroupNorm:
    """GroupNorm with Mask2Former's 32 groups; gcd(32, ``dim``) groups for a width that 32 does not divide."""
    return nn.GroupNorm(math.gcd(32, dim), dim)
