"""BEATs, loaded from a file with Microsoft's names, compared with a plain float64 version of its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from teso_deploy.models.assembly import WeightSource, fit_tensors, map_keys, recognise_checkpoint
from teso_deploy.models.beats import BeatsEncoder, KaldiFilterBank, compute_position_buckets
from teso_deploy.models.keymaps.beats import BEATS
from teso_deploy.recipe import Recipe
from tests.support.foundations import small_recipe

Array = NDArray[np.float64]
SIZES = {
    "embed_dim": 12, "dim": 24, "layers": 2, "heads": 4, "ffn_dim": 20, "position_kernel": 6, "position_groups": 3,
    "relative_buckets": 16, "relative_distance": 40,
}  # fmt: skip


def beats_recipe() -> Recipe:
    return small_recipe(audio={"encoder": "beats", "dim": SIZES["dim"]}, beats=SIZES)


def random_file() -> dict[str, torch.Tensor]:
    """Return the content of Microsoft's ``model``, at a small size."""
    generator = torch.Generator().manual_seed(0)
    dim, ffn, head = SIZES["dim"], SIZES["ffn_dim"], SIZES["dim"] // SIZES["heads"]
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int, scale: float | None = None, around: float = 0.0) -> None:
        spread = scale if scale is not None else 1 / math.prod(shape[1:]) ** 0.5
        tensors[name] = torch.randn(shape, generator=generator) * spread + around

    def linear(name: str, outside: int, inside: int) -> None:
        add(f"{name}.weight", outside, inside)
        add(f"{name}.bias", outside, scale=0.1)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width, scale=0.1, around=1.0)
        add(f"{name}.bias", width, scale=0.1)

    add("patch_embedding.weight", SIZES["embed_dim"], 1, 16, 16)
    norm("layer_norm", SIZES["embed_dim"])
    linear("post_extract_proj", dim, SIZES["embed_dim"])
    kernel, groups = SIZES["position_kernel"], SIZES["position_groups"]
    add("encoder.pos_conv.0.weight_v", dim, dim // groups, kernel)
    add("encoder.pos_conv.0.weight_g", 1, 1, kernel, scale=0.3, around=2.0)
    add("encoder.pos_conv.0.bias", dim, scale=0.1)
    norm("encoder.layer_norm", dim)
    for i in range(SIZES["layers"]):
        inside = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{inside}.self_attn.{name}", dim, dim)
        linear(f"{inside}.self_attn.grep_linear", 8, head)
        add(f"{inside}.self_attn.grep_a", 1, SIZES["heads"], 1, 1, scale=0.5, around=1.0)
        norm(f"{inside}.self_attn_layer_norm", dim)
        linear(f"{inside}.fc1", ffn, dim)
        linear(f"{inside}.fc2", dim, ffn)
        norm(f"{inside}.final_layer_norm", dim)
    add("encoder.layers.0.self_attn.relative_attention_bias.weight", SIZES["relative_buckets"], SIZES["heads"], scale=1)
    shared = tensors["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    return tensors | {"encoder.layers.1.self_attn.relative_attention_bias.weight": shared.clone()}


# --- the filter bank ---------------------------------------------------------------------------


def filter_bank_by_definition(waveform: Array) -> Array:
    """Kaldi's ``compute-fbank-feats``, frame by frame: (96, 128)."""
    samples = waveform * 32768
    window = [(0.5 - 0.5 * math.cos(2 * math.pi * n / 399)) ** 0.85 for n in range(400)]
    mel = lambda f: 1127.0 * math.log(1.0 + f / 700.0)  # noqa: E731
    step = (mel(8000.0) - mel(20.0)) / 129
    weights = np.zeros((256, 128))
    for k in range(256):
        m = mel(k * 16_000 / 512)
        for band in range(128):
            left, centre, right = (mel(20.0) + (band + j) * step for j in range(3))
            if left < m < right:
                weights[k, band] = (m - left) / (centre - left) if m <= centre else (right - m) / (right - centre)
    rows = []
    for frame in range(96):
        part = samples[frame * 160 : frame * 160 + 400]
        part = part - part.mean()
        part = np.array([part[n] - 0.97 * part[max(0, n - 1)] for n in range(400)]) * window
        energies = (np.abs(np.fft.rfft(part, 512)[:256]) ** 2) @ weights
        rows.append(np.log(np.maximum(energies, 1.1920928955078125e-07)))
    return (np.array(rows) - 15.41663) / (2 * 6.55582)


@pytest.mark.parametrize("sound", ["noise", "tones", "silence", "loud"])
def test_filter_bank(sound: str) -> None:
    rng = np.random.default_rng(0)
    time = np.arange(15_600) / 16_000
    waveform = {
        "noise": rng.standard_normal(15_600) * 0.05,
        # Noise is added, because the leakage of a pure tone into far bands is below float32's resolution.
        "tones": 0.5 * np.sin(2 * np.pi * 440 * time) + rng.standard_normal(15_600) * 0.002,
        "silence": np.zeros(15_600),
        "loud": np.sign(np.sin(2 * np.pi * 1000 * time + 0.3)),
    }[sound].astype(np.float32)
    ours = KaldiFilterBank()(torch.from_numpy(waveform)[None])[0, 0]
    assert ours.shape == (96, 128)
    np.testing.assert_allclose(ours.numpy(), filter_bank_by_definition(waveform.astype(np.float64)), atol=5e-4)


# --- the network -------------------------------------------------------------------------------


def bucket_of(offset: int, buckets: int, distance: int) -> int:
    """Return T5's bucket of one pair.

    Keys to the right are in the upper half. Far ones are grouped by their logarithm.
    """
    half, upper = buckets // 2, offset > 0
    exact, far = half // 2, abs(offset)
    if far >= exact:
        far = min(half - 1, exact + int(math.log(far / exact) / math.log(distance / exact) * (half - exact)))
    return far + half * upper


def test_buckets() -> None:
    for buckets, distance in ((320, 800), (16, 40)):
        found = compute_position_buckets(48, buckets, distance)
        expected = [[bucket_of(key - query, buckets, distance) for key in range(48)] for query in range(48)]
        np.testing.assert_array_equal(found, expected)


def beats_by_definition(filter_bank: Array, tensors: dict[str, torch.Tensor]) -> Array:
    """(96, 128) → (d,), head by head."""
    w = {key: value.double().numpy() for key, value in tensors.items()}
    erf = np.vectorize(math.erf)

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Array) -> Array:
        return x * 0.5 * (1 + erf(x / math.sqrt(2)))

    patches = [filter_bank[t * 16 : t * 16 + 16, f * 16 : f * 16 + 16] for t in range(6) for f in range(8)]
    x = np.stack([np.einsum("kij,ij->k", w["patch_embedding.weight"][:, 0], patch) for patch in patches])
    x = linear(norm(x, "layer_norm"), "post_extract_proj")
    direction, magnitude = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"]
    kernel = direction / np.sqrt((direction**2).sum((0, 1), keepdims=True)) * magnitude
    dim, width, taps = kernel.shape
    padded = np.pad(x, ((taps // 2, taps // 2), (0, 0)))
    placed = np.zeros_like(x)
    for channel in range(dim):
        group = slice(channel // (dim // 3) * width, channel // (dim // 3) * width + width)
        for t in range(48):
            placed[t, channel] = (kernel[channel] * padded[t : t + taps, group].T).sum()
    x = norm(x + gelu(placed + w["encoder.pos_conv.0.bias"]), "encoder.layer_norm")
    table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    alpha, heads = (2 * SIZES["layers"]) ** 0.25, SIZES["heads"]
    for i in range(SIZES["layers"]):
        inside = f"encoder.layers.{i}"
        q, k, v = (linear(x, f"{inside}.self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj"))
        parts = []
        for head in range(heads):
            here = slice(head * dim // heads, (head + 1) * dim // heads)
            gates = linear(q[:, here], f"{inside}.self_attn.grep_linear")
            first, second = (1 / (1 + np.exp(-gates[:, half : half + 4].sum(1))) for half in (0, 4))
            gate = first * (second * w[f"{inside}.self_attn.grep_a"][0, head, 0, 0] - 1) + 2
            scores = q[:, here] @ k[:, here].T / math.sqrt(dim // heads)
            for a in range(48):
                for b in range(48):
                    scores[a, b] += gate[a] * table[bucket_of(b - a, 16, 40), head]
            share = np.exp(scores - scores.max(1, keepdims=True))
            parts.append(share / share.sum(1, keepdims=True) @ v[:, here])
        attended = linear(np.concatenate(parts, axis=1), f"{inside}.self_attn.out_proj")
        x = norm(x * alpha + attended, f"{inside}.self_attn_layer_norm")
        x = norm(x * alpha + linear(gelu(linear(x, f"{inside}.fc1")), f"{inside}.fc2"), f"{inside}.final_layer_norm")
    return x.mean(0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> BeatsEncoder:
    """Load the weights of a file in Microsoft's format into the small encoder."""
    path = tmp_path_factory.mktemp("beats") / "beats.pt"
    torch.save({"cfg": {"encoder_layers": SIZES["layers"], "deep_norm": True}, "model": random_file()}, path)
    source = recognise_checkpoint(path, "audio")
    recipe = beats_recipe()
    model = BeatsEncoder(recipe.beats).eval()
    given, _ = fit_tensors(source, recipe, model.state_dict(), seed=None)
    model.load_state_dict(given)
    return model


def waveforms() -> torch.Tensor:
    rng = np.random.default_rng(3)
    sounds = rng.standard_normal((3, 15_600)) * np.array([[0.05], [0.3], [0.0]])
    return torch.from_numpy(sounds.astype(np.float32))


@torch.no_grad()
def test_the_encoder(loaded: BeatsEncoder) -> None:
    given = waveforms()
    ours = loaded(given).double().numpy()
    banks = loaded.filter_bank(given)[:, 0].double().numpy()
    for found, bank in zip(ours, banks, strict=True):
        np.testing.assert_allclose(found, beats_by_definition(bank, random_file()), atol=1e-4)
    assert np.abs(ours[0] - ours[2]).max() > 0.05, "silence is not noise"


def recognised_as(tensors: dict[str, torch.Tensor]) -> WeightSource:
    assert BEATS.recognises(tensors)
    return WeightSource(Path("beats.pt"), tensors, BEATS)


def test_every_key_is_known_and_every_weight_given() -> None:
    recipe = beats_recipe()
    own = BeatsEncoder(recipe.beats).state_dict()
    tensors = random_file() | {"predictor.weight": torch.zeros(5, 24), "predictor.bias": torch.zeros(5)}
    source = recognised_as(tensors)
    given, report = map_keys(source, recipe, own)
    assert report.is_complete, str(report)
    assert given.keys() == own.keys()
    renamed = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in tensors.items()
    }
    again, report = map_keys(recognised_as(renamed), recipe, own)
    assert report.is_complete and torch.equal(again["positions.weight"], given["positions.weight"])


@torch.no_grad()
def test_it_is_one_graph(loaded: BeatsEncoder, tmp_path: Path) -> None:
    from teso_deploy.conversion.graphs import export_graph
    from teso_deploy.models.methods import GraphSpec

    given = waveforms()
    path = tmp_path / "audio_encoder.onnx"
    entry = export_graph(loaded, GraphSpec(("waveform",), ("audio",)), (given[:2],), path=path, metadata={})
    assert entry.outputs[0].shape == ("B", SIZES["dim"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        found = session.run(None, {"waveform": given[:batch].numpy()})[0]
        np.testing.assert_allclose(found, loaded(given[:batch]).numpy(), atol=1e-4)
