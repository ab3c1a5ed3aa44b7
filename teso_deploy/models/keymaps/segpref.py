"""The `state_dict` of the authors' released training code (`AVS_Model_Base`): a whole model of recipe segpref."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from teso_deploy.models.keymaps.mask2former import MASK2FORMER, PIXEL_DECODER, TRANSFORMER, list_mask2former_rules
from teso_deploy.models.keymaps.rules import Format, Rule, add_prefix, copy_tensor, layer
from teso_deploy.recipe import Recipe

FOUNDATION = "model_v."
#: Modules that the release creates but never calls.
UNUSED = ("mha_A_T.", "mha_V_T.", "mha_mm.")


def _attention(source: str, target: str) -> Iterator[Rule]:
    names = {
        "query_embedding": "query",
        "key_embedding": "key",
        "value_embedding": "value",
        "out_projection": "output",
    }
    for theirs, ours in names.items():
        yield from layer(f"{source}.{theirs}", f"{target}.attention.{ours}")
    yield copy_tensor(f"{source}.beta_source_attn", f"{target}.attention_share")
    yield copy_tensor(f"{source}.beta_source_pool", f"{target}.pool_share")


def _keep_first_and_last(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Keep the first class and "no object". The released model uses no other class of its foundation."""
    return (torch.stack((tensors[0][0], tensors[0][-1])),)


def list_segpref_rules(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    """The rules of foundation, adapters after MSDA, both projections and both attentions, without the audio encoder."""
    of_the_foundation = {key.removeprefix(FOUNDATION): value for key, value in tensors.items()}
    for rule in add_prefix(list_mask2former_rules(recipe, of_the_foundation), source=FOUNDATION):
        if rule.targets[0].startswith("decoder.classifier."):
            yield Rule(rule.sources, rule.targets, _keep_first_and_last)
        else:
            yield rule
    for i in range(recipe.pixel_decoder.layers):
        adapter = f"{FOUNDATION}{PIXEL_DECODER}encoder.layers.{i}.self_attn.avs_adapt"
        target = f"visual_encoder.pixel_decoder.layers.{i}.attention.adapter"
        yield from layer(f"{adapter}.0", f"{target}.down")
        yield from layer(f"{adapter}.2", f"{target}.up")
    for theirs, ours in (("audio_proj", "audio"), ("text_proj", "text"), ("prompt_proj", "prompt")):
        for place in (0, 2):
            yield from layer(f"{theirs}.{place}", f"fusion.{ours}_projection.{place}")
    yield from _attention("ca", "fusion.cue_attention")
    yield from _attention(f"{FOUNDATION}{TRANSFORMER}ref_avs_attn", "fusion.query_attention")


def _adapt_sizes(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Recipe:
    of_the_foundation = {key.removeprefix(FOUNDATION): value for key, value in tensors.items()}
    recipe = MASK2FORMER.sized(recipe, of_the_foundation)
    hidden, audio_dim = tensors["audio_proj.0.weight"].shape
    dim = tensors["audio_proj.2.weight"].shape[0]
    return recipe.model_copy(
        update={
            "audio": recipe.audio.model_copy(update={"dim": audio_dim}),
            "text": recipe.text.model_copy(update={"dim": tensors["text_proj.0.weight"].shape[1]}),
            "fusion": recipe.fusion.model_copy(update={"dim": dim, "ffn_dim": hidden}),
        }
    )


def _recognises(keys: Collection[str]) -> bool:
    return {"audio_proj.0.weight", "ca.beta_source_attn"} <= set(keys)


def _is_ignored(key: str) -> bool:
    return key.startswith(UNUSED) or MASK2FORMER.ignored(key.removeprefix(FOUNDATION))


SEGPREF = Format(
    name="the authors' release (SegPref)",
    part="model",
    recognises=_recognises,
    rules=list_segpref_rules,
    ignored=_is_ignored,
    sized=_adapt_sizes,
)
