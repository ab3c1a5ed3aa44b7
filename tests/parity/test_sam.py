"""Our SAM compared with Hugging Face's, with random weights, through the key maps of both releases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from teso_deploy.models.assembly import WeightSource, fit_tensors, map_keys
from teso_deploy.models.keymaps.sam import SAM_HUGGING_FACE, SAM_META
from teso_deploy.models.layers import Adapter
from teso_deploy.models.teso import Teso, build
from teso_deploy.recipe import Recipe, load_recipe
from tests.support.foundations import randomise, small_recipe

SAM = {
    "embed_dim": 32, "layers": 3, "heads": 2, "mlp_dim": 40, "patch": 8, "window": 3, "global_layers": (1,), "dim": 16,
    "decoder_layers": 2, "decoder_heads": 2, "decoder_mlp_dim": 24, "attention_downsample": 2, "mask_tokens": 4,
}  # fmt: skip


def sam_recipe(size: int = 64, **tables: Any) -> Recipe:
    given = {"foundation": "sam", "sam": SAM, "image": {"sizes": [[size, size]], "fit": "pad"}, "adapters": ()}
    return small_recipe(**{**given, **tables})


def hugging_face_sam(recipe: Recipe) -> Any:
    from transformers import SamConfig, SamModel

    sam, size = recipe.sam, recipe.image.sizes[0][0]
    config = SamConfig(
        vision_config={
            "hidden_size": sam.embed_dim,
            "output_channels": sam.dim,
            "num_hidden_layers": sam.layers,
            "num_attention_heads": sam.heads,
            "image_size": size,
            "patch_size": sam.patch,
            "window_size": sam.window,
            "global_attn_indexes": list(sam.global_layers),
            "num_pos_feats": sam.dim // 2,
            "mlp_dim": sam.mlp_dim,
        },
        prompt_encoder_config={
            "hidden_size": sam.dim,
            "image_size": size,
            "patch_size": sam.patch,
            "image_embedding_size": size // sam.patch,
        },
        mask_decoder_config={
            "hidden_size": sam.dim,
            "mlp_dim": sam.decoder_mlp_dim,
            "num_hidden_layers": sam.decoder_layers,
            "num_attention_heads": sam.decoder_heads,
            "attention_downsample_rate": sam.attention_downsample,
            "num_multimask_outputs": sam.mask_tokens - 1,
            "iou_head_hidden_dim": 16,
        },
    )
    model: Any = SamModel(config)
    randomise(model)
    with torch.no_grad():  # the tables of positions are zero at first
        generator = torch.Generator().manual_seed(5)
        for name, value in model.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
        # It is an unseeded buffer in 4.x and a parameter in 5.x. The prompt encoder's is the same tensor.
        frequencies = model.shared_image_embedding.positional_embedding
        frequencies.copy_(torch.randn(frequencies.shape, generator=generator))
    return model.eval()


def loaded(recipe: Recipe, tensors: dict[str, Tensor], kind: Any) -> Teso:
    model = build(recipe, 1)
    given, _ = fit_tensors(WeightSource(Path("sam"), tensors, kind), recipe, model.state_dict(), seed=None)
    model.load_state_dict(given, strict=False)
    return model


@torch.no_grad()
def errors(recipe: Recipe, batch: int) -> tuple[float, float]:
    """Return the largest errors of the image embeddings and of all masks."""
    reference = hugging_face_sam(recipe)
    model = loaded(recipe, reference.state_dict(), SAM_HUGGING_FACE)
    size = recipe.image.sizes[0][0]
    image = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2))
    embeddings = reference.get_image_embeddings(image)
    ours = model.visual_encoder(image)
    _, dense = reference.prompt_encoder(input_points=None, input_labels=None, input_boxes=None, input_masks=None)
    dense = dense.expand(batch, -1, -1, -1) if dense.shape[0] == 1 else dense
    given = {
        "image_embeddings": embeddings,
        "image_positional_embeddings": reference.get_image_wide_positional_embeddings().repeat(batch, 1, 1, 1),
        "sparse_prompt_embeddings": None,
        "dense_prompt_embeddings": dense,
    }
    parts = [reference.mask_decoder(**given, multimask_output=several)[0][:, 0] for several in (False, True)]
    expected = torch.cat(parts, dim=1)
    assert embeddings.std() > 0.3 and expected.std() > 0.05
    masks = model.decoder(model.fusion.queries.expand(batch, -1, -1), embeddings)
    return float((ours - embeddings).abs().max()), float((masks - expected).abs().max())


@pytest.mark.parametrize("size", [64, 96], ids=["windows that need padding", "windows that fit"])
def test_the_small_model_is_hugging_face_s(size: int) -> None:
    encoder_error, decoder_error = errors(sam_recipe(size), 2)
    assert encoder_error <= 1e-4 and decoder_error <= 1e-4


def test_vit_b_is_hugging_face_s() -> None:
    recipe = load_recipe("teso-sam-vit-b")
    # A quarter of the tokens takes a seventh of the time. The windows need padding, as at 1024.
    image = recipe.image.model_copy(update={"sizes": ((512, 512),)})
    encoder_error, decoder_error = errors(recipe.model_copy(update={"image": image}), 1)
    assert encoder_error <= 1e-4 and decoder_error <= 1e-4


_META = (
    (r"^vision_encoder\.patch_embed\.projection", "image_encoder.patch_embed.proj"),
    (r"^vision_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.neck\.conv1", "image_encoder.neck.0"),
    (r"^vision_encoder\.neck\.layer_norm1", "image_encoder.neck.1"),
    (r"^vision_encoder\.neck\.conv2", "image_encoder.neck.2"),
    (r"^vision_encoder\.neck\.layer_norm2", "image_encoder.neck.3"),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^shared_image_embedding\.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1", "prompt_encoder.mask_downscaling.0"),
    (r"^prompt_encoder\.mask_embed\.layer_norm1", "prompt_encoder.mask_downscaling.1"),
    (r"^prompt_encoder\.mask_embed\.conv2", "prompt_encoder.mask_downscaling.3"),
    (r"^prompt_encoder\.mask_embed\.layer_norm2", "prompt_encoder.mask_downscaling.4"),
    (r"^prompt_encoder\.mask_embed\.conv3", "prompt_encoder.mask_downscaling.6"),
    (r"transformer\.layers\.(\d)\.layer_norm", r"transformer.layers.\1.norm"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layers\.0\.(weight|bias)$", r"layers.1.\1"),
    (r"proj_in", "layers.0"),
    (r"proj_out", "layers.2"),
)


def as_meta(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same weights by the names of Meta's release."""
    renamed = {}
    for key, value in tensors.items():
        if key.startswith("prompt_encoder.shared_embedding"):
            continue
        for pattern, replacement in _META:
            if not (pattern.startswith(r"layers\.0") and "hypernetworks" not in key and "iou_pred" not in key):
                key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def test_both_releases_give_the_same_model() -> None:
    recipe = sam_recipe()
    tensors = hugging_face_sam(recipe).state_dict()
    renamed = as_meta(tensors)
    assert "image_encoder.blocks.0.attn.qkv.weight" in renamed
    assert "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight" in renamed
    assert SAM_META.recognises(renamed) and not SAM_META.recognises(tensors)
    one, other = loaded(recipe, tensors, SAM_HUGGING_FACE), loaded(recipe, renamed, SAM_META)
    for key, value in one.state_dict().items():
        if key.startswith(("visual_encoder.", "decoder.", "fusion.queries")):
            assert torch.equal(value, other.state_dict()[key]), key


