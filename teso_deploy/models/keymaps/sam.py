"""SAM: Hugging Face's ``SamModel`` (the same names in 4.x and 5.x) and Meta's own files.

Targets are keys of the whole model: the mask tokens are the queries of the fusion. Prompts by points, boxes and masks,
and the head that predicts IoUs, are not used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from teso_deploy.models.keymaps.rules import Format, Rule, copy_tensor, layer, reshape_tensor, split
from teso_deploy.recipe import Recipe


@dataclass(frozen=True, slots=True)
class _Names:
    """The names in one release."""

    encoder: str
    positions: str
    patch: str
    block: str
    norms: tuple[str, str]
    neck: tuple[str, str, str, str]
    two_way: tuple[str, str, str, str, str, str, str, str]
    final_norm: str
    upscale: tuple[str, str, str]
    hypernetwork: tuple[str, str, str]
    frequencies: str
    ignored: tuple[str, ...]


HUGGING_FACE = _Names(
    encoder="vision_encoder.",
    positions="pos_embed",
    patch="patch_embed.projection",
    block="layers",
    norms=("layer_norm1", "layer_norm2"),
    neck=("neck.conv1", "neck.layer_norm1", "neck.conv2", "neck.layer_norm2"),
    two_way=(
        "self_attn", "layer_norm1", "cross_attn_token_to_image", "layer_norm2",
        "mlp", "layer_norm3", "cross_attn_image_to_token", "layer_norm4",
    ),
    final_norm="layer_norm_final_attn",
    upscale=("upscale_conv1", "upscale_layer_norm", "upscale_conv2"),
    hypernetwork=("proj_in", "layers.0", "proj_out"),
    frequencies="shared_image_embedding.positional_embedding",
    ignored=(
        "prompt_encoder.shared_embedding.", "prompt_encoder.mask_embed.", "prompt_encoder.point_embed.",
        "prompt_encoder.not_a_point_embed.", "mask_decoder.iou_prediction_head.",
    ),
)  # fmt: skip
META = _Names(
    encoder="image_encoder.",
    positions="pos_embed",
    patch="patch_embed.proj",
    block="blocks",
    norms=("norm1", "norm2"),
    neck=("neck.0", "neck.1", "neck.2", "neck.3"),
    two_way=(
        "self_attn", "norm1", "cross_attn_token_to_image", "norm2",
        "mlp", "norm3", "cross_attn_image_to_token", "norm4",
    ),
    final_norm="norm_final_attn",
    upscale=("output_upscaling.0", "output_upscaling.1", "output_upscaling.3"),
    hypernetwork=("layers.0", "layers.1", "layers.2"),
    frequencies="prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ignored=(
        "prompt_encoder.point_embeddings.", "prompt_encoder.not_a_point_embed.", "prompt_encoder.mask_downscaling.",
        "mask_decoder.iou_prediction_head.",
    ),
)  # fmt: skip


def _encoder(recipe: Recipe, names: _Names) -> Iterator[Rule]:
    source, target = names.encoder, "visual_encoder."
    sam = recipe.sam
    side = recipe.image.sizes[0][0] // sam.patch
    yield reshape_tensor(f"{source}{names.positions}", f"{target}positions", (side * side, sam.embed_dim))
    yield from layer(f"{source}{names.patch}", f"{target}patch")
    for i in range(sam.layers):
        theirs, ours = f"{source}{names.block}.{i}.", f"{target}blocks.{i}."
        for kind in ("weight", "bias"):
            yield split(f"{theirs}attn.qkv.{kind}", [f"{ours}attention.{n}.{kind}" for n in ("query", "key", "value")])
        yield from layer(f"{theirs}attn.proj", f"{ours}attention.output")
        yield copy_tensor(f"{theirs}attn.rel_pos_h", f"{ours}attention.rows")
        yield copy_tensor(f"{theirs}attn.rel_pos_w", f"{ours}attention.columns")
        yield from layer(f"{theirs}{names.norms[0]}", f"{ours}norm1")
        yield from layer(f"{theirs}{names.norms[1]}", f"{ours}norm2")
        yield from layer(f"{theirs}mlp.lin1", f"{ours}mlp.inner")
        yield from layer(f"{theirs}mlp.lin2", f"{ours}mlp.outer")
    for i, name in enumerate(names.neck):
        yield from layer(f"{source}{name}", f"{target}neck.{i}", bias=i % 2 == 1)


def _attention(source: str, target: str) -> Iterator[Rule]:
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output")):
        yield from layer(f"{source}.{theirs}", f"{target}.{ours}")


def _decoder(recipe: Recipe, names: _Names) -> Iterator[Rule]:
    source, target = "mask_decoder.", "decoder."
    yield copy_tensor(f"{source}mask_tokens.weight", "fusion.queries")
    yield copy_tensor(f"{source}iou_token.weight", f"{target}iou_token")
    yield reshape_tensor("prompt_encoder.no_mask_embed.weight", f"{target}no_mask", (recipe.sam.dim,))
    yield copy_tensor(names.frequencies, f"{target}frequencies")
    ours_of = ("self_attention", "norm1", "to_image", "norm2", "mlp", "norm3", "to_tokens", "norm4")
    for i in range(recipe.sam.decoder_layers):
        for theirs, ours in zip(names.two_way, ours_of, strict=True):
            inside, place = f"{source}transformer.layers.{i}.{theirs}", f"{target}layers.{i}.{ours}"
            if ours == "mlp":
                yield from layer(f"{inside}.lin1", f"{place}.inner")
                yield from layer(f"{inside}.lin2", f"{place}.outer")
            elif ours.startswith("norm"):
                yield from layer(inside, place)
            else:
                yield from _attention(inside, place)
    yield from _attention(f"{source}transformer.final_attn_token_to_image", f"{target}final_attention")
    yield from layer(f"{source}transformer.{names.final_norm}", f"{target}final_norm")
    for name, at in zip(names.upscale, (0, 1, 3), strict=True):
        yield from layer(f"{source}{name}", f"{target}upscale.{at}")
    for i in range(recipe.sam.mask_tokens):
        for name, at in zip(names.hypernetwork, (0, 2, 4), strict=True):
            yield from layer(f"{source}output_hypernetworks_mlps.{i}.{name}", f"{target}hypernetworks.{i}.{at}")


def _format(name: str, names: _Names) -> Format:
    def rules(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
        yield from _encoder(recipe, names)
        yield from _decoder(recipe, names)

    def recognises(keys: Collection[str]) -> bool:
        return names.frequencies in keys and any(key.startswith(names.encoder) for key in keys)

    return Format(name, "visual", recognises, rules, lambda key: key.startswith(names.ignored))


SAM_HUGGING_FACE = _format("Hugging Face SAM", HUGGING_FACE)
SAM_META = _format("Meta's SAM", META)
