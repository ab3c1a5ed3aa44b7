"""BEATs (Chen et al., 2023; microsoft/unilm, ``beats/``), frozen, with its filter bank inside.

The released iter3 models have post-norm layers with DeepNorm, and gated relative positions with one table for all
layers. The paper of TeSO does not say how tokens become one vector. We take their mean.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.layers import FeedForward, attend, split_heads
from teso_deploy.recipe import BeatsRecipe, Recipe
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES

WINDOW, HOP, FFT = 400, 160, 512
MEL_BANDS, MEL_LOW_HZ = 128, 20.0
PRE_EMPHASIS, POVEY_POWER = 0.97, 0.85
FRAMES = 1 + (WINDOW_SAMPLES - WINDOW) // HOP
#: Statistics of the training data, in log energies of 16-bit samples.
MEAN, STD = 15.41663, 6.55582
INT16_SCALE = 2.0**15
LOG_FLOOR = float(np.finfo(np.float32).eps)


def make_mel_filters() -> NDArray[np.float64]:
    """Kaldi's triangular mel filters from 20 Hz to 8 kHz, (256, 128); the bin at 8 kHz is omitted as in Kaldi."""
    mel = 1127.0 * np.log1p(np.arange(FFT // 2) * SAMPLE_RATE_HZ / FFT / 700.0)[:, None]
    first, last = (1127.0 * math.log1p(hertz / 700.0) for hertz in (MEL_LOW_HZ, SAMPLE_RATE_HZ / 2))
    edges = np.linspace(first, last, MEL_BANDS + 2)
    low, centre, high = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    return np.maximum(0.0, np.minimum((mel - low) / (centre - low), (high - mel) / (high - centre)))


def make_frame_kernels() -> NDArray[np.float64]:
    """Real and imaginary rows of all that Kaldi does to a frame before squaring: (2·256, 400).

    The steps are: subtract the mean, pre-emphasis (the first sample's predecessor is itself), Povey's window, DFT of
    the frame padded to 512. Each step is linear, so their product is one matrix.
    """
    no_mean = np.eye(WINDOW) - 1 / WINDOW
    emphasis = np.eye(WINDOW) - PRE_EMPHASIS * np.eye(WINDOW, k=-1)
    emphasis[0, 0] -= PRE_EMPHASIS
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))
    angle = 2 * np.pi * np.outer(np.arange(FFT // 2), np.arange(WINDOW)) / FFT
    dft = np.concatenate((np.cos(angle), np.sin(angle)))
    return (dft * hann**POVEY_POWER) @ emphasis @ no_mean * INT16_SCALE


class KaldiFilterBank(nn.Module):
    """waveform (B, 15600) in [-1, 1] → normalised log mel energies (B, 1, 96, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Tensor
        self.mel: Tensor
        self.register_buffer("kernels", torch.from_numpy(make_frame_kernels()).float()[:, None], persistent=False)
        self.register_buffer("mel", torch.from_numpy(make_mel_filters()).float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        real, imaginary = F.conv1d(waveform[:, None], self.kernels, stride=HOP).chunk(2, dim=1)
        power = (real * real + imaginary * imaginary).transpose(1, 2)
        return ((torch.log((power @ self.mel).clamp(min=LOG_FLOOR)) - MEAN) / (2 * STD))[:, None]


def compute_position_buckets(length: int, buckets: int, distance: int) -> NDArray[np.int64]:
    """T5's buckets (Raffel et al., 2020), both directions, of each query (row) and key (column): (length, length).

    Args:
        length: Number of tokens.
        buckets: Number of buckets, for both directions together.
        distance: Largest distance with a separate bucket.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.abs(offset)
    with np.errstate(divide="ignore"):
        # Use float32 as the release does, so that distances at a bucket's edge fall on the same side.
        grown = np.log(far.astype(np.float32) / np.float32(exact)) / np.float32(math.log(distance / exact))
    grown = np.where(far < exact, 0, grown)
    large = np.minimum(exact + (grown * (half - exact)).astype(np.int64), half - 1)
    return (offset > 0) * half + np.where(far < exact, far, large)


class GatedAttention(nn.Module):
    """Self-attention whose relative position bias is gated by the query (WavLM: Chen et al., 2022, eq. 5)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.gates = nn.Linear(dim // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, S, d), bias (heads, S, S) → (B, S, d)."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        first, second = torch.sigmoid(self.gates(q).unflatten(-1, (2, 4)).sum(-1)).split(1, dim=-1)
        gate = first * (second * self.gate_scale - 1) + 2  # (B, heads, S, 1)
        scores = (q * self.scale) @ k.transpose(-1, -2) + gate * bias
        return self.output(attend(scores, v))


class BeatsLayer(nn.Module):
    """Post-norm attention and feed-forward, the residual scaled by α (DeepNorm: Wang et al., 2022)."""

    def __init__(self, recipe: BeatsRecipe) -> None:
        super().__init__()
        self.alpha = (2 * recipe.layers) ** 0.25
        self.attention = GatedAttention(recipe.dim, recipe.heads)
        self.norm1 = nn.LayerNorm(recipe.dim)
        self.ffn = FeedForward(recipe.dim, recipe.ffn_dim, nn.GELU())
        self.norm2 = nn.LayerNorm(recipe.dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, S, d) → (B, S, d)."""
        x = self.norm1(x * self.alpha + self.attention(x, bias))
        return self.norm2(x * self.alpha + self.ffn(x))


class BeatsEncoder(nn.Module):
    """waveform (B, 15600) → F_A (B, d): the mean of the tokens, 16 × 16 patches of the filter bank."""

    def __init__(self, recipe: BeatsRecipe) -> None:
        super().__init__()
        self.filter_bank = KaldiFilterBank()
        self.patch = nn.Conv2d(1, recipe.embed_dim, recipe.patch, stride=recipe.patch, bias=False)
        self.patch_norm = nn.LayerNorm(recipe.embed_dim)
        self.project = nn.Linear(recipe.embed_dim, recipe.dim)
        self.positions = nn.Conv1d(
            recipe.dim,
            recipe.dim,
            recipe.position_kernel,
            padding=recipe.position_kernel // 2,
            groups=recipe.position_groups,
        )
        self.norm = nn.LayerNorm(recipe.dim)
        self.layers = nn.ModuleList(BeatsLayer(recipe) for _ in range(recipe.layers))
        self.bias_table = nn.Parameter(torch.randn(recipe.relative_buckets, recipe.heads) * 0.02)
        self.tokens = (FRAMES // recipe.patch) * (MEL_BANDS // recipe.patch)
        buckets = compute_position_buckets(self.tokens, recipe.relative_buckets, recipe.relative_distance)
        self.buckets: Tensor
        self.register_buffer("buckets", torch.from_numpy(buckets), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.patch(self.filter_bank(waveform)).flatten(2).transpose(1, 2)
        x = self.project(self.patch_norm(x))
        # An even kernel gives one position too many: omit the last.
        placed = self.positions(x.transpose(1, 2))[:, :, : self.tokens].transpose(1, 2)
        x = self.norm(x + F.gelu(placed))
        bias = self.bias_table[self.buckets.flatten()].view(self.tokens, self.tokens, -1).permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x, bias)
        return x.mean(dim=1)


def make_beats(recipe: Recipe) -> nn.Module:
    """Build the audio encoder ``beats`` of a recipe."""
    return BeatsEncoder(recipe.beats)
