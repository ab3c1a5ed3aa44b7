"""SeDAM and PMQS: how sound and cues are combined, and how they prompt the mask queries (sections 3.2 and 3.3).

Where the paper gives no details, the choices are ours (``docs/explanation/paper.md`` has them all):

- The latents are an MLP of F_A, with a LayerNorm at its end, scaled by learned vectors. One repeated vector, as in the
  released code, makes the attention a no-op.
- Text and audio are projected to one width first.
- SeDAM is pre-norm, without a norm on its keys and without positions. All layers but the last have a feed-forward
  network.
- PMQS is pre-norm, with a feed-forward network in every layer.
- A learned fallback cue is used when no cue is offered, because sound reaches the masks only through the cues.

Ablations (``fusion.without``). The paper does not say what replaces a part; ours:
``sedam``: a cue's prompt is its projection plus the mean of the latents, and every offered cue is alive.
``pmqs``: the mean of the prompts that are alive is added to each query.
``dynamic_mask``: every offered cue is alive, whatever ξ is. ``text``: always the fallback cue. ``audio``: F_A is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teso_deploy.models.layers import MASKED_SCORE, Attention, FeedForward
from teso_deploy.recipe import FusionRecipe, TextRecipe


class AudioLatents(nn.Module):
    """F_A (B, d_A) → N_L latents a_i = MLP(F_A) ⊙ e_i, (B, N_L, d) (section 3.2; the form is ours)."""

    def __init__(self, audio_dim: int, recipe: FusionRecipe) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(audio_dim, recipe.dim), nn.ReLU(), nn.Linear(recipe.dim, recipe.dim), nn.LayerNorm(recipe.dim)
        )
        self.latents = nn.Parameter(torch.randn(recipe.latents, recipe.dim))

    def forward(self, audio: Tensor) -> Tensor:
        return self.mlp(audio)[:, None, :] * self.latents


class Sedam(nn.Module):
    """Crossmodal layers from the cues to the audio latents, and the dynamic mask of the cues (section 3.2)."""

    def __init__(self, text_dim: int, output_dim: int, recipe: FusionRecipe) -> None:
        super().__init__()
        dim, layers = recipe.dim, recipe.sedam_layers
        self.project = nn.Linear(text_dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(Attention(dim, recipe.heads) for _ in range(layers))
        self.ffn_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers - 1))
        self.ffns = nn.ModuleList(FeedForward(dim, recipe.ffn_dim, nn.ReLU()) for _ in range(layers - 1))
        self.output = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, output_dim))

    def forward(self, cues: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Map cues (B, N_T, d_T) and latents (B, N_L, d) to F_AT (B, N_T, output_dim) and ξ (B, N_T).

        ξ (eqs. 3-4) is the mean over heads and keys of the last layer's scaled scores before softmax.
        """
        x = self.project(cues)
        for i, attention in enumerate(self.attentions):
            scores = attention.scores(self.norms[i](x), latents)
            x = x + attention.attend_values(scores, latents)
            if i < len(self.ffns):
                x = x + self.ffns[i](self.ffn_norms[i](x))
        return self.output(x), scores.float().mean(dim=(1, 3))


