"""Our Mask2Former compared with Hugging Face's, with random weights, through the key map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from teso_deploy.models.assembly import WeightSource, fit_tensors, map_keys
from teso_deploy.models.decoder import Memory
from teso_deploy.models.keymaps.mask2former import BACKBONE, BACKBONE_5, MASK2FORMER
from teso_deploy.models.teso import Teso, build
from teso_deploy.recipe import Recipe, load_recipe
from tests.support.foundations import hugging_face_mask2former, small_recipe

CLASSES = 5


def of_five_classes(recipe: Recipe) -> Recipe:
    head = recipe.head.model_copy(update={"kind": "semantic", "classes": tuple("abcde")})
    return recipe.model_copy(update={"head": head})


def loaded(recipe: Recipe, reference: Any) -> Teso:
    model = build(recipe, 1)
    source = WeightSource(recipe.image.sizes, reference.state_dict(), MASK2FORMER)  # type: ignore[arg-type]
    given, other = fit_tensors(source, recipe, model.state_dict(), seed=None)
    assert not other
    model.load_state_dict(given, strict=False)
    return model


def reference_run(reference: Any, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return class and mask logits, and the attention mask (B, Q, S) of each decoder layer."""
    masks: list[Tensor] = []
    predictor = reference.model.transformer_module.decoder.mask_predictor
    handle = predictor.register_forward_hook(lambda module, given, result: masks.append(result[1]))
    try:
        found = reference(pixel_values=image, pixel_mask=torch.ones_like(image[:, 0], dtype=torch.int64))
    finally:
        handle.remove()
    heads = reference.config.num_attention_heads
    hidden = [mask.view(len(image), heads, *mask.shape[1:])[:, 0].bool() for mask in masks[:-1]]
    return found.class_queries_logits, found.masks_queries_logits, hidden


def ours_behind(model: Teso, memory: Memory, hidden: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    queries = model.fusion.queries.expand(len(memory.mask_features), -1, -1)
    last = model.decoder.refine(queries, memory, hidden)[-1]
    return model.decoder.classifier(model.decoder.norm(last)), model.decoder.mask_logits(last, memory.mask_features)


def opened(hidden: Tensor) -> Tensor:
    """Make a row that hides everything hide nothing."""
    return hidden & ~hidden.all(dim=-1, keepdim=True)


def compare(recipe: Recipe, batch: int) -> tuple[float, float, float, float]:
    """Return errors of class and mask logits with equal masks; without, the shares of equal pixels and flips."""
    reference = hugging_face_mask2former(recipe, CLASSES)
    model = loaded(of_five_classes(recipe), reference)
    height, width = recipe.image.sizes[0]
    image = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        classes, masks, hidden = reference_run(reference, image)
        memory = model.visual_encoder(image)
        our_classes, our_masks = ours_behind(model, memory, hidden)
        _, free_masks = ours_behind(model, memory, None)
        queries = model.fusion.queries.expand(batch, -1, -1)
        states = model.decoder.refine(queries, memory, hidden)
        own = [model.decoder.hidden(state, memory.resized[i % 3]) for i, state in enumerate(states[:-1])]
    assert classes.abs().max() > 0.1 and masks.std() > 0.05, "the reference says something"
    flips = [float((opened(o) != opened(h)).float().mean()) for o, h in zip(own, hidden, strict=True)]
    return (
        float((our_classes - classes).abs().max()),
        float((our_masks - masks).abs().max()),
        float(((free_masks > 0) == (masks > 0)).float().mean()),
        max(flips),
    )


@pytest.mark.parametrize("window", [4, 3], ids=["windows that fit", "windows that need padding"])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_the_small_model_is_hugging_face_s(window: int, size: tuple[int, int]) -> None:
    recipe = small_recipe(swin={"window": window}, image={"sizes": [size]})
    class_error, mask_error, equal, flips = compare(recipe, 2)
    assert class_error <= 1e-4 and mask_error <= 1e-4
    assert equal >= 0.999 and flips <= 1e-3


def test_swin_b_is_hugging_face_s() -> None:
    class_error, mask_error, equal, _ = compare(load_recipe("teso-m2f-swin-b"), 1)
    assert class_error <= 1e-4 and mask_error <= 1e-4
    assert equal >= 0.999


def test_the_names_of_4_and_of_5() -> None:
    recipe = of_five_classes(small_recipe())
    tensors = hugging_face_mask2former(recipe, CLASSES).state_dict()
    own = build(recipe).state_dict()
    for other in (renamed_to_4(tensors), renamed_to_5(tensors)):
        given, report = map_keys(WeightSource(None, other, MASK2FORMER), recipe, own)  # type: ignore[arg-type]
        assert report.is_complete, str(report)
        table = "visual_encoder.swin.stages.1.1.attention.bias_table"
        assert torch.equal(
            given[table], other[next(key for key in other if "layers.1.blocks.1" in key and "table" in key)]
        )
        not_given = {key for key in own if key not in given}
        assert all(key.startswith(("audio_encoder.", "fusion.")) or "adapter" in key for key in not_given), (
            "the foundation gives all of its own"
        )


_RENAMED = {
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "attention.self.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def renamed_to_5(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(key.startswith(BACKBONE_5) for key in tensors):
        return tensors
    renamed = {}
    for key, value in tensors.items():
        if key.endswith("relative_position_index"):
            continue
        if key.startswith(BACKBONE) and "hidden_states_norms" not in key:
            key = BACKBONE_5 + key.removeprefix(BACKBONE)
            for old, new in _RENAMED.items():
                if old in key:
                    key = key.replace(old, new)
                    break
        renamed[key] = value
    return renamed


def renamed_to_4(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not any(key.startswith(BACKBONE_5) for key in tensors):
        return tensors
    renamed = {}
    for key, value in tensors.items():
        if "swin.layernorm" in key:
            continue
        if key.startswith(BACKBONE_5):
            key = BACKBONE + key.removeprefix(BACKBONE_5)
            for old, new in _RENAMED.items():
                key = key.replace(new, old)
        renamed[key] = value
    return renamed
