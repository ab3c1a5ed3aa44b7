"""Recipe segpref compared with the authors' released network, rebuilt here around Hugging Face's Mask2Former."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.errors import CheckpointError
from teso_deploy.models.assembly import assemble
from teso_deploy.recipe import Recipe, load_recipe
from tests.support.foundations import hugging_face_mask2former, randomise, small_recipe

FOUNDATION_CLASSES = 6


def segpref_recipe(**tables: Any) -> Recipe:
    shipped = load_recipe("segpref")
    chosen = {
        "fusion": {"kind": "segpref", "dim": 48, "heads": 4, "latents": 4, "ffn_dim": 40},
        "head": shipped.head.model_dump() | {"resize_chain": (64, 40)},
        "text": {**shipped.text.model_dump(), "dim": 24},
        "adapters": shipped.adapters,
        "adapter_residual": shipped.adapter_residual,
    }
    return small_recipe(**{**chosen, **tables})


class ReleasedAttention(nn.Module):
    """`REF_AVS_Transformer`, rewritten head by head."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        for name in ("query_embedding", "key_embedding", "value_embedding", "out_projection"):
            setattr(self, name, nn.Linear(dim, dim))
        self.beta_source_pool = nn.Parameter(torch.tensor([0.3]))
        self.beta_source_attn = nn.Parameter(torch.tensor([-0.4]))

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """target (T, B, d), source (B, S, d) → (T, B, d)."""
        query, key = self.query_embedding(target.transpose(0, 1)), self.key_embedding(source)
        value, width = self.value_embedding(source), target.shape[-1] // self.heads
        parts = []
        for head in range(self.heads):
            here = slice(head * width, (head + 1) * width)
            scores = torch.einsum("btd,bsd->bts", query[..., here], key[..., here]) / width**0.5
            parts.append(torch.einsum("bts,bsd->btd", scores.softmax(-1), value[..., here]))
        attended = self.out_projection(torch.cat(parts, dim=-1)).transpose(0, 1)
        pooled = source.mean(dim=1)[None]
        return target + self.beta_source_attn.sigmoid() * attended + self.beta_source_pool.sigmoid() * pooled