class PlainSum(nn.Module):
    """Replaces SeDAM: a cue's projection plus the mean of the latents; ξ is 1."""

    def __init__(self, text_dim: int, output_dim: int, recipe: FusionRecipe) -> None:
        super().__init__()
        self.project = nn.Linear(text_dim, recipe.dim)
        self.output = nn.Sequential(nn.LayerNorm(recipe.dim), nn.Linear(recipe.dim, output_dim))

    def forward(self, cues: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Map cues and latents; see :meth:`Sedam.forward`."""
        prompts = self.output(self.project(cues) + latents.mean(dim=1, keepdim=True))
        return prompts, torch.ones_like(prompts[..., 0], dtype=torch.float32)


class MeanPrompt(nn.Module):
    """Replaces PMQS: adds the mean of the prompts that are alive to each query."""

    def forward(self, queries: Tensor, prompts: Tensor, alive: Tensor) -> Tensor:
        """Prompt the queries; see :meth:`Pmqs.forward`.

        Args:
            queries: (B, Q, d).
            prompts: F_AT, (B, N_T, d).
            alive: (B, N_T) bool.
        """
        weight = alive.to(prompts.dtype)[..., None]
        return queries + (prompts * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


class Pmqs(nn.Module):
    """Prompts the mask queries with the cues that are alive (section 3.3, eqs. 5-6).

    Without alive cues they do not change.
    """

    def __init__(self, dim: int, recipe: FusionRecipe) -> None:
        super().__init__()
        layers = recipe.pmqs_layers
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(Attention(dim, recipe.heads) for _ in range(layers))
        self.ffn_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.ffns = nn.ModuleList(FeedForward(dim, recipe.ffn_dim, nn.ReLU()) for _ in range(layers))

    def forward(self, queries: Tensor, prompts: Tensor, alive: Tensor) -> Tensor:
        """Prompt the queries.

        Args:
            queries: (B, Q, d).
            prompts: F_AT, (B, N_T, d).
            alive: (B, N_T) bool.

        Returns:
            (B, Q, d).
        """
        any_alive = alive.any(dim=1).to(queries.dtype)[:, None, None]
        masked = ((~alive).to(queries.dtype) * MASKED_SCORE)[:, None, None, :]
        for i, attention in enumerate(self.attentions):
            scores = attention.scores(self.norms[i](queries), prompts) + masked
            queries = queries + any_alive * attention.attend_values(scores, prompts)
            queries = queries + any_alive * self.ffns[i](self.ffn_norms[i](queries))
        return queries


class Fusion(nn.Module):
    """The graph ``fusion``: sound and cues → prompted queries and ξ."""

    def __init__(self, audio_dim: int, text: TextRecipe, recipe: FusionRecipe, *, queries: int, query_dim: int) -> None:
        super().__init__()
        self.latents = AudioLatents(audio_dim, recipe)
        self.without = recipe.without
        self.gate_threshold = recipe.gate_threshold
        self.sedam = (PlainSum if "sedam" in recipe.without else Sedam)(text.dim, query_dim, recipe)
        self.pmqs = MeanPrompt() if "pmqs" in recipe.without else Pmqs(query_dim, recipe)
        self.queries = nn.Parameter(torch.randn(queries, query_dim))
        self.fallback_cue = nn.Parameter(torch.randn(text.dim) / text.dim**0.5)

    def fill_cues(self, cues: Tensor, cue_valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cues with zero rows where unused. If none is valid, slot 0 holds the fallback cue."""
        none = ~cue_valid.any(dim=1, keepdim=True)  # (B, 1)
        first = torch.arange(cues.shape[1], device=cues.device) == 0  # (N_T,)
        fallback = none & first
        cues = cues * cue_valid[..., None].to(cues.dtype)
        return torch.where(fallback[..., None], self.fallback_cue, cues), cue_valid | fallback

    def forward(self, audio: Tensor, cues: Tensor, cue_valid: Tensor) -> tuple[Tensor, Tensor]:
        """Combine sound and cues.

        Args:
            audio: (B, d_A).
            cues: (B, N_T, d_T).
            cue_valid: (B, N_T) bool.

        Returns:
            Queries (B, Q, d) and ξ (B, N_T) float32, which is 0 in slots without a cue. Without a valid cue, slot 0
            has the ξ of the fallback cue.
        """
        queries, gate, _ = self.fuse(audio, cues, cue_valid, gate_threshold=self.gate_threshold)
        return queries, gate

    def fuse(
        self, audio: Tensor, cues: Tensor, cue_valid: Tensor, *, gate_threshold: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do the same as :meth:`forward`, and also return the latents (B, N_L, d), which training needs for InfoNCE.

        Args:
            audio: (B, d_A).
            cues: (B, N_T, d_T).
            cue_valid: (B, N_T) bool.
            gate_threshold: A cue is alive if its ξ exceeds this: 0 in training, calibrated in an exported graph.
        """
        if "text" in self.without:
            cue_valid = torch.zeros_like(cue_valid)
        if "audio" in self.without:
            audio = audio * 0
        cues, valid = self.fill_cues(cues, cue_valid)
        latents = self.latents(audio)
        prompts, gate = self.sedam(cues, latents)
        gate = (gate - gate_threshold) * valid.to(gate.dtype)
        alive = valid if "dynamic_mask" in self.without else valid & (gate > 0)
        queries = self.queries.expand(audio.shape[0], -1, -1)
        return self.pmqs(queries, prompts, alive), gate, latents
