"""CLIP's text tower as stored by Hugging Face, OpenCLIP and ImageBind; targets are keys of ``ClipText``.

Names: ``transformers/models/clip/modeling_clip.py`` (equal in 4.x and 5.x),
``open_clip/model.py`` and ``open_clip/transformer.py``,
``imagebind/models/{imagebind_model,multimodal_preprocessors,transformer,helpers}.py``.
Keys for pictures or other modalities are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from teso_deploy.models.keymaps.rules import Format, Rule, Tensors, add_prefix, copy_tensor, layer, split
from teso_deploy.recipe import Recipe

IMAGEBIND_EPS = 1e-6
#: The prefix of the keys of a tower that is a separate module (``CustomTextCLIP``).
OPEN_CLIP_INNER = "text."
_OPEN_CLIP_OTHERS = re.compile(
    r"^visual\.|^(text\.)?attn_mask$|^(logit_scale|logit_bias|input_resolution|context_length|vocab_size)$"
)
_HUGGING_FACE_OTHERS = re.compile(r"^(vision_model|visual_projection)\.|^logit_scale$|\.position_ids$")
_IMAGEBIND_OTHERS = re.compile(
    r"^modality_(preprocessors|trunks|heads|postprocessors)\.(vision|audio|depth|thermal|imu)\."
    r"|^modality_preprocessors\.text\.mask$"
)


def _inside(recipe: Recipe, source: str, names: Mapping[str, str]) -> Iterator[Rule]:
    """Weight and bias of modules in every layer; ``source`` has a placeholder for the layer's number.

    Args:
        recipe: The recipe.
        source: The file's key, with a placeholder.
        names: The file's name → our name of each module.
    """
    for i in range(recipe.clip_text.layers):
        for theirs, ours in names.items():
            yield from layer(f"{source.format(i)}.{theirs}", f"layers.{i}.{ours}")


def _split_packed(recipe: Recipe, source: str) -> Iterator[Rule]:
    """Query, key and value of every layer as one packed tensor."""
    for i in range(recipe.clip_text.layers):
        for kind in ("weight", "bias"):
            targets = [f"layers.{i}.attention.{name}.{kind}" for name in ("query", "key", "value")]
            yield split(f"{source.format(i)}.in_proj_{kind}", targets)


def list_hugging_face_rules(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    """``CLIPTextModelWithProjection``, or the text half of ``CLIPModel``."""
    source = "text_model."
    yield copy_tensor(f"{source}embeddings.token_embedding.weight", "token_embedding.weight")
    yield copy_tensor(f"{source}embeddings.position_embedding.weight", "positions")
    names = {
        "layer_norm1": "norm1",
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.out_proj": "attention.output",
        "layer_norm2": "norm2",
        "mlp.fc1": "mlp.inner",
        "mlp.fc2": "mlp.outer",
    }
    yield from _inside(recipe, f"{source}encoder.layers.{{}}", names)
    yield from layer(f"{source}final_layer_norm", "norm")
    yield copy_tensor("text_projection.weight", "projection.weight")


def _transpose(tensors: Tensors) -> Tensors:
    return (tensors[0].T,)


def _open_clip_inner(keys: Collection[str]) -> str:
    return OPEN_CLIP_INNER if f"{OPEN_CLIP_INNER}ln_final.weight" in keys else ""


def _open_clip_names(recipe: Recipe) -> Iterator[Rule]:
    """The rules without a prefix. The projection is a matrix that multiplies from the right."""
    yield copy_tensor("token_embedding.weight", "token_embedding.weight")
    yield copy_tensor("positional_embedding", "positions")
    source = "transformer.resblocks.{}"
    names = {
        "ln_1": "norm1",
        "attn.out_proj": "attention.output",
        "ln_2": "norm2",
        "mlp.c_fc": "mlp.inner",
        "mlp.c_proj": "mlp.outer",
    }
    yield from _split_packed(recipe, f"{source}.attn")
    yield from _inside(recipe, source, names)
    yield from layer("ln_final", "norm")
    yield Rule(("text_projection",), ("projection.weight",), _transpose)


def open_clip_rules(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    """OpenCLIP's own names (also OpenAI's), of a whole CLIP or of a separate text tower."""
    yield from add_prefix(_open_clip_names(recipe), source=_open_clip_inner(tensors))


def _with_imagebind_eps(tensors: Tensors) -> Tensors:
    return tensors[0].squeeze(0), torch.tensor(IMAGEBIND_EPS)


def list_imagebind_rules(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    """The text parts of ImageBind: OpenCLIP's tower with another ε and a learned scale."""
    before, trunk, head = "modality_preprocessors.text", "modality_trunks.text", "modality_heads.text"
    yield copy_tensor(f"{before}.token_embedding.weight", "token_embedding.weight")
    yield Rule((f"{before}.pos_embed",), ("positions", "norm_eps"), _with_imagebind_eps)
    source = f"{trunk}.blocks.{{}}"
    names = {
        "norm_1": "norm1",
        "attn.out_proj": "attention.output",
        "norm_2": "norm2",
        "mlp.fc1": "mlp.inner",
        "mlp.fc2": "mlp.outer",
    }
    yield from _split_packed(recipe, f"{source}.attn")
    yield from _inside(recipe, source, names)
    yield from layer(f"{head}.proj.0", "norm")
    yield copy_tensor(f"{head}.proj.1.weight", "projection.weight")
    yield copy_tensor("modality_postprocessors.text.1.log_logit_scale", "log_scale")


