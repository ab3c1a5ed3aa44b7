"""The whole TeSO model (section 3 of the paper), built from a recipe."""

from __future__ import annotations

from torch import Tensor, nn

from teso_deploy.architectures import AUDIO_ENCODERS, FOUNDATIONS
from teso_deploy.errors import RecipeError
from teso_deploy.models.foundations.contracts import Foundation
from teso_deploy.models.fusion import Fusion
from teso_deploy.models.layers import Adapter
from teso_deploy.models.methods import Model, build_model
from teso_deploy.models.segpref import SegprefFusion
from teso_deploy.named_objects import load_object
from teso_deploy.recipe import Recipe


def find_foundation(recipe: Recipe) -> Foundation:
    """Import the foundation that a recipe names."""
    foundation: Foundation = load_object(FOUNDATIONS[recipe.foundation].foundation)
    return foundation


def make_audio_encoder(recipe: Recipe) -> nn.Module:
    """Build the audio encoder that a recipe names: waveform (B, 15600) → F_A (B, d_A)."""
    encoder: nn.Module = load_object(AUDIO_ENCODERS[recipe.audio.encoder].factory)(recipe)
    return encoder


class Teso(Model):
    """Visual encoder, audio encoder, fusion (SeDAM and PMQS) and decoder; each is exported as a graph."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.foundation = find_foundation(recipe)
        queries, dim = self.foundation.query_shape(recipe)
        fusion = SegprefFusion if recipe.fusion.kind == "segpref" else Fusion
        # The random weights of a seed depend on this order.
        self.visual_encoder = self.foundation.make_visual_encoder(recipe)
        self.audio_encoder = make_audio_encoder(recipe)
        self.fusion = fusion(recipe.audio.dim, recipe.text, recipe.fusion, queries=queries, query_dim=dim)
        self.decoder = self.foundation.make_decoder(recipe)
        # All adapters use the same setting of the recipe. Setting it afterwards avoids passing it through every layer.
        for module in self.modules():
            if isinstance(module, Adapter):
                module.residual = recipe.adapter_residual

    def forward(self, image: Tensor, waveform: Tensor, cues: Tensor, cue_valid: Tensor) -> tuple[Tensor, Tensor]:
        """Segment pictures.

        Args:
            image: (B, 3, H, W).
            waveform: (B, 15600).
            cues: (B, N_T, d_T).
            cue_valid: (B, N_T) bool.

        Returns:
            The class scores (B, C, h, w), of eq. 7 at H/4 × W/4, and ξ (B, N_T).
        """
        queries, gate = self.fusion(self.audio_encoder(waveform), cues, cue_valid)
        return self.foundation.score_classes(
            self.recipe, self.decoder, queries=queries, memory=self.visual_encoder(image)
        ), gate


def build(recipe: Recipe, seed: int | None = None) -> Teso:
    """Build the model of a recipe of TeSO, on the CPU, in eval mode. ``seed`` fixes its random weights."""
    return require_teso(build_model(recipe, seed))


def require_teso(model: Model) -> Teso:
    """Return the model if its method is TeSO, otherwise raise :class:`RecipeError`."""
    if not isinstance(model, Teso):
        raise RecipeError(
            f"recipe {model.recipe.name} is of the method {model.recipe.method}, and only TeSO can be trained here"
        )
    return model
