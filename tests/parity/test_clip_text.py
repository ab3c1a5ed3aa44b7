"""Our CLIP text tower, through the key maps, compared with Hugging Face's and its definition, on random weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from teso_deploy.errors import CheckpointError
from teso_deploy.models.assembly import WeightSource, fit_tensors, map_keys
from teso_deploy.models.clip_text import ClipText
from teso_deploy.models.keymaps.clip_text import CLIP_TEXT_FORMATS, HUGGING_FACE_CLIP, IMAGEBIND, OPEN_CLIP
from teso_deploy.models.keymaps.rules import Format
from teso_deploy.recipe import Recipe
from tests.support.foundations import randomise, small_recipe

DIM = 24
START, END = 97, 98
#: The learned scale of the ImageBind below, as it is stored.
LOG_SCALE = 2.5


def recipe_of(**clip_text: Any) -> Recipe:
    return small_recipe(clip_text=clip_text, text={"dim": DIM})


def hugging_face(recipe: Recipe, eos: int = END, whole: bool = False) -> Any:
    """``CLIPTextModelWithProjection`` of a recipe's sizes with random weights, or a whole ``CLIPModel``."""
    import transformers

    clip = recipe.clip_text
    text = {
        "vocab_size": clip.vocabulary,
        "hidden_size": clip.width,
        "intermediate_size": clip.mlp_dim,
        "projection_dim": recipe.text.dim,
        "num_hidden_layers": clip.layers,
        "num_attention_heads": clip.heads,
        "max_position_embeddings": clip.context,
        "hidden_act": clip.activation,
        "bos_token_id": START,
        "eos_token_id": eos,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    if whole:
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.text.dim)
        model: Any = transformers.CLIPModel(config)
    else:
        model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text))
    randomise(model)
    return model.eval()