Rules = Callable[[Recipe, Mapping[str, Tensor]], Iterator[Rule]]


def _make_size_reader(rules: Rules) -> Callable[[Recipe, Mapping[str, Tensor]], Recipe]:
    """Return a function that reads the recipe's sizes from a file. Heads and activation are not visible in a file."""

    def read_sizes(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Recipe:
        one = recipe.model_copy(update={"clip_text": recipe.clip_text.model_copy(update={"layers": 1})})
        shapes: dict[str, torch.Size] = {}
        for rule in rules(one, tensors):
            converted = rule.convert(tuple(tensors[key] for key in rule.sources))
            shapes |= {target: value.shape for target, value in zip(rule.targets, converted, strict=True)}
        vocabulary, width = shapes["token_embedding.weight"]
        numbers = {match[1] for key in tensors if (match := _LAYER.search(key)) is not None}
        sizes = {
            "width": width,
            "vocabulary": vocabulary,
            "context": shapes["positions"][0],
            "mlp_dim": shapes["layers.0.mlp.inner.weight"][0],
            "layers": len(numbers),
        }
        return recipe.model_copy(
            update={
                "clip_text": recipe.clip_text.model_copy(update=sizes),
                "text": recipe.text.model_copy(update={"dim": shapes["projection.weight"][0]}),
            }
        )

    return read_sizes


#: Finds the number of a layer in keys of all formats. It matches only at the beginning of a key, because further inside
#: the layers for pictures have the same names.
_LAYER = re.compile(
    r"^(?:text_model\.encoder\.layers|(?:text\.)?transformer\.resblocks|modality_trunks\.text\.blocks)\.(\d+)\."
)

HUGGING_FACE_CLIP = Format(
    name="Hugging Face CLIP (text)",
    part="text",
    recognises=lambda keys: "text_model.embeddings.token_embedding.weight" in keys,
    rules=list_hugging_face_rules,
    ignored=lambda key: _HUGGING_FACE_OTHERS.search(key) is not None,
    sized=_make_size_reader(list_hugging_face_rules),
)
OPEN_CLIP = Format(
    name="OpenCLIP (text)",
    part="text",
    recognises=lambda keys: f"{_open_clip_inner(keys)}ln_final.weight" in keys,
    rules=open_clip_rules,
    ignored=lambda key: _OPEN_CLIP_OTHERS.search(key) is not None,
    sized=_make_size_reader(open_clip_rules),
)
IMAGEBIND = Format(
    name="ImageBind (text)",
    part="text",
    recognises=lambda keys: "modality_preprocessors.text.token_embedding.weight" in keys,
    rules=list_imagebind_rules,
    ignored=lambda key: _IMAGEBIND_OTHERS.search(key) is not None,
    sized=_make_size_reader(list_imagebind_rules),
)
CLIP_TEXT_FORMATS: tuple[Format, ...] = (HUGGING_FACE_CLIP, OPEN_CLIP, IMAGEBIND)
