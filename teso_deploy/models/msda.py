"""Multi-scale deformable attention (Zhu et al., 2021, eq. 3).

The core is a function of tensors only, so that an export can replace it as a whole: see
``conversion/functions.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.layers import make_adapter_or_identity

Shapes = Sequence[tuple[int, int]]
#: Domain and name of the node that replaces :func:`sample_around` in an exported graph.
ONNX_OPERATOR = "teso_deploy::MSDA"


def _sample_grid(value: Tensor, *, height: int, width: int, locations: Tensor) -> Tensor:
    """Bilinear samples of one level, zero outside: (N, d, H·W), (N, Q, P, 2) in 0 … 1 → (N, d, Q, P)."""
    image = value.unflatten(2, (height, width))
    return F.grid_sample(image, 2 * locations - 1, mode="bilinear", padding_mode="zeros", align_corners=False)


def msda(value: Tensor, shapes: Shapes, *, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum weighted samples over all levels and points.

    Args:
        value: (B, S, M, d) with S = Σ H_l·W_l.
        shapes: (H_l, W_l) of each level.
        locations: (B, Q, M, L, P, 2), x then y, 0 … 1 over the level.
        weights: (B, Q, M, L, P), with sum 1 over L·P.

    Returns:
        (B, Q, M·d).
    """
    heads, dim = value.shape[2:]
    queries = locations.shape[1]
    per_head = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B·M, d, S)
    places = locations.transpose(1, 2).flatten(0, 1)  # (B·M, Q, L, P, 2)
    share = weights.transpose(1, 2).flatten(0, 1)  # (B·M, Q, L, P)
    total = torch.zeros((), dtype=value.dtype, device=value.device)
    start = 0
    for level, (height, width) in enumerate(shapes):
        part = per_head[:, :, start : start + height * width]
        start += height * width
        picked = _sample_grid(part, height=height, width=width, locations=places[:, :, level])  # (B·M, d, Q, P)
        total = total + (picked * share[:, None, :, level]).sum(-1)
    return total.view(-1, heads * dim, queries).transpose(1, 2)


def sample_around(value: Tensor, *, offsets: Tensor, weights: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
    """Apply :func:`msda` at reference points that are moved by offsets.

    Args:
        value: (B, S, M, d).
        offsets: (B, Q, M, L, P, 2) in cells of the level.
        weights: (B, Q, M, L, P).
        reference: (Q, 2), x then y, 0 … 1.
        shapes: (H_l, W_l) of each level.
    """
    cell = value.new_tensor([[1 / width, 1 / height] for height, width in shapes])  # (L, 2)
    locations = reference[:, None, None, None, :] + offsets * cell[:, None, :]
    return msda(value, shapes, locations=locations, weights=weights)


def emit_onnx_node(value: Tensor, *, offsets: Tensor, weights: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
    """Emit :func:`sample_around` as one ONNX node, because the best implementation differs by runtime.

    Args:
        value: (B, S, M, d).
        offsets: (B, Q, M, L, P, 2) in cells of the level.
        weights: (B, Q, M, L, P).
        reference: (Q, 2), x then y, 0 … 1.
        shapes: (H_l, W_l) of each level.
    """
    return torch.onnx.ops.symbolic(
        ONNX_OPERATOR,
        (value, offsets, weights, reference),
        {"shapes": [side for level in shapes for side in level]},
        dtype=value.dtype,
        shape=(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3]),
        version=1,
    )


class DeformableAttention(nn.Module):
    """The attention around :func:`msda`: offsets and weights are computed from the queries."""

    def __init__(self, dim: int, *, heads: int, levels: int, points: int, adapter: bool) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.value = nn.Linear(dim, dim)
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.output = nn.Linear(dim, dim)
        self.adapter = make_adapter_or_identity(adapter, dim)
        self._reset()

    def _reset(self) -> None:
        """Initialise as the authors do: each head has a direction, each further point is farther away."""
        nn.init.zeros_(self.offsets.weight)
        angle = torch.arange(self.heads) * (2 * torch.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=1)
        direction = direction / direction.abs().max(dim=1, keepdim=True).values
        steps = torch.arange(1, self.points + 1)[None, None, :, None]
        spread = direction[:, None, None, :].expand(-1, self.levels, self.points, -1) * steps
        with torch.no_grad():
            self.offsets.bias.copy_(spread.reshape(-1))
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)

    def forward(self, x: Tensor, positions: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Attend.

        Args:
            x: (B, S, d).
            positions: (S, d).
            reference: (S, 2), x then y, 0 … 1.
            shapes: (H_l, W_l) of each level.

        Returns:
            (B, S, d).
        """
        length = x.shape[1]
        query = x + positions
        value = self.value(x).unflatten(2, (self.heads, -1))
        offsets = self.offsets(query).view(-1, length, self.heads, self.levels, self.points, 2)
        weights = torch.softmax(self.weights(query).view(-1, length, self.heads, self.levels * self.points), -1)
        weights = weights.unflatten(3, (self.levels, self.points))
        if torch.onnx.is_in_onnx_export():
            sampled = emit_onnx_node(value, offsets=offsets, weights=weights, reference=reference, shapes=shapes)
        else:
            sampled = sample_around(value, offsets=offsets, weights=weights, reference=reference, shapes=shapes)
        return self.adapter(self.output(sampled))
