"""Checks of arrays that callers pass as pictures or sound. The messages guess what they are and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Divisors that bring samples of an integer type to [-1, 1].
_FULL_SCALE = {"int8": 1 << 7, "int16": 1 << 15, "int32": 1 << 31}
#: Louder samples are not sound in [-1, 1]; a resampler overshoots by less.
LOUDEST_SAMPLE = 1.5
#: Common sample rates.
_RATES_HZ = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)


def describe(value: Any) -> str:
    """Return ``uint8[64, 96, 3]`` for an array, else its repr."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


def _hint_at_image(image: NDArray[Any]) -> str:
    """Return what to do with an array that is not a picture, judged by its shape and values."""
    shape = image.shape
    if image.ndim == 4:
        return "give one picture at a time: image[0]"
    if image.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        return "put the channels last: image.transpose(1, 2, 0)"
    if image.ndim == 2:
        return "repeat the grey levels: np.stack([image] * 3, axis=2)"
    if image.ndim == 3 and shape[2] == 1:
        return "repeat the grey levels: image.repeat(3, axis=2)"
    if image.ndim == 3 and shape[2] == 4:
        return "leave out the transparency: image[:, :, :3]"
    if image.ndim != 3 or shape[2] != 3:
        return "give one picture as rows, columns and the three colours"
    if np.issubdtype(image.dtype, np.floating):
        if image.size and image.max() > 1:
            return "its values look like 0 … 255: image.round().astype(np.uint8)"
        return "for values of 0 … 1: (image * 255).round().astype(np.uint8)"
    if image.dtype == np.uint16:
        return "for values of 16 bits: (image // 257).astype(np.uint8)"
    return "for values of 0 … 255: image.astype(np.uint8)"


def check_image(image: NDArray[np.uint8]) -> None:
    """Raise ValueError or TypeError for an array that is not (H, W, 3) uint8. The message says what to do."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image must be a NumPy array, got {type(image).__name__}: give np.asarray(image)")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {describe(image)}: {_hint_at_image(image)}")
    if min(image.shape[:2]) < 1:
        raise ValueError(f"image has no pixels: {describe(image)}")


def _hint_at_samples(samples: NDArray[Any]) -> str:
    """Return advice for an array that is not mono float32 sound. The advice depends on its shape and values."""
    if samples.ndim == 2 and 1 in samples.shape:
        return "leave out the dimension of one channel: samples.reshape(-1)"
    if samples.ndim == 2:
        return f"average the channels: samples.mean(axis={int(samples.shape[0] > samples.shape[1])})"
    if samples.ndim != 1:
        return "give one window of one channel"
    if scale := _FULL_SCALE.get(samples.dtype.name):
        return f"divide the integers: samples.astype(np.float32) / {scale}"
    if samples.dtype == np.uint8:
        return "8 bits without sign: (samples.astype(np.float32) - 128) / 128"
    return "samples.astype(np.float32)"


def check_samples(samples: NDArray[np.float32]) -> None:
    """Raise ValueError or TypeError for an array that is not (N,) float32 in about [-1, 1], saying what to do."""
    if not isinstance(samples, np.ndarray):
        raise TypeError(f"samples must be a NumPy array, got {type(samples).__name__}: give np.asarray(samples)")
    if samples.ndim != 1 or samples.dtype != np.float32:
        hint = _hint_at_samples(samples)
        raise ValueError(f"samples must be (N,) float32 in [-1, 1], got {describe(samples)}: {hint}")
    if not samples.size or (samples.min() >= -LOUDEST_SAMPLE and samples.max() <= LOUDEST_SAMPLE):
        return
    if invalid := int(samples.size - np.isfinite(samples).sum()):
        raise ValueError(
            f"{invalid} of {samples.size} samples are NaN or infinite: find out why, or give zeros in their place, "
            "np.nan_to_num(samples, nan=0, posinf=0, neginf=0)"
        )
    peak = float(np.abs(samples).max())
    if peak >= 2 and np.array_equal(samples, np.rint(samples)):
        scale = next((scale for scale in _FULL_SCALE.values() if peak <= scale), 1 << 31)
        raise ValueError(
            f"samples reach {peak:g} and are whole numbers, not sound in [-1, 1]: divide integers of "
            f"{scale.bit_length()} bits by {scale}"
        )
    raise ValueError(
        f"samples reach {peak:g}, sound is in [-1, 1]: divide by 32768 what was int16, or by its peak what is too loud"
    )


def check_window_length(found: int, wanted: int) -> None:
    """Raise ValueError for a window with a wrong number of samples. The message says what to do."""
    if found == wanted:
        return
    seconds = wanted / 16_000
    rate = next((rate for rate in _RATES_HZ if rate != 16_000 and abs(found - seconds * rate) <= 1), None)
    if rate is not None:
        hint = f"that is {seconds:g} s at {rate / 1000:g} kHz: resample it to 16 kHz"
    elif found in _RATES_HZ:
        hint = f"that is 1 s at {found / 1000:g} kHz: give {seconds:g} s at 16 kHz"
    elif found > wanted:
        hint = f"give the {seconds:g} s around the frame, samples[start : start + {wanted}]"
    else:
        hint = f"fill it with zeros, np.pad(samples, (0, {wanted - found}))"
    raise ValueError(f"a window has {wanted} samples ({seconds:g} s at 16 kHz), got {found}: {hint}")
