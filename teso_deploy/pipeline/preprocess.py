"""Turn an RGB picture into the encoder's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def choose_nearest_size(image: NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the bucket (height, width) whose shape distorts a picture (H, W, 3) least.

    Among buckets of the same shape, this is the smallest one with at least the picture's area. If all are smaller, it
    is the largest.
    """
    shape, area = np.log(image.shape[0] / image.shape[1]), image.shape[0] * image.shape[1]

    def rank(size: tuple[int, int]) -> tuple[float, bool, int]:
        bucket_area = size[0] * size[1]
        is_below = bucket_area < area
        distortion = round(abs(float(np.log(size[0] / size[1]) - shape)), 9)
        return distortion, is_below, -bucket_area if is_below else bucket_area

    return min(sizes, key=rank)


def resize_picture(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a picture (H, W, 3) uint8 to ``size`` (height, width), bilinear and antialiased.

    Training, the CPU path and the CUDA kernels share this resize: a triangle filter as wide as the scale.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def compute_fitted_size(image: NDArray[np.uint8], bucket: tuple[int, int], fit: str) -> tuple[int, int]:
    """Return the (height, width) that a picture is resized to.

    Args:
        image: The picture (H, W, 3).
        bucket: Size (height, width) of the encoder's input.
        fit: "stretch" fills the bucket, "pad" keeps the picture's shape.

    Returns:
        The size (height, width), at most the bucket's.
    """
    if fit == "stretch":
        return bucket
    scale = min(bucket[0] / image.shape[0], bucket[1] / image.shape[1])
    height, width = (int(length * scale + 0.5) for length in image.shape[:2])
    return max(1, min(bucket[0], height)), max(1, min(bucket[1], width))


def normalise_picture(
    picture: NDArray[np.uint8],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    bucket: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Normalise a picture: (x - mean) / std per channel.

    Args:
        picture: RGB picture (height, width, 3) uint8.
        mean: Mean of each channel, in grey levels.
        std: Standard deviation of each channel, in grey levels.
        bucket: Size (height, width) to pad to, with zeros below and to the right. Default: no padding.

    Returns:
        (1, 3, height, width) float32.
    """
    scale = 1 / np.asarray(std, np.float32)
    shift = np.asarray(mean, np.float32) * scale
    channels = picture.transpose(2, 0, 1)
    image: NDArray[np.float32] = np.ascontiguousarray((channels * scale[:, None, None] - shift[:, None, None])[None])
    if bucket is None or picture.shape[:2] == bucket:
        return image
    padded = np.zeros((1, 3, *bucket), np.float32)
    padded[:, :, : picture.shape[0], : picture.shape[1]] = image
    return padded
