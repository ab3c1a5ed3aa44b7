"""BEATs as released by Microsoft: the ``model`` of a file that also has its ``cfg``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from teso_deploy.models.keymaps.rules import Format, Rule, copy_tensor, layer, reshape_tensor
from teso_deploy.recipe import Recipe

_TABLE = "encoder.layers.0.self_attn.relative_attention_bias.weight"
#: Keys that are not read: all layers share one table of positions, but the file has a copy for each. A fine-tuned model
#: also has a head.
_OF_NO_USE = re.compile(r"^encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight$|^predictor\.")


def _join_weight_norm(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Undo the weight normalisation: magnitude (1, 1, K) of each kernel position, direction (d, d / groups, K)."""
    magnitude, direction = tensors
    return (direction * (magnitude / direction.norm(dim=(0, 1), keepdim=True)),)


def list_beats_rules(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    """The rules of the whole encoder."""
    yield from layer("patch_embedding", "patch", bias=False)
    yield from layer("layer_norm", "patch_norm")
    yield from layer("post_extract_proj", "project")
    # The same two tensors have other names in PyTorch before 2.0 than today.
    new = "encoder.pos_conv.0.parametrizations.weight.original"
    parts = (f"{new}0", f"{new}1") if f"{new}0" in tensors else tuple(f"encoder.pos_conv.0.weight_{x}" for x in "gv")
    yield Rule(parts, ("positions.weight",), _join_weight_norm)
    yield copy_tensor("encoder.pos_conv.0.bias", "positions.bias")
    yield from layer("encoder.layer_norm", "norm")
    yield copy_tensor(_TABLE, "bias_table")
    names_of = {
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.out_proj": "attention.output",
        "self_attn.grep_linear": "attention.gates",
        "self_attn_layer_norm": "norm1",
        "fc1": "ffn.inner",
        "fc2": "ffn.outer",
        "final_layer_norm": "norm2",
    }
    for i in range(recipe.beats.layers):
        for theirs, ours in names_of.items():
            yield from layer(f"encoder.layers.{i}.{theirs}", f"layers.{i}.{ours}")
        scale = f"layers.{i}.attention.gate_scale"
        yield reshape_tensor(f"encoder.layers.{i}.self_attn.grep_a", scale, (recipe.beats.heads, 1, 1))


def _recognises(keys: Collection[str]) -> bool:
    return {_TABLE, "patch_embedding.weight", "post_extract_proj.weight"} <= set(keys)


BEATS = Format(
    name="BEATs",
    part="audio",
    recognises=_recognises,
    rules=list_beats_rules,
    ignored=lambda key: _OF_NO_USE.search(key) is not None,
)
