"""Hugging Face's ``Mask2FormerForUniversalSegmentation`` with a Swin backbone, with the names of 4.x and of 5.x.

Targets are keys of the whole model: the foundation gives the visual encoder, the decoder
and, as mask queries, ``fusion.queries``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from teso_deploy.models.keymaps.rules import Format, Rule, add_prefix, copy_tensor, layer, split
from teso_deploy.models.pixel_decoder import LEVELS
from teso_deploy.recipe import Recipe

BACKBONE = "model.pixel_level_module.encoder."
PIXEL_DECODER = "model.pixel_level_module.decoder."
TRANSFORMER = "model.transformer_module."
#: In transformers 5.x the backbone is nested one level deeper.
BACKBONE_5 = BACKBONE + "swin."
#: Computed tables, the loss, and a last norm that this backbone never calls because it has other norms.
_OF_NO_USE = re.compile(r"relative_position_index$|^criterion\.|^model\.pixel_level_module\.encoder\.swin\.layernorm\.")


def _swin_block(recipe: Recipe, of_5: bool) -> Iterator[Rule]:
    """The rules of one block, without its prefix."""
    attention = {
        "query": ("attention.self.query", "attention.q_proj"),
        "key": ("attention.self.key", "attention.k_proj"),
        "value": ("attention.self.value", "attention.v_proj"),
        "output": ("attention.output.dense", "attention.o_proj"),
    }
    for ours, theirs in attention.items():
        yield from layer(theirs[of_5], f"attention.{ours}")
    table = ("attention.self.", "attention.relative_position_bias.")[of_5] + "relative_position_bias_table"
    yield copy_tensor(table, "attention.bias_table")
    yield from layer("layernorm_before", "norm1")
    yield from layer("layernorm_after", "norm2")
    yield from layer(("intermediate.dense", "mlp.fc1")[of_5], "mlp.inner")
    yield from layer(("output.dense", "mlp.fc2")[of_5], "mlp.outer")


def list_swin_rules(recipe: Recipe, of_5: bool) -> Iterator[Rule]:
    """The rules of the backbone → ``visual_encoder.swin``."""
    source, target = (BACKBONE_5 if of_5 else BACKBONE), "visual_encoder.swin."
    yield from layer(f"{source}embeddings.patch_embeddings.projection", f"{target}patch")
    yield from layer(f"{source}embeddings.norm", f"{target}patch_norm")
    for stage, depth in enumerate(recipe.swin.depths):
        inside = f"{source}encoder.layers.{stage}."
        for block in range(depth):
            yield from add_prefix(
                _swin_block(recipe, of_5), f"{inside}blocks.{block}.", f"{target}stages.{stage}.{block}."
            )
        if stage < 3:
            yield from layer(f"{inside}downsample.norm", f"{target}merges.{stage}.norm")
            yield from layer(f"{inside}downsample.reduction", f"{target}merges.{stage}.reduction", bias=False)
        # In both releases these are beside the backbone's layers, not inside "swin".
        yield from layer(f"{BACKBONE}hidden_states_norms.stage{stage + 1}", f"{target}norms.{stage}")


def _convolution(source: str, target: str, *, bias: bool) -> Iterator[Rule]:
    """The rules of a convolution and its group norm."""
    yield from layer(f"{source}.0", f"{target}.0", bias=bias)
    yield from layer(f"{source}.1", f"{target}.1")


def list_pixel_decoder_rules(recipe: Recipe) -> Iterator[Rule]:
    """The rules of the pixel decoder → ``visual_encoder.pixel_decoder``."""
    source, target = PIXEL_DECODER, "visual_encoder.pixel_decoder."
    yield copy_tensor(f"{source}level_embed", f"{target}level_embedding")
    for level in range(LEVELS):
        yield from _convolution(f"{source}input_projections.{level}", f"{target}projections.{level}", bias=True)
    names = {
        "self_attn.value_proj": "attention.value",
        "self_attn.sampling_offsets": "attention.offsets",
        "self_attn.attention_weights": "attention.weights",
        "self_attn.output_proj": "attention.output",
        "self_attn_layer_norm": "norm1",
        "fc1": "ffn.inner",
        "fc2": "ffn.outer",
        "final_layer_norm": "norm2",
    }
    for i in range(recipe.pixel_decoder.layers):
        for theirs, ours in names.items():
            yield from layer(f"{source}encoder.layers.{i}.{theirs}", f"{target}layers.{i}.{ours}")
    yield from _convolution(f"{source}adapter_1", f"{target}lateral", bias=False)
    yield from _convolution(f"{source}layer_1", f"{target}smooth", bias=False)
    yield from layer(f"{source}mask_projection", f"{target}mask_projection")


def list_decoder_rules(recipe: Recipe) -> Iterator[Rule]:
    """The rules of the transformer decoder → ``decoder``, and of its picture part → ``visual_encoder.memory``."""
    source, target, memory = f"{TRANSFORMER}decoder.", "decoder.", "visual_encoder.memory."
    yield copy_tensor(f"{TRANSFORMER}queries_features.weight", "fusion.queries")
    yield copy_tensor(f"{TRANSFORMER}queries_embedder.weight", f"{target}query_positions")
    yield copy_tensor(f"{TRANSFORMER}level_embed.weight", f"{memory}level_embedding")
    names = {
        "cross_attn.out_proj": "cross_output",
        "cross_attn_layer_norm": "cross_norm",
        "self_attn.q_proj": "self_attention.query",
        "self_attn.k_proj": "self_attention.key",
        "self_attn.v_proj": "self_attention.value",
        "self_attn.out_proj": "self_attention.output",
        "self_attn_layer_norm": "self_norm",
        "fc1": "ffn.inner",
        "fc2": "ffn.outer",
        "final_layer_norm": "ffn_norm",
    }
    for i in range(recipe.decoder.layers):
        for kind in ("weight", "bias"):
            packed = (f"{target}layers.{i}.cross_query", f"{memory}keys.{i}", f"{memory}values.{i}")
            yield split(f"{source}layers.{i}.cross_attn.in_proj_{kind}", tuple(f"{name}.{kind}" for name in packed))
        for theirs, ours in names.items():
            yield from layer(f"{source}layers.{i}.{theirs}", f"{target}layers.{i}.{ours}")
    yield from layer(f"{source}layernorm", f"{target}norm")
    for i in range(3):
        yield from layer(f"{source}mask_predictor.mask_embedder.{i}.0", f"{target}mask_embedding.{2 * i}")


def list_mask2former_rules(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    """The rules of the whole foundation."""
    yield from list_swin_rules(recipe, any(key.startswith(BACKBONE_5) for key in tensors))
    yield from list_pixel_decoder_rules(recipe)
    yield from list_decoder_rules(recipe)
    yield from layer("class_predictor", "decoder.classifier")


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Count the different numbers at the position of ``(\\d+)``."""
    found = (re.match(pattern, key) for key in tensors)
    return len({match[1] for match in found if match})


