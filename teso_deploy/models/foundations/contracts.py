"""The parts of a model that its visual foundation defines."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from teso_deploy.models.decoder import Memory
from teso_deploy.recipe import Recipe


class Encoded(NamedTuple):
    """What an encoder computes from pictures in training.

    Attributes:
        memory: The decoder's input.
        maps: Maps of the backbone's stages, for a teacher; empty if the foundation has none.
        mask_features: (B, D, H/4, W/4) for a tagger; None if the foundation has none.
    """

    memory: Memory | Tensor
    maps: tuple[Tensor, ...] = ()
    mask_features: Tensor | None = None


class Decoded(NamedTuple):
    """What a decoder predicts in training, for each of its S states one after the other.

    Attributes:
        mask_logits: (S·N, Q, h, w).
        class_logits: (S·N, Q, C + 1); None for a foundation without classes, whose one mask is the answer.
    """

    mask_logits: Tensor
    class_logits: Tensor | None = None


class Foundation(Protocol):
    """A visual encoder and the decoder that belongs to it."""

    def query_shape(self, recipe: Recipe) -> tuple[int, int]:
        """Return how many queries the decoder takes, and their width d."""

    def make_visual_encoder(self, recipe: Recipe) -> nn.Module:
        """Build the encoder: image (B, 3, H, W), normalised → the decoder's memory."""

    def make_decoder(self, recipe: Recipe) -> nn.Module:
        """Build the decoder: queries (B, Q, d), memory → what :meth:`score_classes` reads."""

    def encode(self, encoder: nn.Module, image: Tensor) -> Encoded:
        """Run the visual encoder of :meth:`make_visual_encoder` in training: image (B, 3, H, W)."""

    def decode_states(self, recipe: Recipe, decoder: nn.Module, *, queries: Tensor, memory: Memory | Tensor) -> Decoded:
        """Run the decoder in training, and keep what it predicts on the way.

        Args:
            recipe: The recipe of the model.
            decoder: The decoder of :meth:`make_decoder`.
            queries: (N, Q, d).
            memory: The memory of N pictures.
        """

    def score_logits(self, recipe: Recipe, decoded: Decoded) -> Tensor:
        """Compute class probabilities (N, C, h, w) from the predictions of one state."""

    def score_classes(self, recipe: Recipe, decoder: nn.Module, *, queries: Tensor, memory: Memory | Tensor) -> Tensor:
        """Run the decoder.

        Args:
            recipe: The recipe of the model.
            decoder: The decoder of :meth:`make_decoder`.
            queries: (B, Q, d).
            memory: The output of the visual encoder.

        Returns:
            Class probabilities (B, C, h, w).
        """

    def list_memory_names(self, recipe: Recipe) -> tuple[str, ...]:
        """List the names of the memory's tensors in exported graphs, in the order of ``graphs.flatten_memory``."""