def rows(context: int, padding: int = 0) -> Tensor:
    """Return texts of 0, 1, 5, … tokens, of which the last fills the row: (5, context)."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((5, context), padding)
    for row, words in zip(ids, (0, 1, 5, 9, context - 2), strict=True):
        row[: words + 2] = torch.tensor([START, *torch.randint(3, START, (words,), generator=generator), END])
    return ids


def loaded(recipe: Recipe, tensors: Mapping[str, Tensor], kind: Format) -> ClipText:
    """Load a file's weights into our tower. Every key of the file is used or ignored, and every parameter is given."""
    model = ClipText(recipe.clip_text, recipe.text.dim)
    randomise(model, 9)
    source = WeightSource(Path("clip"), dict(tensors), kind)
    given, report = map_keys(source, recipe, model.state_dict())
    assert report.is_complete, str(report)
    assert set(given) >= {name for name, _ in model.named_parameters()}
    model.load_state_dict(fit_tensors(source, recipe, model.state_dict(), seed=None)[0], strict=False)
    return model.eval()


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.1 and theirs.std(dim=0).min() > 0.01, "the reference says something"
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("eos", [END, 2], ids=["the end's id", "the old id of the end"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@torch.no_grad()
def test_the_tower_is_hugging_face_s(activation: str, eos: int) -> None:
    pytest.importorskip("transformers", reason="transformers (extra: cues) is not installed")
    recipe = recipe_of(activation=activation, normalised=False)
    reference = hugging_face(recipe, eos)
    model = loaded(recipe, reference.state_dict(), HUGGING_FACE_CLIP)
    for padding in (0, END):
        ids = rows(recipe.clip_text.context, padding)
        expected = reference(input_ids=ids).text_embeds
        assert largest_error(model(ids), expected) <= 1e-4
        mask = torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True)
        mask[:, 2] = False  # a token that would otherwise be attended to
        mask[1, :] = True
        masked = reference(input_ids=ids, attention_mask=mask.long()).text_embeds
        assert largest_error(model(ids, mask.long()), masked) <= 1e-4
        assert float((masked - expected).abs().max()) > 1e-2, "the mask changes something"
    of_length_one = loaded(recipe_of(activation=activation), reference.state_dict(), HUGGING_FACE_CLIP)
    assert largest_error(of_length_one(ids), F.normalize(expected, dim=1)) <= 1e-4


@torch.no_grad()
def test_a_whole_clip_gives_its_text_tower() -> None:
    pytest.importorskip("transformers", reason="transformers (extra: cues) is not installed")
    recipe = recipe_of(normalised=False)
    reference = hugging_face(recipe, whole=True)
    # Transformers before 4.31 stored these.
    others = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
    model = loaded(recipe, {**reference.state_dict(), **others}, HUGGING_FACE_CLIP)
    ids = rows(recipe.clip_text.context)
    theirs = reference.text_projection(reference.text_model(input_ids=ids).pooler_output)
    assert largest_error(model(ids), theirs) <= 1e-4


def as_open_clip(recipe: Recipe, seed: int = 3) -> dict[str, Tensor]:
    """Return random tensors in OpenCLIP's names, as ``open_clip/model.py`` makes them, with a layer for pictures."""
    generator = torch.Generator().manual_seed(seed)
    clip = recipe.clip_text
    width, hidden = clip.width, clip.mlp_dim

    def random(*shape: int, around: float = 0.0) -> Tensor:
        scale = 0.1 if len(shape) < 2 else shape[-1] ** -0.5
        return around + scale * torch.randn(*shape, generator=generator)

    tensors = {
        # Small, as a real tower's embeddings are. Only then does ε matter.
        "token_embedding.weight": 0.02 * torch.randn(clip.vocabulary, width, generator=generator),
        "positional_embedding": 0.01 * torch.randn(clip.context, width, generator=generator),
        "text_projection": random(width, recipe.text.dim),
        "ln_final.weight": random(width, around=1.0),
        "ln_final.bias": random(width),
        "logit_scale": torch.tensor(4.6),
    }
    for inside in [f"transformer.resblocks.{i}." for i in range(clip.layers)] + ["visual.transformer.resblocks.7."]:
        for norm in ("ln_1", "ln_2"):
            tensors[f"{inside}{norm}.weight"] = random(width, around=1.0)
            tensors[f"{inside}{norm}.bias"] = random(width)
        tensors[f"{inside}attn.in_proj_weight"] = random(3 * width, width)
        tensors[f"{inside}attn.in_proj_bias"] = random(3 * width)
        for name, out, into in (
            ("attn.out_proj", width, width),
            ("mlp.c_fc", hidden, width),
            ("mlp.c_proj", width, hidden),
        ):
            tensors[f"{inside}{name}.weight"] = random(out, into)
            tensors[f"{inside}{name}.bias"] = random(out)
    return tensors


def as_a_custom_text_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    others = ("visual.", "logit_scale")
    return {key if key.startswith(others) else f"text.{key}": value for key, value in tensors.items()}


_IMAGEBIND_NAMES = {
    r"^token_embedding": "modality_preprocessors.text.token_embedding",
    r"^positional_embedding$": "modality_preprocessors.text.pos_embed",
    r"^text_projection$": "modality_heads.text.proj.1.weight",
    r"^ln_final": "modality_heads.text.proj.0",
    r"^(visual\.)?transformer\.resblocks": "modality_trunks.text.blocks",
    r"ln_([12])": r"norm_\1",
    r"mlp\.c_fc": "mlp.fc1",
    r"mlp\.c_proj": "mlp.fc2",
}


def as_imagebind(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors in ImageBind's names, with those of other modalities."""
    renamed = {
        "modality_postprocessors.text.1.log_logit_scale": torch.tensor(LOG_SCALE),
        "modality_postprocessors.audio.1.log_logit_scale": torch.tensor(3.0),
        "modality_preprocessors.text.mask": torch.zeros(4, 4),
        "modality_preprocessors.vision.cls_token": torch.zeros(1, 1, 4),
        "modality_trunks.depth.blocks.0.norm_1.weight": torch.zeros(4),
        "modality_heads.imu.3.weight": torch.zeros(4, 4),
    }
    for key, value in tensors.items():
        if key.startswith("visual.") or key == "logit_scale":
            continue
        if key == "text_projection":
            value = value.T.contiguous()
        if key == "positional_embedding":
            value = value[None]
        for old, new in _IMAGEBIND_NAMES.items():
            key = re.sub(old, new, key)
        renamed[key] = value
    return renamed


def by_definition(tensors: Mapping[str, Tensor], recipe: Recipe, ids: Tensor, eps: float) -> Tensor:
    """Compute the tower in float64, one text and head at a time, from OpenCLIP's names; not normalised."""
    given = {key: value.double() for key, value in tensors.items()}
    clip = recipe.clip_text

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], given[f"{name}.weight"], given[f"{name}.bias"], eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ given[f"{name}.weight"].T + given[f"{name}.bias"]

    found = []
    for row in ids:
        end = row.tolist().index(END)
        x = given["token_embedding.weight"][row[: end + 1]] + given["positional_embedding"][: end + 1]
        for i in range(clip.layers):
            name = f"transformer.resblocks.{i}"
            packed = norm(x, f"{name}.ln_1") @ given[f"{name}.attn.in_proj_weight"].T
            packed = packed + given[f"{name}.attn.in_proj_bias"]
            heads = []
            for query, key, value in zip(*(part.chunk(clip.heads, 1) for part in packed.chunk(3, 1)), strict=True):
                scores = query @ key.T / math.sqrt(clip.width / clip.heads)
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
                heads.append(scores.softmax(1) @ value)
            x = x + linear(torch.cat(heads, 1), f"{name}.attn.out_proj")
            x = x + linear(F.gelu(linear(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")), f"{name}.mlp.c_proj")
        found.append(norm(x[end], "ln_final") @ given["text_projection"])
    return torch.stack(found)


@torch.no_grad()
def test_open_clip_and_imagebind_keep_the_same_tower() -> None:
    recipe = recipe_of()
    tensors, ids = as_open_clip(recipe), rows(recipe.clip_text.context)
    expected = F.normalize(by_definition(tensors, recipe, ids, 1e-5), dim=1)
    for kept in (tensors, as_a_custom_text_clip(tensors)):
        assert largest_error(loaded(recipe, kept, OPEN_CLIP)(ids), expected) <= 1e-4

    other_eps = F.normalize(by_definition(tensors, recipe, ids, 1e-6), dim=1)
    assert float((other_eps - expected).abs().max()) > 1e-3, "another ε shows"
    model = loaded(recipe, as_imagebind(tensors), IMAGEBIND)
    assert largest_error(model(ids), other_eps * math.exp(LOG_SCALE)) <= 1e-4
    model.log_scale.fill_(7.0)
    assert largest_error(model(ids), other_eps * 100) <= 1e-3
    raw = loaded(recipe_of(normalised=False), as_imagebind(tensors), IMAGEBIND)
    assert largest_error(raw(ids), by_definition(tensors, recipe, ids, 1e-6)) <= 1e-4


@torch.no_grad()
def test_what_is_behind_the_end_is_not_seen() -> None:
    recipe = recipe_of()
    model = loaded(recipe, as_open_clip(recipe), OPEN_CLIP)
    ids = rows(recipe.clip_text.context)[:4]
    whole = model(ids)
    torch.testing.assert_close(model(rows(recipe.clip_text.context, END)[:4]), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(model(ids[:, :11]), whole, atol=1e-6, rtol=0)


def test_each_kind_is_known_by_its_names() -> None:
    recipe = recipe_of()
    tensors = as_open_clip(recipe)
    files = {
        OPEN_CLIP.name: [tensors, as_a_custom_text_clip(tensors)],
        IMAGEBIND.name: [as_imagebind(tensors)],
        HUGGING_FACE_CLIP.name: [{"text_model.embeddings.token_embedding.weight": torch.zeros(1)}],
    }
    for name, kept in files.items():
        for file in kept:
            assert [kind.name for kind in CLIP_TEXT_FORMATS if kind.recognises(file.keys())] == [name]


@pytest.mark.parametrize(
    ("kind", "kept"),
    [(OPEN_CLIP, lambda tensors: tensors), (OPEN_CLIP, as_a_custom_text_clip), (IMAGEBIND, as_imagebind)],
    ids=["OpenCLIP", "a tower by itself", "ImageBind"],
)
def test_a_file_of_other_sizes_is_refused_by_them(kind: Format, kept: Any) -> None:
    ours = recipe_of(width=64, layers=1, context=20, mlp_dim=80)
    theirs = recipe_of()
    source = WeightSource(Path("clip.pt"), kept(as_open_clip(theirs)), kind)
    assert kind.sized(ours, source.tensors).clip_text == theirs.clip_text
    own = ClipText(ours.clip_text, ours.text.dim).state_dict()
    with pytest.raises(CheckpointError, match=r"clip_text\.width 32 \(recipe: 64\), clip_text\.layers 2 \(recipe: 1\)"):
        fit_tensors(source, ours, own, seed=None)


@torch.no_grad()
def test_its_graph_takes_any_number_of_texts(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    recipe = recipe_of(activation="quick_gelu")
    model = loaded(recipe, as_imagebind(as_open_clip(recipe)), IMAGEBIND)
    ids = rows(recipe.clip_text.context)
    program = torch.onnx.export(
        model,
        (ids[:2],),
        dynamo=True,
        opset_version=20,
        input_names=["input_ids"],
        dynamic_shapes=({0: torch.export.Dim("N", min=1, max=4096)},),
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "clip_text.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "clip_text.onnx", providers=["CPUExecutionProvider"])
    for count in (5, 1):
        (found,) = session.run(None, {"input_ids": ids[:count].numpy()})
        np.testing.assert_allclose(found, model(ids[:count]).numpy(), atol=1e-4)
