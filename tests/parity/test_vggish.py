"""VGGish, loaded from a file in torchvggish's names, compared with its definition in float64 loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teso_deploy.models.assembly import fit_tensors, recognise_checkpoint
from teso_deploy.models.audio import LogMel, Vggish
from teso_deploy.recipe import AudioRecipe
from tests.support.foundations import small_recipe

Array = NDArray[np.float64]
WIDTHS = (3, 4, 5, 6, 7, 8)


def random_file(dim: int, hidden: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return a ``state_dict`` of torchvggish with these widths. Its PCA is not used here."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    inside = 1
    for place, outside in zip((0, 3, 6, 8, 11, 13), WIDTHS, strict=True):
        shapes[f"features.{place}"] = (outside, inside, 3, 3)
        inside = outside
    for place, size in ((0, (hidden[0], 6 * 4 * inside)), (2, hidden[::-1]), (4, (dim, hidden[1]))):
        shapes[f"embeddings.{place}"] = size
    tensors = {}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:]))
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return tensors | {"pproc.pca_means": torch.zeros(dim, 1), "pproc.pca_eigen_vectors": torch.zeros(dim, dim)}


def convolved(x: Array, weight: Array, bias: Array) -> Array:
    """Convolve 3 × 3 with stride 1 and zeros around, (C, H, W) → (K, H, W), then apply relu."""
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), height, width))
    for dy in range(3):
        for dx in range(3):
            out += np.einsum("kc,chw->khw", weight[:, :, dy, dx], padded[:, dy : dy + height, dx : dx + width])
    return np.maximum(out + bias[:, None, None], 0)


def pooled(x: Array) -> Array:
    return np.maximum.reduce([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def by_definition(log_mel: Array, tensors: dict[str, torch.Tensor], last_relu: bool) -> Array:
    """Map one patch (96, 64) to (d_A,)."""
    weights = {key: value.double().numpy() for key, value in tensors.items()}

    def layer(x: Array, place: int) -> Array:
        return convolved(x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"])

    x = pooled(layer(log_mel[None], 0))
    x = pooled(layer(x, 3))
    x = pooled(layer(layer(x, 6), 8))
    x = pooled(layer(layer(x, 11), 13))
    flat = np.array([x[c, t, f] for t in range(6) for f in range(4) for c in range(len(x))])
    for place in (0, 2, 4):
        flat = weights[f"embeddings.{place}.weight"] @ flat + weights[f"embeddings.{place}.bias"]
        if place < 4 or last_relu:
            flat = np.maximum(flat, 0)
    return flat


@pytest.mark.parametrize("last_relu", [False, True], ids=["signed, as TeSO", "last ReLU, as AVSBench"])
@torch.no_grad()
def test_vggish_of_a_file(last_relu: bool, tmp_path: Path) -> None:
    audio = AudioRecipe(channels=WIDTHS, hidden=(9, 10), dim=6, last_relu=last_relu)
    tensors = random_file(audio.dim, audio.hidden)
    torch.save(tensors, tmp_path / "vggish.pth")
    source = recognise_checkpoint(tmp_path / "vggish.pth", "audio")
    assert source.format is not None and source.format.name == "torchvggish"
    model = Vggish(audio).eval()
    own = {key: value for key, value in model.state_dict().items() if not key.startswith("log_mel")}
    given, _ = fit_tensors(source, small_recipe(audio=audio.model_dump()), own, seed=None)
    assert given.keys() == own.keys()
    model.load_state_dict(given, strict=False)
    rng = np.random.default_rng(1)
    waveform = torch.from_numpy(rng.standard_normal((2, 15_600)).astype(np.float32) * 0.1)
    waveform[1] = 0
    for ours, patch in zip(model(waveform), LogMel()(waveform)[:, 0].double().numpy(), strict=True):
        expected = by_definition(patch, tensors, last_relu)
        assert (expected < 0).any() != last_relu
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)
