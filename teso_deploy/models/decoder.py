"""Mask2Former's masked-attention decoder, split at the point where the sound enters.

:class:`DecoderMemory` contains everything that depends only on the picture: keys and values of every
cross-attention, and the mask features resized to the three levels. It is part of the encoder's graph and runs
once per frame. :class:`MaskedDecoder` is the rest. It runs again for each new audio window and for new cues.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.layers import (
    MASKED_SCORE,
    Attention,
    FeedForward,
    attend,
    compute_sine_positions,
    make_adapter_or_identity,
    split_heads,
)
from teso_deploy.models.pixel_decoder import LEVELS
from teso_deploy.recipe import DecoderRecipe, HeadRecipe


class Memory(NamedTuple):
    """The inputs of the decoder that depend on the picture.

    Attributes:
        mask_features: (B, D, H/4, W/4).
        resized: Its bilinear copies at strides 32, 16, 8.
        keys: (B, heads, S_l, d_head) for each decoder layer, multiplied by the attention scale.
        values: The same shapes.
    """

    mask_features: Tensor
    resized: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]

    def repeat(self, times: int) -> Memory:
        """Repeat each picture ``times`` times in a row, to decode several sounds on the same picture."""

        def again(x: Tensor) -> Tensor:
            return x.repeat_interleave(times, dim=0)

        return Memory(
            again(self.mask_features),
            [again(x) for x in self.resized],
            [again(x) for x in self.keys],
            [again(x) for x in self.values],
        )


class DecoderMemory(nn.Module):
    """Maps at strides 32, 16, 8 and mask features → :class:`Memory`. Layer i uses level i mod 3."""

    def __init__(self, dim: int, recipe: DecoderRecipe) -> None:
        super().__init__()
        self.dim, self.heads = dim, recipe.heads
        self.scale = (dim // recipe.heads) ** -0.5
        self.level_embedding = nn.Parameter(torch.randn(LEVELS, dim))
        self.keys = nn.ModuleList(nn.Linear(dim, dim) for _ in range(recipe.layers))
        self.values = nn.ModuleList(nn.Linear(dim, dim) for _ in range(recipe.layers))

    def forward(self, mask_features: Tensor, maps: list[Tensor]) -> Memory:
        sources = [x.flatten(2).transpose(1, 2) + self.level_embedding[i] for i, x in enumerate(maps)]
        positions = [compute_sine_positions(x.shape[2], x.shape[3], self.dim, device=x.device) for x in maps]
        keys, values = [], []
        for i, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            source = sources[i % LEVELS]
            keys.append(split_heads(key(source + positions[i % LEVELS]) * self.scale, self.heads))
            values.append(split_heads(value(source), self.heads))
        # Bilinear resizing is linear, so the masks' einsum may follow it, at the small size.
        resized = [F.interpolate(mask_features, size=x.shape[2:], mode="bilinear", align_corners=False) for x in maps]
        return Memory(mask_features, resized, keys, values)


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; all post-norm."""

    def __init__(self, dim: int, recipe: DecoderRecipe, adapters: tuple[str, ...]) -> None:
        super().__init__()
        self.heads = recipe.heads
        self.cross_query = nn.Linear(dim, dim)
        self.cross_output = nn.Linear(dim, dim)
        self.cross_adapter = make_adapter_or_identity("cross_attention" in adapters, dim)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, recipe.heads)
        self.self_adapter = make_adapter_or_identity("self_attention" in adapters, dim)
        self.self_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, recipe.ffn_dim, nn.ReLU())
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """Transform (B, Q, d) queries.

        Args:
            x: Queries (B, Q, d).
            positions: (Q, d).
            keys: (B, heads, S, d_head).
            values: (B, heads, S, d_head).
            hidden: Cells that a query must not attend to, (B, Q, S) bool.
        """
        query = split_heads(self.cross_query(x + positions), self.heads)
        # As in Mask2Former, a row that hides everything attends everywhere: its softmax would be NaN.
        hidden = hidden & ~hidden.all(dim=-1, keepdim=True)
        scores = query @ keys.transpose(-1, -2) + (hidden.to(x.dtype) * MASKED_SCORE)[:, None]
        x = self.cross_norm(x + self.cross_adapter(self.cross_output(attend(scores, values))))
        query = x + positions
        x = self.self_norm(x + self.self_adapter(self.self_attention(query, query, x)))
        return self.ffn_norm(x + self.ffn(x))


class MaskedDecoder(nn.Module):
    """Prompted queries (B, Q, d) and a :class:`Memory` → class and mask logits of every layer."""

    def __init__(
        self, dim: int, mask_dim: int, *, recipe: DecoderRecipe, classes: int, adapters: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.query_positions = nn.Parameter(torch.randn(recipe.queries, dim))
        self.layers = nn.ModuleList(DecoderLayer(dim, recipe, adapters) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(dim)
        self.mask_embedding = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, mask_dim)
        )
        self.classifier = nn.Linear(dim, classes + 1)

    def mask_logits(self, x: Tensor, features: Tensor) -> Tensor:
        """(B, Q, d), (B, D, h, w) → (B, Q, h, w)."""
        logits = self.mask_embedding(self.norm(x)) @ features.flatten(2)
        return logits.unflatten(2, (features.shape[2], features.shape[3]))

    def hidden(self, queries: Tensor, features: Tensor) -> Tensor:
        """Return which cells a layer must not attend to: those outside of the current masks, (B, Q, S) bool."""
        # sigmoid(x) < 0.5 is x < 0; the threshold has no gradient.
        return (self.mask_logits(queries, features).detach() < 0).flatten(2)

    def refine(self, queries: Tensor, memory: Memory, hidden: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the queries before the first layer and after each: layers + 1 times (B, Q, d).

        Args:
            queries: (B, Q, d).
            memory: The picture's part.
            hidden: A given mask (B, Q, S) bool for each layer. The threshold is discontinuous, so two
                implementations can be compared only with equal masks. Default: each layer computes its mask.
        """
        states = [queries]
        for i, layer in enumerate(self.layers):
            mask = self.hidden(states[-1], memory.resized[i % LEVELS]) if hidden is None else hidden[i]
            states.append(layer(states[-1], self.query_positions, memory.keys[i], memory.values[i], mask))
        return states

    def forward(self, queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return class logits (B, Q, C + 1) and mask logits (B, Q, H/4, W/4) of the last layer."""
        last = self.refine(queries, memory)[-1]
        return self.classifier(self.norm(last)), self.mask_logits(last, memory.mask_features)


def compute_scores(class_logits: Tensor, mask_logits: Tensor, head: HeadRecipe) -> Tensor:
    """Compute eq. 7 (section 3.4): softmax(class) without "no object" times sigmoid(mask), (B, C, h, w) in 0 … Q.

    ``binary`` is the same with C = 1. ``raw`` masks are summed as logits, and the sigmoid follows the resizes. Both
    steps are linear, so the sum may be taken first, at the small size.

    Args:
        class_logits: (B, Q, C + 1).
        mask_logits: (B, Q, h, w).
        head: The kind of head.
    """
    assert class_logits.shape[-1] == len(head.classes) + 1
    share = torch.softmax(class_logits, dim=-1)[..., :-1].transpose(1, 2)
    masks = mask_logits if head.masks == "raw" else torch.sigmoid(mask_logits)
    scores = (share @ masks.flatten(2)).unflatten(2, (mask_logits.shape[2], mask_logits.shape[3]))
    for size in head.resize_chain:
        scores = F.interpolate(scores, size=(size, size), mode="bilinear", align_corners=False)
    return torch.sigmoid(scores) if head.masks == "raw" else scores
