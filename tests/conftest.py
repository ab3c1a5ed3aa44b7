"""Fixtures that every test may use."""

from __future__ import annotations

import pytest

from teso_deploy.recipe import Recipe

TINY = {
    "name": "tiny",
    "summary": "All parts at the smallest size, for tests.",
    "image": {"sizes": [[64, 64]]},
    "swin": {"embed_dim": 8, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 4},
    "pixel_decoder": {"dim": 16, "layers": 1, "heads": 2, "points": 2, "ffn_dim": 32, "mask_dim": 16},
    "decoder": {"queries": 6, "layers": 2, "heads": 2, "ffn_dim": 32},
    "audio": {"channels": [4, 4, 8, 8, 8, 8], "hidden": [16, 16], "dim": 12},
    "text": {"dim": 384, "max_cues": 4},
    "fusion": {"dim": 16, "heads": 2, "latents": 3, "sedam_layers": 2, "pmqs_layers": 2, "ffn_dim": 32},
    "head": {"kind": "semantic", "classes": ["dog", "cow", "car"], "threshold": 0.5},
}


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A recipe of 64 × 64 pixels and a few thousand weights."""
    return Recipe.model_validate(TINY)
