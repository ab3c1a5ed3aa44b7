"""CLIP's text tower (Radford et al., 2021, section 2.4): OpenCLIP ViT-H/14, which is ImageBind's text encoder too.

Token and position embeddings, a pre-norm transformer in which a token sees only what is before
it, a last norm, and a linear layer without bias at the token that ends the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.layers import MASKED_SCORE, Attention, FeedForward
from teso_deploy.recipe import ClipTextRecipe

#: OpenCLIP's and Hugging Face's ε of the norms; ImageBind's is 1e-6.
NORM_EPS = 1e-5
#: What ImageBind's learned scale is clamped to.
LARGEST_SCALE = 100.0


class QuickGelu(nn.Module):
    """x · σ(1.702 x), the activation of OpenAI's own towers."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


class Norm(nn.Module):
    """Layer norm with an ε that is a tensor: which it is, the checkpoint says.

    It matters: embedded tokens are small (from 0.02 on, OpenCLIP's start), 1e-5 is 2 % of their variance.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """(..., d), ε () → (..., d)."""
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred * torch.rsqrt(variance + eps) * self.weight + self.bias


class ClipTextLayer(nn.Module):
    """Masked self-attention and an MLP, each behind a norm."""

    def __init__(self, recipe: ClipTextRecipe) -> None:
        super().__init__()
        activation = QuickGelu() if recipe.activation == "quick_gelu" else nn.GELU()
        self.norm1 = Norm(recipe.width)
        self.attention = Attention(recipe.width, recipe.heads)
        self.norm2 = Norm(recipe.width)
        self.mlp = FeedForward(recipe.width, recipe.mlp_dim, activation)

    def forward(self, x: Tensor, seen: Tensor, eps: Tensor) -> Tensor:
        """(N, L, d), what each token sees (N or 1, 1, L, L) bool, ε () → (N, L, d)."""
        normed = self.norm1(x, eps)
        scores = torch.where(seen, self.attention.scores(normed, normed), MASKED_SCORE)
        x = x + self.attention.attended(scores, normed)
        return x + self.mlp(self.norm2(x, eps))


class ClipText(nn.Module):
    """Token rows → embeddings (N, ``output_dim``).

    Two things come with the checkpoint, not with the recipe: ``log_scale``, the logarithm of the
    learned scale of a normalised embedding (ImageBind; 0 without one), and ``norm_eps``.
    """

    log_scale: Tensor
    norm_eps: Tensor

    def __init__(self, recipe: ClipTextRecipe, output_dim: int) -> None:
        super().__init__()
        self.normalised = recipe.normalised
        self.token_embedding = nn.Embedding(recipe.vocabulary, recipe.width)
        self.positions = nn.Parameter(torch.randn(recipe.context, recipe.width) * 0.01)
        self.layers = nn.ModuleList(ClipTextLayer(recipe) for _ in range(recipe.layers))
        self.norm = Norm(recipe.width)
        self.projection = nn.Linear(recipe.width, output_dim, bias=False)
        self.register_buffer("log_scale", torch.zeros(()))
        self.register_buffer("norm_eps", torch.tensor(NORM_EPS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Ids (N, L) int64, L up to the context, and which of them are no padding (N, L) → (N, ``output_dim``).

        The text ends at the first of its highest ids, for the token that ends it has the highest
        there is; what is behind it is not seen by it, so padding needs no mask.
        """
        length = input_ids.shape[1]
        place = torch.arange(length, device=input_ids.device)
        seen = (place[None, :] <= place[:, None])[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask.bool()[:, None, None, :]
        x = self.token_embedding(input_ids) + self.positions[:length]
        for layer in self.layers:
            x = layer(x, seen, self.norm_eps)
        # int32: runtimes lack the arg-maximum of int64.
        end = input_ids.to(torch.int32).argmax(dim=1)
        last = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        embedded = self.projection(self.norm(last, self.norm_eps))
        if self.normalised:
            return F.normalize(embedded, dim=-1) * self.log_scale.exp().clamp(max=LARGEST_SCALE)
        return embedded
