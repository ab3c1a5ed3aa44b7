"""Prepares a picture for a captioner: the image processors of Hugging Face, in NumPy and Pillow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.cues.model_bundle import ImageEntry

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def prepare_picture(image: NDArray[np.uint8], entry: ImageEntry) -> dict[str, NDArray[Any]]:
    """Return the inputs of an encoder for a picture (H, W, 3) uint8 RGB.

    They are ``pixel_values`` (1, 3, height, width). For pix2struct they are ``flattened_patches`` (1, N, 2 + 3 ·
    patch²), rows of (row, column, pixels) counted from 1 and then zeros, and ``attention_mask`` (1, N) int64.
    """
    if entry.patch is not None and entry.max_patches is not None:
        return _cut_patches(image, entry.patch, entry.max_patches)
    height, width = entry.size
    picture = Image.fromarray(image)
    if entry.fit == "shortest-side-then-crop":
        short = min(height, width)
        scaled = [int(short * length / min(picture.size)) for length in picture.size]
        picture = picture.resize((scaled[0], scaled[1]), _RESAMPLING[entry.resample])
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    elif picture.size != (width, height):
        picture = picture.resize((width, height), _RESAMPLING[entry.resample])
    pixels = np.asarray(picture).astype(np.float32) / np.float32(255)
    scaled_pixels = (pixels - np.array(entry.mean, np.float32)) / np.array(entry.std, np.float32)
    return {"pixel_values": np.ascontiguousarray(scaled_pixels.transpose(2, 0, 1)[None])}


def _cut_patches(image: NDArray[np.uint8], side: int, most: int) -> dict[str, NDArray[Any]]:
    """Cut a picture into as many squares as fit.

    It keeps its aspect ratio and is normalised by its own mean and deviation.
    """
    pixels = image.astype(np.float32)
    deviation = max(float(pixels.std()), 1 / math.sqrt(pixels.size))
    pixels = (pixels - pixels.mean()) / np.float32(deviation)
    height, width = image.shape[:2]
    scale = math.sqrt(most * (side / height) * (side / width))
    rows, columns = (max(min(math.floor(scale * length / side), most), 1) for length in (height, width))
    channels = [
        np.asarray(Image.fromarray(pixels[:, :, c]).resize((columns * side, rows * side), Image.Resampling.BILINEAR))
        for c in range(3)
    ]
    squares = np.stack(channels, axis=-1).reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    places = np.stack(np.meshgrid(np.arange(rows) + 1, np.arange(columns) + 1, indexing="ij"), axis=-1)
    count = rows * columns
    patches = np.zeros((1, most, 2 + 3 * side * side), np.float32)
    patches[0, :count, :2] = places.reshape(count, 2)
    patches[0, :count, 2:] = squares.reshape(count, -1)
    mask = np.zeros((1, most), np.int64)
    mask[0, :count] = 1
    return {"flattened_patches": patches, "attention_mask": mask}