class Released(nn.Module):
    """`AVS_Model_Base`: the same modules and names. Hooks on Hugging Face's model replace its forward pass."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model_v = hugging_face_mask2former(recipe, FOUNDATION_CLASSES)
        dim, hidden, width = recipe.fusion.dim, recipe.fusion.ffn_dim, recipe.pixel_decoder.dim
        self.audio_proj = nn.Sequential(nn.Linear(recipe.audio.dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.text_proj = nn.Sequential(nn.Linear(recipe.text.dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.prompt_proj = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.mha_A_T = nn.MultiheadAttention(dim, 8)
        self.mha_V_T = nn.MultiheadAttention(dim, 8)
        self.mha_mm = nn.MultiheadAttention(dim, 8)
        self.ca = ReleasedAttention(dim)
        self.transformer.ref_avs_attn = ReleasedAttention(width)
        for layer in self.model_v.model.pixel_level_module.decoder.encoder.layers:
            quarter = width // 4
            layer.self_attn.avs_adapt = nn.Sequential(nn.Linear(width, quarter), nn.ReLU(), nn.Linear(quarter, width))
            layer.self_attn.register_forward_hook(
                lambda module, given, result: (module.avs_adapt(result[0]), *result[1:])
            )
        randomise(self, seed=3)
        with torch.no_grad():  # with logits around a hundred, every sigmoid would be 0 or 1
            self.get_parameter("model_v.model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.weight").mul_(
                0.1
            )
        self._prompt: Tensor | None = None
        self.transformer.decoder.register_forward_pre_hook(self._prompted, with_kwargs=True)

    @property
    def transformer(self) -> Any:
        return self.model_v.model.transformer_module

    def _prompted(self, module: nn.Module, given: Any, named: dict[str, Any]) -> Any:
        attend = self.transformer.ref_avs_attn
        return given, {**named, "inputs_embeds": attend(named["inputs_embeds"], self._prompt)}

    def forward(self, image: Tensor, audio: Tensor, text: Tensor, latents: int, chain: tuple[int, int]) -> Tensor:
        """image (B, 3, H, W), audio (B, d_A), text (B, 4, d_T) → sigmoid of the released logits (B, h, w)."""
        sound = self.audio_proj(audio[:, None].repeat(1, latents, 1))
        words = self.text_proj(text).transpose(0, 1)
        self._prompt = self.prompt_proj(self.ca(words, sound).transpose(0, 1))
        found = self.model_v(pixel_values=image, pixel_mask=torch.ones_like(image[:, 0], dtype=torch.int64))
        logits = found.class_queries_logits
        share = torch.stack((logits[..., 0], logits[..., -1]), dim=-1).softmax(-1)[..., 0]
        masks = F.interpolate(found.masks_queries_logits, size=chain[:1] * 2, mode="bilinear", align_corners=False)
        summed = torch.einsum("bq,bqhw->bhw", share, masks)[:, None]
        return F.interpolate(summed, size=chain[1:] * 2, mode="bilinear", align_corners=False)[:, 0].sigmoid()


@pytest.fixture(scope="module")
def released() -> Released:
    return Released(segpref_recipe()).eval()


@pytest.fixture
def files(released: Released, tmp_path: Path) -> list[tuple[str | None, Path]]:
    """Return the files of a user of the release: its checkpoint, and VGGish."""
    from teso_deploy.models.audio import Vggish

    torch.save(released.state_dict(), tmp_path / "ckpt_best_miou.pth")
    vggish = Vggish(segpref_recipe().audio)
    randomise(vggish)
    torch.save(vggish.state_dict(), tmp_path / "vggish.pth")
    return [(None, tmp_path / "ckpt_best_miou.pth"), ("audio", tmp_path / "vggish.pth")]


@torch.no_grad()
def test_the_released_network(released: Released, files: list[tuple[str | None, Path]]) -> None:
    recipe = segpref_recipe()
    built = assemble(recipe, files)
    assert built.is_trained and built.random == ()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 64, 64, generator=generator)
    waveform = torch.randn(2, 15_600, generator=generator) * 0.1
    text = torch.randn(2, 4, 24, generator=generator)
    audio = built.model.audio_encoder(waveform)
    expected = released(image, audio, text, recipe.fusion.latents, (64, 40))
    masks, gate = built.model(image, waveform, text, torch.ones(2, 4, dtype=torch.bool))
    assert masks.shape == (2, 1, 40, 40) and (gate == 1).all()
    assert expected.std() > 0.02
    assert (masks[:, 0] - expected).abs().max() <= 1e-4


def test_sizes_are_read_from_the_file(files: list[tuple[str | None, Path]]) -> None:
    shipped = load_recipe("segpref")
    small = segpref_recipe()
    changed = small.model_copy(
        update={
            "swin": shipped.swin.model_copy(update={"embed_dim": 96}),
            "fusion": shipped.fusion,
            "decoder": shipped.decoder.model_copy(update={"heads": small.decoder.heads}),
            "text": shipped.text,
        }
    )
    built = assemble(changed, files)
    assert built.model.recipe.swin == small.swin and built.model.recipe.decoder == small.decoder
    assert built.model.recipe.fusion.dim == 48 and built.model.recipe.text.dim == 24


def test_the_release_is_no_model_of_the_paper(files: list[tuple[str | None, Path]]) -> None:
    with pytest.raises(CheckpointError, match="use recipe segpref"):
        assemble(small_recipe(), files)


def test_without_its_sound_it_is_not_whole(files: list[tuple[str | None, Path]]) -> None:
    with pytest.raises(CheckpointError, match=r"audio_encoder\.features \(12\).*--random-weights SEED"):
        assemble(segpref_recipe(), files[:1])
    built = assemble(segpref_recipe(), files[:1], random_weights_seed=0)
    assert not built.is_trained and all(key.startswith("audio_encoder.") for key in built.random)
