"""The whole of TeSO, built from a recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teso_deploy.models.audio import Vggish
from teso_deploy.models.decoder import DecoderMemory, MaskedDecoder, Memory, segmentation_scores
from teso_deploy.models.fusion import Fusion
from teso_deploy.models.pixel_decoder import PixelDecoder
from teso_deploy.models.swin import Swin
from teso_deploy.models.tagger import Tagger
from teso_deploy.recipe import Recipe


class VisualEncoder(nn.Module):
    """Swin, pixel decoder and the picture's half of the decoder: (B, 3, H, W) → :class:`Memory`."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.swin = Swin(recipe.swin, "swin" in recipe.adapters)
        self.pixel_decoder = PixelDecoder(recipe.pixel_decoder, self.swin.dims, "msda" in recipe.adapters)
        self.memory = DecoderMemory(recipe.pixel_decoder.dim, recipe.decoder)
        words = len(recipe.tagger.words)
        self.tagger = Tagger(recipe.pixel_decoder.mask_dim, words) if words else None

    def forward(self, image: Tensor) -> Memory:
        mask_features, maps = self.pixel_decoder(self.swin(image))
        return self.memory(mask_features, maps)


class Teso(nn.Module):
    """Visual encoder, audio encoder, fusion (SeDAM and PMQS), decoder: a graph each."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        dim = recipe.pixel_decoder.dim
        self.visual_encoder = VisualEncoder(recipe)
        self.audio_encoder = Vggish(recipe.audio)
        self.fusion = Fusion(recipe.audio.dim, recipe.text, recipe.fusion, recipe.decoder.queries, dim)
        self.decoder = MaskedDecoder(
            dim, recipe.pixel_decoder.mask_dim, recipe.decoder, len(recipe.head.classes), recipe.adapters
        )

    def forward(self, image: Tensor, waveform: Tensor, cues: Tensor, cue_valid: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, H, W), waveform (B, 15600), cues (B, N_T, d_T), cue_valid (B, N_T) bool.

        Returns the class scores (B, C, H/4, W/4) of eq. 7 and ξ (B, N_T).
        """
        queries, gate = self.fusion(self.audio_encoder(waveform), cues, cue_valid)
        class_logits, mask_logits = self.decoder(queries, self.visual_encoder(image))
        return segmentation_scores(class_logits, mask_logits, self.recipe.head), gate


def build(recipe: Recipe, seed: int | None = None) -> Teso:
    """The PyTorch model of a recipe, on the CPU, in eval mode; ``seed`` fixes its random weights."""
    if seed is None:
        return Teso(recipe).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Teso(recipe).eval()
