"""The results of our kernels, computed independently in plain NumPy, and the fewest bytes that each must move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def resize_matrix(source: int, target: int) -> NDArray[np.int64]:
    """Compute the triangle filter as a matrix (target, source) in units of 2^-22.

    All rows have the same sum, apart from rounding.
    """
    scale = source / target
    width = max(scale, 1.0)
    centre = (np.arange(target)[:, None] + 0.5) * scale
    weight = np.maximum(0.0, 1 - np.abs(np.arange(source) + 0.5 - centre) / width)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.floor(weight * 2**22 + 0.5).astype(np.int64)


def resize_pictures(
    pictures: NDArray[np.uint8], size: tuple[int, int], is_rows_first: bool = False
) -> NDArray[np.uint8]:
    """Resize pictures like Pillow's BILINEAR, rounding after each axis.

    Args:
        pictures: (B, H, W, 3) uint8.
        size: New size (height, width).
        is_rows_first: Whether the rows are resized before the columns. Default: no.

    Returns:
        (B, height, width, 3) uint8.
    """
    levels = pictures.astype(np.int64)
    for axis in (1, 2) if is_rows_first else (2, 1):
        matrix = resize_matrix(pictures.shape[axis], size[axis - 1])
        sums = np.moveaxis(np.tensordot(matrix, levels, (1, axis)), 0, axis)
        levels = ((sums + 2**21) >> 22).clip(0, 255)
    return levels.astype(np.uint8)


def convert_nv12_to_rgb(
    luma: NDArray[np.uint8], chroma: NDArray[np.uint8], *, luma_shares: tuple[float, float], is_full_range: bool
) -> NDArray[np.float64]:
    """Convert NV12 pictures to RGB. Each pair of chroma applies to its 2 × 2 pixels.

    Args:
        luma: (B, H, W) uint8.
        chroma: (B, ⌈H/2⌉, ⌈W/2⌉, 2) uint8, U and V.
        luma_shares: Shares of red and blue in the luma.
        is_full_range: Whether luma uses 0 … 255 instead of 16 … 235.

    Returns:
        (B, H, W, 3) float64 in levels 0 … 255, neither rounded nor clipped.
    """
    red, blue = luma_shares
    height, width = luma.shape[1:]
    uv = chroma.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width].astype(np.float64) - 128
    y = luma.astype(np.float64)
    if not is_full_range:
        y, uv = (y - 16) * 255 / 219, uv * 255 / 224
    r = y + 2 * (1 - red) * uv[..., 1]
    b = y + 2 * (1 - blue) * uv[..., 0]
    # Luma is the weighted sum of red, green and blue.
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.stack((r, g, b), axis=-1)


def prepare_encoder_input(
    pictures: NDArray[np.uint8],
    *,
    bucket: tuple[int, int],
    fitted: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = np.float32,
    is_rows_first: bool = False,
) -> NDArray[Any]:
    """Resize, normalise and pad pictures.

    Args:
        pictures: RGB pictures (B, H, W, 3) uint8.
        bucket: Size (height, width) of the result.
        fitted: Size (height, width) that the pictures are resized to.
        mean: Mean of each channel, in levels 0 … 255.
        std: Standard deviation of each channel, in levels.
        dtype: Type of the result. Default: float32.
        is_rows_first: Whether the rows are resized before the columns. Default: no.

    Returns:
        (B, 3, *bucket), with zeros below and to the right of the picture.
    """
    scale = np.float32(1) / np.asarray(std, np.float32)
    shift = np.asarray(mean, np.float32) * scale
    levels = resize_pictures(pictures, fitted, is_rows_first).transpose(0, 3, 1, 2).astype(np.float32)
    result = np.zeros((len(pictures), 3, *bucket), dtype)
    result[:, :, : fitted[0], : fitted[1]] = (levels * scale[:, None, None] - shift[:, None, None]).astype(dtype)
    return result


def compute_labels(
    scores: NDArray[Any], size: tuple[int, int], *, threshold: float, shares: tuple[float, float] = (1.0, 1.0)
) -> NDArray[np.uint8]:
    """Upsample the scores of all classes and take the best class of each pixel.

    Args:
        scores: Class scores (B, C, h, w).
        size: Size (height, width) of the labels.
        threshold: The lowest score that gives a label.
        shares: Shares (0 … 1) of the scores' height and width that show the picture. Default: all.

    Returns:
        (B, height, width) uint8: 1 + argmax where the maximum ≥ threshold, else 0.
    """
    mixed = scores.astype(np.float32)
    # Resize the columns first: because of rounding, the other order would give another result.
    for axis in (3, 2):
        cells, share, length = scores.shape[axis], shares[axis - 2], size[axis - 2]
        last = math.ceil(cells * share) - 1
        place = np.clip((np.arange(length) + 0.5) * (cells * share / length) - 0.5, 0, last)
        lower = place.astype(np.intp)
        weight = (place - lower).astype(np.float32).reshape(-1, *(1,) * (3 - axis))
        near = mixed.take(lower, axis)
        mixed = near + (mixed.take(np.minimum(lower + 1, last), axis) - near) * weight
    best = mixed.max(axis=1) >= np.float32(threshold)
    return np.where(best, mixed.argmax(axis=1) + 1, 0).astype(np.uint8)


def count_preprocess_bytes(
    size: tuple[int, int],
    bucket: tuple[int, int],
    *,
    batch: int = 1,
    dtype: DTypeLike = np.float32,
    is_nv12: bool = False,
) -> int:
    """Count the fewest bytes that preprocessing can move: it reads each source byte and writes each value once.

    Args:
        size: Size (height, width) of the pictures.
        bucket: Size (height, width) of the result.
        batch: Number of pictures. Default: 1.
        dtype: Type of the result. Default: float32.
        is_nv12: Whether the pictures are NV12 instead of RGB. Default: no.

    Returns:
        The number of bytes.
    """
    height, width = size
    picture = height * width + 2 * math.ceil(height / 2) * math.ceil(width / 2) if is_nv12 else 3 * height * width
    return batch * (picture + 3 * bucket[0] * bucket[1] * np.dtype(dtype).itemsize)


def count_postprocess_bytes(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    dtype: DTypeLike = np.float32,
    shares: tuple[float, float] = (1.0, 1.0),
) -> int:
    """Count the fewest bytes that postprocessing can move: it reads each score and writes each label once.

    Args:
        shape: Shape (B, C, h, w) of the scores.
        size: Size (height, width) of the labels.
        dtype: Type of the scores. Default: float32.
        shares: Shares (0 … 1) of the scores' height and width that show the picture and are read. Default: all.

    Returns:
        The number of bytes.
    """
    batch, classes, height, width = shape
    shown = math.ceil(height * shares[0]) * math.ceil(width * shares[1])
    return batch * (classes * shown * np.dtype(dtype).itemsize + size[0] * size[1])
