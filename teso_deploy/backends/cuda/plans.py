"""Launches of our kernels: their tables, grids and arguments. Nothing here needs a GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda.device import KernelArgument

#: Rows and columns of the output that a block computes, one thread per pixel. The kernels have the same constants.
TILE = (8, 32)
#: CUDA's limit of blocks along the second and third axis of a grid.
MAX_BLOCKS = 65_535
#: A label is one byte, and 0 is the background.
MAX_CLASSES = 255
#: Pillow has the same value for 8-bit pictures.
WEIGHT_BITS = 22
COLOUR_BITS = 16

YuvMatrix = Literal["bt601", "bt709"]
#: Shares of red and blue in the luma.
LUMA_SHARES: dict[YuvMatrix, tuple[float, float]] = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, its grid and block as (x, y, z), and its arguments."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[KernelArgument, ...]


@dataclass(frozen=True, slots=True)
class RgbPictures:
    """(batch, height, width, 3) uint8 on the device, with optional gaps between rows and between pictures.

    ``pitch_bytes``: from row to row. ``picture_stride_bytes``: from picture to picture. 0 means no gap.
    """

    pointer: int
    size: tuple[int, int]
    pitch_bytes: int = 0
    batch: int = 1
    picture_stride_bytes: int = 0

    def __post_init__(self) -> None:
        _check_positive(size=min(self.size), batch=self.batch)
        object.__setattr__(self, "pitch_bytes", _choose_pitch("pitch_bytes", self.pitch_bytes, 3 * self.size[1]))
        stride = self.picture_stride_bytes or self.size[0] * self.pitch_bytes
        object.__setattr__(self, "picture_stride_bytes", stride)


@dataclass(frozen=True, slots=True)
class Nv12Pictures:
    """A plane (batch, height, width) of luma and a plane (batch, ⌈height/2⌉, ⌈width/2⌉, 2) of U and V, both uint8.

    Each plane has a pitch, and a stride from picture to picture, in bytes; 0 means no gap. Each pair of U and V applies
    to its 2 × 2 pixels, as in FFmpeg's conversion without a resize.
    """

    luma: int
    chroma: int
    size: tuple[int, int]
    luma_pitch_bytes: int = 0
    chroma_pitch_bytes: int = 0
    batch: int = 1
    luma_stride_bytes: int = 0
    chroma_stride_bytes: int = 0
    matrix: YuvMatrix = "bt601"
    is_full_range: bool = False

    def __post_init__(self) -> None:
        _check_positive(size=min(self.size), batch=self.batch)
        chroma_height, chroma_width = (math.ceil(length / 2) for length in self.size)
        luma_pitch = _choose_pitch("luma_pitch_bytes", self.luma_pitch_bytes, self.size[1])
        chroma_pitch = _choose_pitch("chroma_pitch_bytes", self.chroma_pitch_bytes, 2 * chroma_width)
        object.__setattr__(self, "luma_pitch_bytes", luma_pitch)
        object.__setattr__(self, "chroma_pitch_bytes", chroma_pitch)
        object.__setattr__(self, "luma_stride_bytes", self.luma_stride_bytes or self.size[0] * luma_pitch)
        object.__setattr__(self, "chroma_stride_bytes", self.chroma_stride_bytes or chroma_height * chroma_pitch)


@dataclass(frozen=True, slots=True)
class Scores:
    """(B, C, h, w) float32 or float16 on the device, in C order without gaps."""

    pointer: int
    shape: tuple[int, int, int, int]
    dtype: DTypeLike = np.float32

    def __post_init__(self) -> None:
        _check_positive(shape=min(self.shape))
        if self.shape[1] > MAX_CLASSES:
            raise ValueError(f"{self.shape[1]} classes don't fit into labels of 8 bits: at most {MAX_CLASSES}")


@dataclass(frozen=True, slots=True)
class Labels:
    """The array (B, height, width) uint8 on the device that is written; pitch and stride in bytes, 0 means no gap."""

    pointer: int
    size: tuple[int, int]
    pitch_bytes: int = 0
    picture_stride_bytes: int = 0

    def __post_init__(self) -> None:
        _check_positive(size=min(self.size))
        object.__setattr__(self, "pitch_bytes", _choose_pitch("pitch_bytes", self.pitch_bytes, self.size[1]))
        stride = self.picture_stride_bytes or self.size[0] * self.pitch_bytes
        object.__setattr__(self, "picture_stride_bytes", stride)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _choose_pitch(name: str, pitch_bytes: int, row_bytes: int) -> int:
    if 0 < pitch_bytes < row_bytes or pitch_bytes < 0:
        raise ValueError(f"{name} is {pitch_bytes}, but one row takes {row_bytes} bytes")
    return pitch_bytes or row_bytes


@functools.lru_cache(maxsize=64)
def resize_filter(source: int, target: int) -> NDArray[np.int32]:
    """Compute Pillow's BILINEAR filter along one axis: (2 + taps, target) int32, read-only.

    Row 0 has the first source position of each target position, row 1 the number of source positions. The other rows
    are their weights in units of 2^-22. The weights are computed in double precision and in Pillow's order, so that
    they equal Pillow's to the last bit.
    """
    _check_positive(source=source, target=target)
    if source == target:
        table = np.stack((np.arange(target), np.ones(target), np.full(target, 1 << WEIGHT_BITS))).astype(np.int32)
        table.flags.writeable = False
        return table
    scale = source / target
    support = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    start = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), source)
    tap = np.arange(int((end - start).max()))[:, None]
    weight = np.maximum(1 - np.abs((tap + start - centre + 0.5) * (1.0 / support)), 0.0)
    weight[tap >= end - start] = 0.0
    # Add one after the other, as Pillow does: np.sum would add in another order.
    weight /= np.cumsum(weight, axis=0)[-1]
    fixed = (weight * (1 << WEIGHT_BITS) + 0.5).astype(np.int32)
    table = np.concatenate((start[None], (end - start)[None], fixed)).astype(np.int32)
    table.flags.writeable = False
    return table


def is_rows_first(source: tuple[int, int], target: tuple[int, int], pillow: str = PIL.__version__) -> bool:
    """Return whether this version of Pillow resizes the rows before the columns.

    Pillow rounds in between, so the order changes some values by one level. Versions up to 12.1 resize the columns
    first. 12.2 resizes the rows first in very tall pictures. 13 does so whenever the height shrinks by far more than
    the width.

    Args:
        source: Size (height, width) of the picture.
        target: Size (height, width) after the resize.
        pillow: Version of Pillow. Default: the installed one.
    """
    version = tuple(int(part) for part in pillow.split(".")[:2])
    if version >= (13, 0):
        return target[0] < source[0] and source[0] - target[0] > 2 * (source[1] - target[1])
    return version >= (12, 2) and target[0] < source[0] and source[0] > 100 * source[1]


@functools.lru_cache(maxsize=64)
def mask_taps(source: int, target: int, share: float) -> NDArray[np.int32]:
    """Compute bilinear taps along one axis of the class scores, as :mod:`teso_deploy.labels` does.

    Args:
        source: Length of the scores along the axis.
        target: Length of the labels along the axis.
        share: Share (0 … 1) of the scores that shows the picture; the rest is padding.

    Returns:
        (3, target) int32, read-only: the lower tap, the upper tap, and the bits of the upper tap's float32 weight.

    Raises:
        ValueError: A length is not positive, or the share is outside (0, 1].
    """
    _check_positive(source=source, target=target)
    if not 0 < share <= 1:
        raise ValueError(f"a share of the scores must be in (0, 1], got {share}")
    last = math.ceil(source * share) - 1
    place = ((np.arange(target) + 0.5) * (source * share / target) - 0.5).clip(0, last)
    lower = np.floor(place).astype(np.int32)
    weight = (place - lower).astype(np.float32)
    table = np.stack((lower, np.minimum(lower + 1, last).astype(np.int32), weight.view(np.int32)))
    table.flags.writeable = False
    return table


def compute_yuv_gains(matrix: YuvMatrix, is_full_range: bool) -> tuple[int, int, int, int, int, int]:
    """Compute the integers of a YUV conversion, in units of 2^-16 except the first.

    They are the offset of Y and the gains of Y, of V in red, of U and V in green, and of U in blue.
    """
    red, blue = LUMA_SHARES[matrix]
    green = 1 - red - blue
    luma, chroma = (1.0, 1.0) if is_full_range else (255 / 219, 255 / 224)
    to_red, to_blue = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    gains = (luma, to_red, -to_blue * blue / green, -to_red * red / green, to_blue)
    y, v_to_r, u_to_g, v_to_g, u_to_b = (round(gain * (1 << COLOUR_BITS)) for gain in gains)
    return 0 if is_full_range else 16, y, v_to_r, u_to_g, v_to_g, u_to_b


def _name_float(dtype: DTypeLike) -> str:
    name = np.dtype(dtype).name
    if name not in ("float32", "float16"):
        raise ValueError(f"the kernels support float32 and float16, got {name}")
    return name


def _make_grid(size: tuple[int, int], batch: int) -> tuple[int, int, int]:
    down, along = (math.ceil(length / tile) for length, tile in zip(size, TILE, strict=True))
    if max(down, batch) > MAX_BLOCKS:
        raise ValueError(f"{batch} × {size[0]} × {size[1]} is too much for one launch: take it in parts")
    return along, down, batch


def _block() -> tuple[int, int, int]:
    return TILE[1], TILE[0], 1


def plan_preprocess(
    pictures: RgbPictures | Nv12Pictures,
    target: int,
    *,
    dtype: DTypeLike,
    bucket: tuple[int, int],
    fitted: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    row_filter: int,
    column_filter: int,
) -> Launch:
    """Plan the launch that turns pictures into the encoder's input.

    Args:
        pictures: The pictures on the device.
        target: Device address of the result (batch, 3, *bucket).
        dtype: Type of the result: float32 or float16.
        bucket: Size (height, width) of the result.
        fitted: Size (height, width) that the pictures are resized to. The rest of the bucket, below and to the right,
            becomes 0.
        mean: Mean of each channel, in levels 0 … 255.
        std: Standard deviation of each channel, in levels.
        row_filter: Device address of the :func:`resize_filter` from the pictures' height to the fitted height.
        column_filter: Device address of the :func:`resize_filter` from the pictures' width to the fitted width.

    Returns:
        The launch.

    Raises:
        ValueError: A size is not positive, or ``fitted`` is larger than ``bucket``.
    """
    _check_positive(fitted=min(fitted))
    if fitted[0] > bucket[0] or fitted[1] > bucket[1]:
        raise ValueError(f"a picture of {fitted} does not fit into a bucket of {bucket}")
    # Compute these exactly as pipeline/preprocess.py does, so that the results are equal.
    scale = 1 / np.asarray(std, np.float32)
    shift = np.asarray(mean, np.float32) * scale
    given: tuple[KernelArgument, ...]
    if isinstance(pictures, RgbPictures):
        kind = "rgb"
        given = (pictures.pointer, np.int64(pictures.pitch_bytes), np.int64(pictures.picture_stride_bytes))
    else:
        kind = "nv12"
        gains = compute_yuv_gains(pictures.matrix, pictures.is_full_range)
        given = (
            pictures.luma,
            pictures.chroma,
            np.int64(pictures.luma_pitch_bytes),
            np.int64(pictures.chroma_pitch_bytes),
            np.int64(pictures.luma_stride_bytes),
            np.int64(pictures.chroma_stride_bytes),
            *map(np.int32, gains),
        )
    sizes = (np.int32(bucket[0]), np.int32(bucket[1]))
    filters = (row_filter, np.int32(fitted[0]), column_filter, np.int32(fitted[1]))
    order = np.int32(is_rows_first(pictures.size, fitted))
    kernel = f"teso_preprocess_{kind}_{_name_float(dtype)}"
    return Launch(
        kernel, _make_grid(bucket, pictures.batch), _block(), (*given, target, *sizes, *filters, order, *scale, *shift)
    )


def plan_postprocess(scores: Scores, labels: Labels, *, threshold: float, row_taps: int, column_taps: int) -> Launch:
    """Plan the launch that turns class scores into labels.

    Args:
        scores: Class scores (B, C, h, w) on the device.
        labels: The labels (B, height, width) that are written.
        threshold: The lowest probability (0 … 1) that gives a label.
        row_taps: Device address of the :func:`mask_taps` of the height.
        column_taps: Device address of the :func:`mask_taps` of the width.

    Returns:
        The launch.
    """
    batch, classes, height, width = scores.shape
    arguments: tuple[Any, ...] = (
        scores.pointer,
        *map(np.int32, (classes, height, width)),
        labels.pointer,
        np.int64(labels.pitch_bytes),
        np.int64(labels.picture_stride_bytes),
        row_taps,
        np.int32(labels.size[0]),
        column_taps,
        np.int32(labels.size[1]),
        np.float32(threshold),
    )
    return Launch(f"teso_postprocess_{_name_float(scores.dtype)}", _make_grid(labels.size, batch), _block(), arguments)
