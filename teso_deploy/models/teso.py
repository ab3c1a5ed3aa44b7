"""The whole TeSO model, built from a recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teso_deploy.models.audio import Vggish
from teso_deploy.models.beats import BeatsEncoder
from teso_deploy.models.decoder import DecoderMemory, MaskedDecoder, Memory, segmentation_scores
from teso_deploy.models.fusion import Fusion
from teso_deploy.models.layers import Adapter
from teso_deploy.models.pixel_decoder import PixelDecoder
from teso_deploy.models.sam import SamVisualEncoder
from teso_deploy.models.sam_decoder import SamMaskDecoder
from teso_deploy.models.segpref import SegprefFusion
from teso_deploy.models.swin import Swin
from teso_deploy.models.tagger import Tagger
from teso_deploy.recipe import AudioRecipe, BeatsRecipe, Recipe


class VisualEncoder(nn.Module):
    """Swin, pixel decoder and the picture's part of the decoder: (B, 3, H, W) → :class:`Memory`."""

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


def audio_encoder(audio: AudioRecipe, beats: BeatsRecipe) -> nn.Module:
    """Build the recipe's encoder: waveform (B, 15600) → F_A (B, d_A)."""
    return BeatsEncoder(beats) if audio.encoder == "beats" else Vggish(audio)


def class_scores(recipe: Recipe, decoder: nn.Module, queries: Tensor, memory: Memory | Tensor) -> Tensor:
    """Compute the scores of the classes (B, C, h, w).

    SAM has no classes: its result is the mask of one of its mask tokens (``sam.mask_token``).

    Args:
        recipe: The recipe.
        decoder: Its decoder.
        queries: Prompted queries (B, Q, d).
        memory: The output of the visual encoder.
    """
    if recipe.foundation == "sam":
        return torch.sigmoid(decoder(queries, memory)[:, recipe.sam.mask_token, None])
    class_logits, mask_logits = decoder(queries, memory)
    return segmentation_scores(class_logits, mask_logits, recipe.head)


class Teso(nn.Module):
    """Visual encoder, audio encoder, fusion (SeDAM and PMQS) and decoder; each is exported as a graph."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        is_sam = recipe.foundation == "sam"
        size = recipe.image.sizes[0][0]
        dim = recipe.sam.dim if is_sam else recipe.pixel_decoder.dim
        queries = recipe.sam.mask_tokens if is_sam else recipe.decoder.queries
        fusion = SegprefFusion if recipe.fusion.kind == "segpref" else Fusion
        # The random weights of a seed depend on this order.
        self.visual_encoder = SamVisualEncoder(recipe.sam, size, recipe.adapters) if is_sam else VisualEncoder(recipe)
        self.audio_encoder = audio_encoder(recipe.audio, recipe.beats)
        self.fusion = fusion(recipe.audio.dim, recipe.text, recipe.fusion, queries, dim)
        self.decoder = (
            SamMaskDecoder(recipe.sam, size, recipe.adapters)
            if is_sam
            else MaskedDecoder(
                dim, recipe.pixel_decoder.mask_dim, recipe.decoder, len(recipe.head.classes), recipe.adapters
            )
        )
        # One choice of the recipe for all adapters, set here instead of passed through every layer.
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
        return class_scores(self.recipe, self.decoder, queries, self.visual_encoder(image)), gate


def build(recipe: Recipe, seed: int | None = None) -> Teso:
    """Build the PyTorch model of a recipe, on the CPU, in eval mode. ``seed`` fixes its random weights."""
    if seed is None:
        return Teso(recipe).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Teso(recipe).eval()
