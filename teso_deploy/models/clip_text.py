"""CLIP's text tower (Radford et al., 2021, section 2.4): OpenCLIP ViT-H/14, which is also ImageBind's text encoder.

It has token and position embeddings, a causal pre-norm transformer, a last norm, and a linear layer without bias at the
token that ends the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.layers import MASKED_SCORE, Attention, FeedForward
from teso_deploy.recipe import ClipTextRecipe

#: The ε of the norms in OpenCLIP and Hugging Face; ImageBind's is 1e-6.
NORM_EPS = 1e-5
#: ImageBind limits its learned factor of the output to this.
LARGEST_SCALE = 100.0


class QuickGelu(nn.Module):
    """x · σ(1.702 x), the activation of OpenAI's towers."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


class Norm(nn.Module):
    """Layer norm whose ε is a tensor, because it depends on the checkpoint.

    The value matters: embedded tokens are small (OpenCLIP starts at 0.02), so 1e-5 is 2 % of their variance.
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
    """Masked self-attention and an MLP, each after a norm."""

    def __init__(self, recipe: ClipTextRecipe) -> None:
        super().__init__()
        activation = QuickGelu() if recipe.activation == "quick_gelu" else nn.GELU()
        self.norm1 = Norm(recipe.width)
        self.attention = Attention(recipe.width, recipe.heads)
        self.norm2 = Norm(recipe.width)
        self.mlp = FeedForward(recipe.width, recipe.mlp_dim, activation)

    def forward(self, x: Tensor, seen: Tensor, eps: Tensor) -> Tensor:
        """Transform (N, L, d) tokens.

        Args:
            x: Tokens (N, L, d).
            seen: Which tokens each token attends to, (N or 1, 1, L, L) bool.
            eps: ε of the norms, ().
        """
        normed = self.norm1(x, eps)
        scores = torch.where(seen, self.attention.scores(normed, normed), MASKED_SCORE)
        x = x + self.attention.attend_values(scores, normed)
        return x + self.mlp(self.norm2(x, eps))


class ClipText(nn.Module):
    """Token rows → embeddings (N, ``output_dim``).

    Two values belong to the checkpoint, not to the recipe: ``norm_eps``, and ``log_scale``, the logarithm of the
    learned scale of a normalised embedding (ImageBind; 0 without one).
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
        """Embed ids (N, L) int64, L up to the context; ``attention_mask`` (N, L) is 0 at padding.

        The text ends at its first highest id, because the end token has the highest id of all. Tokens after it are
        not attended to, so padding needs no mask.
        """
        length = input_ids.shape[1]
        place = torch.arange(length, device=input_ids.device)
        seen = (place[None, :] <= place[:, None])[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask.bool()[:, None, None, :]
        x = self.token_embedding(input_ids) + self.positions[:length]
        for layer in self.layers:
            x = layer(x, seen, self.norm_eps)
        # int32, because runtimes lack the arg-maximum of int64.
        end = input_ids.to(torch.int32).argmax(dim=1)
        last = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        embedded = self.projection(self.norm(last, self.norm_eps))
        if self.normalised:
            return F.normalize(embedded, dim=-1) * self.log_scale.exp().clamp(max=LARGEST_SCALE)
        return embedded