def test_the_foundation_gives_all_but_what_is_new() -> None:
    recipe = sam_recipe(adapters=("sam_encoder", "sam_decoder"))
    model = build(recipe, 1)
    tensors = hugging_face_sam(recipe).state_dict()
    given, report = map_keys(WeightSource(Path("sam"), tensors, SAM_HUGGING_FACE), recipe, model.state_dict())
    assert report.is_complete, str(report)
    rest = [key for key in model.state_dict() if key not in given]
    assert all(key.startswith(("fusion.", "audio_encoder.")) or "adapter" in key for key in rest)
    assert any(key.startswith("decoder.final_attention.adapter") for key in rest)
    assert any(key.startswith("visual_encoder.blocks.2.attention.adapter") for key in rest)


@torch.no_grad()
def test_adapters_change_nothing_at_first() -> None:
    plain, adapted = build(sam_recipe(), 1), build(sam_recipe(adapters=("sam_encoder", "sam_decoder")), 2)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    given = (torch.randn(1, 3, 64, 64), torch.randn(1, 15_600) * 0.1, torch.randn(1, 4, 24))
    valid = torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(plain(*given, valid)[0], adapted(*given, valid)[0])


@torch.no_grad()
def test_every_adapter_is_behind_an_output_projection_and_acts() -> None:
    model = build(sam_recipe(adapters=("sam_encoder", "sam_decoder")), 1)
    found = {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}
    in_decoder = [f"layers.{i}.{name}" for i in range(2) for name in ("self_attention", "to_image", "to_tokens")]
    assert found.keys() == {
        *(f"visual_encoder.blocks.{i}.attention.adapter" for i in range(3)),
        *(f"decoder.{name}.adapter" for name in (*in_decoder, "final_attention")),
    }
    image, queries = torch.randn(1, 3, 64, 64), torch.randn(1, 4, 16)
    embeddings = model.visual_encoder(image)
    masks = model.decoder(queries, embeddings)
    for name, adapter in found.items():
        nn.init.normal_(adapter.up.bias)
        if name.startswith("visual_encoder."):
            assert not torch.allclose(model.visual_encoder(image), embeddings, atol=1e-3), name
        else:
            assert not torch.allclose(model.decoder(queries, embeddings), masks, atol=1e-3), name
        nn.init.zeros_(adapter.up.bias)


@pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")  # both inputs of the decoder share it on purpose
@torch.no_grad()
def test_the_exported_graphs_are_the_model_at_every_batch(tmp_path: Path) -> None:
    recipe = sam_recipe(adapters=("sam_encoder", "sam_decoder"))
    model = loaded(recipe, hugging_face_sam(recipe).state_dict(), SAM_HUGGING_FACE)
    for module in model.modules():
        if isinstance(module, Adapter):  # as after training
            randomise(module, 3)
    graphs: list[tuple[str, nn.Module, list[tuple[int, ...]]]] = [
        ("visual_encoder", model.visual_encoder, [(3, 64, 64)]),
        ("decoder", model.decoder, [(4, 16), (16, 8, 8)]),
    ]
    for name, network, shapes in graphs:
        path, free = tmp_path / f"{name}.onnx", {0: torch.export.Dim("B")}
        example = tuple(torch.randn(2, *shape) for shape in shapes)
        torch.onnx.export(network, example, path, dynamo=True, dynamic_shapes=(free,) * len(shapes), verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in (1, 2):
            given = [torch.randn(batch, *shape) for shape in shapes]
            feeds = {place.name: value.numpy() for place, value in zip(session.get_inputs(), given, strict=True)}
            expected = network(*given).numpy()
            assert expected.std() > 0.05
            np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=1e-4, rtol=0, err_msg=name)


@torch.no_grad()
def test_the_answer_is_the_mask_of_one_token() -> None:
    recipe = sam_recipe()
    second = recipe.model_copy(update={"sam": recipe.sam.model_copy(update={"mask_token": 2})})
    model = build(recipe, 1)
    other = build(second, 1)
    image = torch.randn(1, 3, 64, 64)
    given = (image, torch.randn(1, 15_600) * 0.1, torch.randn(1, 4, 24), torch.ones(1, 4, dtype=torch.bool))
    logits = model.decoder(model.fusion(model.audio_encoder(given[1]), *given[2:])[0], model.visual_encoder(image))
    assert torch.allclose(model(*given)[0][:, 0], logits[:, 0].sigmoid())
    assert torch.allclose(other(*given)[0][:, 0], logits[:, 2].sigmoid())
