"""The parts of a model that its visual foundation defines."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from teso_deploy.models.decoder import Memory
from teso_deploy.recipe import Recipe


class Foundation(Protocol):
    """A visual encoder and the decoder that belongs to it."""

    def query_shape(self, recipe: Recipe) -> tuple[int, int]:
        """Return how many queries the decoder takes, and their width d."""

    def make_visual_encoder(self, recipe: Recipe) -> nn.Module:
        """Build the encoder: image (B, 3, H, W), normalised → the decoder's memory."""

    def make_decoder(self, recipe: Recipe) -> nn.Module:
        """Build the decoder: queries (B, Q, d), memory → what :meth:`score_classes` reads."""

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
