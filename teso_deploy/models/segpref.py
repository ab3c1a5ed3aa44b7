"""The fusion of the authors' released code, which differs from the paper (eqs. 1-6), to run such checkpoints.

An MLP each maps F_A and the cues to one width. One attention brings the sound to the cues, another one the cues to the
mask queries. It has no mask and no gate: slots without a cue hold the embedding of "None", and every slot is used
(`SegPref/models` of the release).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teso_deploy.models.layers import Attention
from teso_deploy.recipe import FusionRecipe, TextRecipe


class PooledAttention(nn.Module):
    """target + σ(β₁) · attention(target, source) + σ(β₂) · mean(source); no norm, no feed-forward."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.attention_share = nn.Parameter(torch.ones(1))
        self.pool_share = nn.Parameter(torch.ones(1))

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """(B, T, d), (B, S, d) → (B, T, d)."""
        attended = torch.sigmoid(self.attention_share) * self.attention(target, source, source)
        return target + attended + torch.sigmoid(self.pool_share) * source.mean(dim=1, keepdim=True)


def _make_mlp(inside: int, hidden: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, hidden), nn.ReLU(), nn.Linear(hidden, outside))


class SegprefFusion(nn.Module):
    """The graph ``fusion``: sound and cues → prompted queries. Its ξ is 1 for each slot that is used."""

    def __init__(self, audio_dim: int, text: TextRecipe, recipe: FusionRecipe, *, queries: int, query_dim: int) -> None:
        super().__init__()
        self.audio_projection = _make_mlp(audio_dim, recipe.ffn_dim, recipe.dim)
        self.text_projection = _make_mlp(text.dim, recipe.ffn_dim, recipe.dim)
        self.prompt_projection = _make_mlp(recipe.dim, recipe.ffn_dim, query_dim)
        self.cue_attention = PooledAttention(recipe.dim, recipe.heads)
        self.query_attention = PooledAttention(query_dim, recipe.heads)
        self.queries = nn.Parameter(torch.randn(queries, query_dim))

    def forward(self, audio: Tensor, cues: Tensor, cue_valid: Tensor) -> tuple[Tensor, Tensor]:
        """Combine sound and cues.

        Args:
            audio: (B, d_A).
            cues: (B, N_T, d_T).
            cue_valid: (B, N_T) bool.

        Returns:
            Queries (B, Q, d) and ξ (B, N_T).
        """
        # The release repeats this latent N_L times. For an attention, that is the same as once.
        latent = self.audio_projection(audio)[:, None, :]
        prompts = self.prompt_projection(self.cue_attention(self.text_projection(cues), latent))
        queries = self.queries.expand(audio.shape[0], -1, -1)
        return self.query_attention(queries, prompts), cue_valid.float()
