"""Each part of the network compared with a plain float64 NumPy version written from its definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from teso_deploy.conversion.functions import PLUGIN_ATTRIBUTES, make_msda_function, make_plugin_function
from teso_deploy.models import build
from teso_deploy.models.audio import LogMel
from teso_deploy.models.fusion import Pmqs, Sedam
from teso_deploy.models.layers import Attention
from teso_deploy.models.msda import msda
from teso_deploy.models.swin import compute_relative_positions, join_windows, shift_mask, split_windows
from teso_deploy.recipe import FusionRecipe, Recipe

Array = NDArray[np.float64]


def array(x: torch.Tensor) -> Array:
    return x.detach().double().numpy()


def linear(x: Array, layer: torch.nn.Module) -> Array:
    return x @ array(layer.weight).T + array(layer.bias)  # type: ignore[arg-type]


def layer_norm(x: Array, layer: torch.nn.Module) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * array(layer.weight) + array(layer.bias)  # type: ignore[arg-type]


def softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


# --- log-mel -----------------------------------------------------------------------------------


def log_mel_by_definition(waveform: Array) -> Array:
    """VGGish's front end, frame by frame and band by band."""
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 400) for n in range(400)]
    mel = lambda f: 1127.0 * math.log(1.0 + f / 700.0)  # noqa: E731
    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    weights = np.zeros((257, 64))
    for k in range(1, 257):
        m = mel(k * 8000.0 / 256)
        for band in range(64):
            low, centre, high = edges[band : band + 3]
            weights[k, band] = max(0.0, min((m - low) / (centre - low), (high - m) / (high - centre)))
    rows = []
    for frame in range(96):
        part = waveform[frame * 160 : frame * 160 + 400] * window
        rows.append(np.log(np.abs(np.fft.rfft(part, 512)) @ weights + 0.01))
    return np.array(rows)


@pytest.mark.parametrize("sound", ["noise", "tone", "silence", "loud"])
def test_log_mel(sound: str) -> None:
    rng = np.random.default_rng(0)
    time = np.arange(15_600) / 16_000
    waveform = {
        "noise": rng.standard_normal(15_600) * 0.05,
        "tone": 0.5 * np.sin(2 * np.pi * 440 * time),
        "silence": np.zeros(15_600),
        "loud": np.sign(np.sin(2 * np.pi * 1000 * time)),
    }[sound]
    ours = LogMel()(torch.from_numpy(waveform).float()[None])[0, 0]
    assert ours.shape == (96, 64)
    np.testing.assert_allclose(array(ours), log_mel_by_definition(waveform), atol=5e-4)


# --- MSDA --------------------------------------------------------------------------------------


def msda_by_definition(value: Array, shapes: list[tuple[int, int]], locations: Array, weights: Array) -> Array:
    """Compute Deformable DETR's eq. 3 one sample at a time, with zeros outside a level."""
    batch, _, heads, dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = np.zeros((batch, queries, heads * dim))
    for b, q, m in np.ndindex(batch, queries, heads):
        start = 0
        for level, (height, width) in enumerate(shapes):
            image = value[b, start : start + height * width, m].reshape(height, width, dim)
            start += height * width
            for p in range(points):
                x = locations[b, q, m, level, p, 0] * width - 0.5
                y = locations[b, q, m, level, p, 1] * height - 0.5
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        if 0 <= row < height and 0 <= column < width:
                            share = (1 - abs(x - column)) * (1 - abs(y - row))
                            out[b, q, m * dim : (m + 1) * dim] += (
                                weights[b, q, m, level, p] * share * image[row, column]
                            )
    return out


def msda_inputs() -> tuple[list[tuple[int, int]], Array, Array, Array]:
    """Return levels, values, locations (some of them outside) and weights."""
    rng = np.random.default_rng(0)
    shapes = [(2, 3), (4, 5), (1, 1)]
    cells = sum(height * width for height, width in shapes)
    value = rng.standard_normal((2, cells, 2, 3))
    locations = rng.uniform(-0.3, 1.3, (2, 7, 2, 3, 4, 2))
    weights = softmax(rng.standard_normal((2, 7, 2, 12))).reshape(2, 7, 2, 3, 4)
    return shapes, value, locations, weights