def adapt_sizes(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Recipe:
    """Return the recipe with a file's sizes. Heads and points of attentions are not visible in it and stay."""
    source = BACKBONE_5 if any(key.startswith(BACKBONE_5) for key in tensors) else BACKBONE
    blocks = [_count(tensors, rf"{re.escape(source)}encoder\.layers\.{i}\.blocks\.(\d+)\.") for i in range(4)]
    tables = [
        next(
            (
                value.shape
                for key, value in tensors.items()
                if key.startswith(f"{source}encoder.layers.{i}.blocks.0.") and key.endswith("position_bias_table")
            ),
            (0, 0),
        )
        for i in range(4)
    ]
    layers = f"{re.escape(PIXEL_DECODER)}encoder\\.layers\\.(\\d+)\\."
    mask_dim, dim = tensors[f"{PIXEL_DECODER}mask_projection.weight"].shape[:2]
    swin = {
        "embed_dim": tensors[f"{source}embeddings.norm.weight"].shape[0],
        "depths": tuple(blocks),
        "heads": tuple(table[1] for table in tables),
        "window": (round(tables[0][0] ** 0.5) + 1) // 2,
    }
    pixel_decoder = {
        "dim": dim,
        "mask_dim": mask_dim,
        "layers": _count(tensors, layers),
        "ffn_dim": tensors[f"{PIXEL_DECODER}encoder.layers.0.fc1.weight"].shape[0],
    }
    decoder = {
        "queries": tensors[f"{TRANSFORMER}queries_features.weight"].shape[0],
        "layers": _count(tensors, f"{re.escape(TRANSFORMER)}decoder\\.layers\\.(\\d+)\\."),
        "ffn_dim": tensors[f"{TRANSFORMER}decoder.layers.0.fc1.weight"].shape[0],
    }
    return recipe.model_copy(
        update={
            "swin": recipe.swin.model_copy(update=swin),
            "pixel_decoder": recipe.pixel_decoder.model_copy(update=pixel_decoder),
            "decoder": recipe.decoder.model_copy(update=decoder),
        }
    )


def _recognises(keys: Collection[str]) -> bool:
    return any(key.startswith(PIXEL_DECODER) for key in keys) and f"{TRANSFORMER}queries_features.weight" in keys


MASK2FORMER = Format(
    name="Hugging Face Mask2Former (Swin)",
    part="visual",
    recognises=_recognises,
    rules=list_mask2former_rules,
    ignored=lambda key: _OF_NO_USE.search(key) is not None,
    sized=adapt_sizes,
    replaceable=("decoder.classifier.weight", "decoder.classifier.bias"),
)
