"""The tagger: a head on the mask features that names what is visible (our addition)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: The tag of a word is its mean over this share of the cells, those with the highest scores.
TOP_SHARE = 0.01


class Tagger(nn.Module):
    """Scores which of K words each cell shows, and from that which words are visible at all.

    It is trained on cells, so that each tag is supported by a place in the picture.
    """

    def __init__(self, dim: int, words: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(dim, words + 1, 1)

    def logits(self, mask_features: Tensor) -> Tensor:
        """(B, D, h, w) → (B, 1 + K, h, w). Channel 0 stands for "none of the K words"."""
        return self.classifier(mask_features)

    def forward(self, mask_features: Tensor) -> Tensor:
        """Mask features at any stride (B, D, h, w) → tags (B, K) in 0 … 1."""
        share = self.logits(mask_features).softmax(dim=1)[:, 1:].flatten(2)
        cells = max(1, round(share.shape[2] * TOP_SHARE))
        return torch.topk(share, cells, dim=2).values.mean(dim=2)
