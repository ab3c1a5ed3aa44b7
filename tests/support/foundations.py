"""Small foundations of Hugging Face with random weights, and weights of a reasonable scale for any module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from teso_deploy.recipe import Recipe

#: Mask2Former has group norms with 32 groups, so no width may be smaller.
SMALL: dict[str, Any] = {
    "name": "small",
    "image": {"sizes": [[64, 64]]},
    "swin": {"embed_dim": 8, "depths": [1, 2, 2, 1], "heads": [1, 2, 2, 4], "window": 4, "shift_covered": True},
    "pixel_decoder": {"dim": 32, "layers": 2, "heads": 4, "points": 4, "ffn_dim": 48, "mask_dim": 32},
    "decoder": {"queries": 7, "layers": 4, "heads": 4, "ffn_dim": 40},
    "audio": {"channels": [4, 4, 8, 8, 8, 8], "hidden": [16, 16], "dim": 12},
    "text": {"encoder": "clip", "dim": 24, "max_cues": 4},
    "clip_text": {"width": 32, "layers": 2, "heads": 4, "mlp_dim": 64, "context": 16, "vocabulary": 99},
    "fusion": {"dim": 16, "heads": 2, "latents": 3, "sedam_layers": 2, "pmqs_layers": 2, "ffn_dim": 32},
    "head": {"kind": "binary", "classes": ["sounding object"]},
}
#: Tables for :func:`small_recipe` if depth does not matter: the time of an export grows with the number of layers.
SHALLOW: dict[str, Any] = {
    "swin": {"depths": [1, 1, 2, 1]},
    "pixel_decoder": {"layers": 1},
    "decoder": {"layers": 2},
}


def small_recipe(**tables: Any) -> Recipe:
    """Return :data:`SMALL` with some tables replaced. A table given as a mapping replaces only its fields."""
    content = {
        key: {**value, **tables.get(key, {})} if isinstance(value, dict) else tables.get(key, value)
        for key, value in SMALL.items()
    }
    return Recipe.model_validate({**tables, **content})


def written(recipe: Recipe, path: Path) -> Path:
    """Write a recipe as a user's TOML file. JSON's values are also TOML's, except for null."""

    def lines(table: dict[str, Any], name: str) -> list[str]:
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        own = [f"{k} = {json.dumps(v)}" for k, v in table.items() if v is not None and k not in inner]
        below = [line for key, value in inner.items() for line in lines(value, f"{name}.{key}" if name else key)]
        return [*([f"[{name}]"] if name else []), *own, *below]

    path.write_text("\n".join(lines(recipe.model_dump(mode="json", by_alias=True), "")) + "\n", encoding="utf-8")
    return path


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Set random weights scaled by fan-in, norms around 1 and biases around 0, so that nothing vanishes or is equal."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "sampling_offsets" in name:
            value.copy_(noise * (0.05 if value.ndim > 1 else 2.0))
        elif value.ndim >= 2:
            value.copy_(noise / value[0].numel() ** 0.5)
        else:
            value.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))


def hugging_face_mask2former(recipe: Recipe, classes: int, seed: int = 0) -> Any:
    """``Mask2FormerForUniversalSegmentation`` of a recipe's sizes with random weights."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin, pixel, decoder = recipe.swin, recipe.pixel_decoder, recipe.decoder
    backbone = SwinConfig(
        image_size=recipe.image.sizes[0][0],
        embed_dim=swin.embed_dim,
        depths=list(swin.depths),
        num_heads=list(swin.heads),
        window_size=swin.window,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,  # type: ignore[arg-type]
        feature_size=pixel.dim,
        mask_feature_size=pixel.mask_dim,
        hidden_dim=pixel.dim,
        encoder_feedforward_dim=pixel.ffn_dim,
        encoder_layers=pixel.layers,
        # One more than there are, because the last prediction counts as a layer.
        decoder_layers=decoder.layers + 1,
        num_attention_heads=decoder.heads,
        dim_feedforward=decoder.ffn_dim,
        num_queries=decoder.queries,
        num_labels=classes,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    randomise(model, seed)
    return model.eval()