def test_msda() -> None:
    shapes, value, locations, weights = msda_inputs()
    given = [torch.from_numpy(x).float() for x in (value, locations, weights)]
    ours = msda(given[0], shapes, locations=given[1], weights=given[2])
    np.testing.assert_allclose(array(ours), msda_by_definition(value, shapes, locations, weights), atol=2e-5)


def run_function(function: onnx.FunctionProto, feeds: dict[str, NDArray[Any]], **attributes: Any) -> NDArray[Any]:
    """Return the only output of a model-local function, inlined by ONNX Runtime."""
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in feeds.items()
    ]
    node = helper.make_node(function.name, list(feeds), ["found"], domain=function.domain, **attributes)
    graph = helper.make_graph([node], "graph", given, [helper.make_tensor_value_info("found", 1, None)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(function.domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(["found"], feeds)[0]
    return found


def test_msda_as_functions_of_a_graph() -> None:
    shapes, value, locations, weights = msda_inputs()
    expected = msda_by_definition(value, shapes, locations, weights)
    sizes = np.array(shapes, np.int32)
    starts = np.concatenate(([0], sizes.prod(1).cumsum()[:-1])).astype(np.int32)
    single = [x.astype(np.float32) for x in (value, locations, weights)]
    feeds = {"value": single[0], "shapes": sizes, "starts": starts, "locations": single[1], "weights": single[2]}
    found = run_function(make_plugin_function(shapes, 2, 3), feeds, **PLUGIN_ATTRIBUTES)
    assert found.shape == (2, 7, 2, 3)
    np.testing.assert_allclose(found.reshape(2, 7, 6), expected, atol=2e-5)
    # The same locations, as offsets in cells from reference points.
    points = np.random.default_rng(1).uniform(0, 1, (7, 2))
    offsets = (locations - points[:, None, None, None]) * sizes[:, ::-1][:, None]
    feeds = {"value": single[0], "offsets": offsets.astype(np.float32), "weights": single[2]}
    feeds["reference"] = points.astype(np.float32)
    found = run_function(make_msda_function(shapes, 2, 3), feeds, shapes=sizes.reshape(-1).tolist())
    np.testing.assert_allclose(found, expected, atol=2e-5)


# --- attention, SeDAM (eqs. 1-4), PMQS (eqs. 5-6) ----------------------------------------------


def attention_by_definition(layer: Attention, queries: Array, keys: Array, mask: Array | None) -> tuple[Array, Array]:
    """Return output and scaled scores before softmax, head by head.

    Shapes: (Q, d), (S, k), and a mask (S,) that is added to the scores.
    """
    q, k, v = linear(queries, layer.query), linear(keys, layer.key), linear(keys, layer.value)
    dim = q.shape[1] // layer.heads
    outputs, scores = [], []
    for head in range(layer.heads):
        part = slice(head * dim, (head + 1) * dim)
        score = q[:, part] @ k[:, part].T / math.sqrt(dim)
        scores.append(score)
        outputs.append(softmax(score if mask is None else score + mask) @ v[:, part])
    return linear(np.concatenate(outputs, axis=1), layer.output), np.array(scores)


def feed_forward(x: Array, layer: torch.nn.Module) -> Array:
    return linear(np.maximum(linear(x, layer.inner), 0), layer.outer)  # type: ignore[arg-type]


FUSION = FusionRecipe(dim=16, heads=4, latents=3, sedam_layers=3, pmqs_layers=2, ffn_dim=24)


def test_sedam() -> None:
    torch.manual_seed(0)
    sedam = Sedam(12, 20, FUSION)
    cues, latents = torch.randn(2, 4, 12), torch.randn(2, 3, 16)
    with torch.no_grad():
        prompts, gate = sedam(cues, latents)
    for b in range(2):
        x = linear(array(cues[b]), sedam.project)
        for i, layer in enumerate(sedam.attentions):
            attended, scores = attention_by_definition(layer, layer_norm(x, sedam.norms[i]), array(latents[b]), None)  # type: ignore[arg-type]
            x = x + attended
            if i < 2:
                x = x + feed_forward(layer_norm(x, sedam.ffn_norms[i]), sedam.ffns[i])
        expected = linear(layer_norm(x, sedam.output[0]), sedam.output[1])
        np.testing.assert_allclose(array(prompts[b]), expected, atol=1e-5)
        np.testing.assert_allclose(array(gate[b]), scores.mean(axis=(0, 2)), atol=1e-5)


@pytest.mark.parametrize("alive", [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
def test_pmqs(alive: list[int]) -> None:
    torch.manual_seed(0)
    pmqs = Pmqs(20, FUSION)
    queries, prompts = torch.randn(1, 5, 20), torch.randn(1, 4, 20)
    with torch.no_grad():
        ours = pmqs(queries, prompts, torch.tensor([alive], dtype=torch.bool))
    x = array(queries[0])
    kept = array(prompts[0])[np.array(alive, bool)]  # a masked cue must have no effect
    if len(kept):
        for i, layer in enumerate(pmqs.attentions):
            x = x + attention_by_definition(layer, layer_norm(x, pmqs.norms[i]), kept, None)[0]  # type: ignore[arg-type]
            x = x + feed_forward(layer_norm(x, pmqs.ffn_norms[i]), pmqs.ffns[i])
    np.testing.assert_allclose(array(ours[0]), x, atol=1e-5)


# --- Swin --------------------------------------------------------------------------------------


def test_windows_and_back() -> None:
    x = torch.arange(2 * 6 * 9 * 2).view(2, 6, 9, 2)
    cut = split_windows(x, 3)
    assert cut.shape == (12, 9, 2)
    assert torch.equal(cut[1].view(3, 3, 2), x[0, :3, 3:6])
    assert torch.equal(join_windows(cut, 3, height=6, width=9), x)


def test_relative_positions() -> None:
    index = compute_relative_positions(3)
    for a, b in np.ndindex(9, 9):
        dy, dx = a // 3 - b // 3, a % 3 - b % 3
        assert index[a, b] == (dy + 2) * 5 + dx + 2


def test_shift_mask_separates_what_was_not_adjacent() -> None:
    size, shift, height, width = 3, 1, 6, 9
    mask = shift_mask(height, width, size=size, shift=shift, device=torch.device("cpu"))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.roll(torch.stack((y, x), -1), (-shift, -shift), (0, 1))
    cells = split_windows(place[None], size)
    for window, a, b in np.ndindex(len(cells), 9, 9):
        near = (cells[window, a] - cells[window, b]).abs().max() < size
        assert (mask[window, a, b] == 0) == bool(near)


def test_window_attention_sees_only_its_window(tiny_recipe: Recipe) -> None:
    block = build(tiny_recipe, 0).visual_encoder.swin.stages[0][0]
    size = tiny_recipe.swin.window
    x = torch.randn(1, (2 * size) ** 2, tiny_recipe.swin.embed_dim)
    changed = x.clone().view(1, 2 * size, 2 * size, -1)
    changed[:, size:, size:] += 1
    with torch.no_grad():
        a = block(x, 2 * size, 2 * size).view(1, 2 * size, 2 * size, -1)
        b = block(changed.view_as(x), 2 * size, 2 * size).view(1, 2 * size, 2 * size, -1)
    assert torch.equal(a[:, :size], b[:, :size]) and torch.equal(a[:, :, :size], b[:, :, :size])
    assert not torch.allclose(a[:, size:, size:], b[:, size:, size:])
