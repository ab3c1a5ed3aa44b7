"""VGGish (Hershey et al., 2017) of any width, with its log-mel spectrogram inside."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from teso_deploy.recipe import AudioRecipe, Recipe
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES

WINDOW, HOP, FFT = 400, 160, 512
PATCH_FRAMES, MEL_BANDS = 96, 64
MEL_LOW_HZ, MEL_HIGH_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01


def convert_hz_to_mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """HTK mel scale as VGGish writes it."""
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


def make_mel_filters() -> NDArray[np.float64]:
    """Triangular filters in mel, the DC row zeroed: (257, 64)."""
    bins = convert_hz_to_mel(np.linspace(0.0, SAMPLE_RATE_HZ / 2, FFT // 2 + 1))[:, None]
    edges = np.linspace(convert_hz_to_mel(MEL_LOW_HZ), convert_hz_to_mel(MEL_HIGH_HZ), MEL_BANDS + 2)
    low, centre, high = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    filters = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    filters[0] = 0.0
    return filters


def make_dft_kernels() -> NDArray[np.float64]:
    """Real and imaginary DFT rows of a zero-padded Hann window: (2·257, 400)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # periodic
    angle = 2 * np.pi * np.outer(np.arange(FFT // 2 + 1), np.arange(WINDOW)) / FFT
    return np.concatenate((np.cos(angle), np.sin(angle))) * window


class LogMel(nn.Module):
    """waveform (B, 15600) in [-1, 1] → log mel magnitudes (B, 1, 96, 64).

    Framing and DFT are one convolution, which every runtime supports.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dft: Tensor
        self.mel: Tensor
        self.register_buffer("dft", torch.from_numpy(make_dft_kernels()).float()[:, None], persistent=False)
        self.register_buffer("mel", torch.from_numpy(make_mel_filters()).float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.nn.functional.conv1d(waveform[:, None], self.dft, stride=HOP)  # (B, 514, 96)
        real, imaginary = spectrum.chunk(2, dim=1)
        magnitude = torch.sqrt(real * real + imaginary * imaginary).transpose(1, 2)
        return torch.log(magnitude @ self.mel + LOG_OFFSET)[:, None]


class Vggish(nn.Module):
    """waveform (B, 15600) → F_A (B, d_A): one patch of 0.975 s."""

    def __init__(self, recipe: AudioRecipe) -> None:
        super().__init__()
        self.log_mel = LogMel()
        one, two, three, four, five, six = recipe.channels

        def conv(inside: int, outside: int) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(outside)] if recipe.batch_norm else []
            return [nn.Conv2d(inside, outside, 3, padding=1), *norm, nn.ReLU()]

        def hidden(inside: int, outside: int) -> list[nn.Module]:
            norm = [nn.BatchNorm1d(outside)] if recipe.batch_norm else []
            return [nn.Linear(inside, outside), *norm, nn.ReLU()]

        self.features = nn.Sequential(
            *conv(1, one), nn.MaxPool2d(2),
            *conv(one, two), nn.MaxPool2d(2),
            *conv(two, three), *conv(three, four), nn.MaxPool2d(2),
            *conv(four, five), *conv(five, six), nn.MaxPool2d(2),
        )  # fmt: skip
        cells = (PATCH_FRAMES // 16) * (MEL_BANDS // 16)
        first, second = recipe.hidden
        last: list[nn.Module] = [nn.ReLU()] if recipe.last_relu else []
        self.embeddings = nn.Sequential(
            *hidden(cells * six, first), *hidden(first, second), nn.Linear(second, recipe.dim), *last
        )
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, waveform: Tensor) -> Tensor:
        patch = self.features(self.log_mel(waveform))
        # Time, frequency, channel: the order in which the original flattens.
        return self.embeddings(patch.permute(0, 2, 3, 1).flatten(1))


def make_vggish(recipe: Recipe) -> nn.Module:
    """Build the audio encoder ``vggish`` of a recipe."""
    return Vggish(recipe.audio)


assert math.ceil((WINDOW_SAMPLES - WINDOW + 1) / HOP) == PATCH_FRAMES
