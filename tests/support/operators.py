"""Our CUDA operators, called with NumPy arrays, on any device: a GPU, or the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda.device import Device, Memory, Module, Stream
from teso_deploy.backends.cuda.kernels import Postprocess, Preprocess
from teso_deploy.backends.cuda.plans import Labels, Nv12Pictures, RgbPictures, Scores, YuvMatrix
from teso_deploy.types import ImageSize

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: Marks the bytes that must not be written.
UNTOUCHED = 0xA7


def spaced(array: NDArray[np.uint8], pitch_bytes: int, stride_bytes: int, noise: int = 0) -> NDArray[np.uint8]:
    """Copy planes (B, H, row bytes) into one row of bytes with gaps.

    The last row of the last plane has no gap after it.
    """
    batch, height, row_bytes = array.shape
    flat = np.full((batch - 1) * stride_bytes + (height - 1) * pitch_bytes + row_bytes, noise, np.uint8)
    planes = np.lib.stride_tricks.as_strided(flat, array.shape, (stride_bytes, pitch_bytes, 1))
    planes[...] = array
    return flat


@dataclass
class Operators:
    """Both operators on a device.

    ``gap_bytes``: the gap between rows; the gap between pictures is three times as wide.
    """

    device: Device
    module: Module
    stream: Stream

    def _memory(self, array: NDArray[Any]) -> Memory:
        memory = self.device.allocate(array.nbytes)
        self.device.copy_in(memory.pointer, array, self.stream)
        return memory

    def _planes(self, array: NDArray[np.uint8], gap_bytes: int) -> tuple[Memory, int, int]:
        pitch = array.shape[2] + gap_bytes
        stride = array.shape[1] * pitch + 3 * gap_bytes
        return self._memory(spaced(array, pitch, stride, noise=255)), pitch, stride

    def rgb(
        self,
        pictures: NDArray[np.uint8],
        bucket: ImageSize,
        fitted: ImageSize | None = None,
        dtype: DTypeLike = np.float32,
        gap_bytes: int = 0,
    ) -> NDArray[Any]:
        """Convert (B, H, W, 3) to (B, 3, *bucket)."""
        batch, height, width, _ = pictures.shape
        memory, pitch, stride = self._planes(pictures.reshape(batch, height, 3 * width), gap_bytes)
        given = RgbPictures(memory.pointer, (height, width), pitch, batch, stride)
        return self._preprocess(given, bucket, fitted, dtype, [memory])

    def nv12(
        self,
        luma: NDArray[np.uint8],
        chroma: NDArray[np.uint8],
        bucket: ImageSize,
        matrix: YuvMatrix = "bt601",
        is_full_range: bool = False,
        dtype: DTypeLike = np.float32,
        gap_bytes: int = 0,
    ) -> NDArray[Any]:
        """Convert (B, H, W), (B, ⌈H/2⌉, ⌈W/2⌉, 2) to (B, 3, *bucket)."""
        batch, height, width = luma.shape
        y_memory, y_pitch, y_stride = self._planes(luma, gap_bytes)
        uv_memory, uv_pitch, uv_stride = self._planes(chroma.reshape(batch, math.ceil(height / 2), -1), gap_bytes)
        given = Nv12Pictures(
            y_memory.pointer, uv_memory.pointer, (height, width), y_pitch, uv_pitch, batch, y_stride, uv_stride,
            matrix, is_full_range,
        )  # fmt: skip
        return self._preprocess(given, bucket, None, dtype, [y_memory, uv_memory])

    def _preprocess(
        self,
        pictures: RgbPictures | Nv12Pictures,
        bucket: ImageSize,
        fitted: ImageSize | None,
        dtype: DTypeLike,
        memories: list[Memory],
    ) -> NDArray[Any]:
        result = np.empty((pictures.batch, 3, *bucket), dtype)
        target = self.device.allocate(result.nbytes)
        operator = Preprocess(self.device, self.module, mean=MEAN, std=STD, dtype=dtype)
        operator(pictures, target.pointer, bucket=bucket, stream=self.stream, fitted=fitted)
        self.device.copy_out(result, target.pointer, self.stream)
        self.stream.synchronize()
        operator.close()
        for memory in (*memories, target):
            memory.close()
        return result

    def labels(
        self,
        scores: NDArray[Any],
        size: ImageSize,
        threshold: float = 0.5,
        shares: tuple[float, float] = (1.0, 1.0),
        gap_bytes: int = 0,
    ) -> NDArray[np.uint8]:
        """Convert (B, C, h, w) to (B, *size). The bytes between the rows must not change."""
        batch = scores.shape[0]
        pitch = size[1] + gap_bytes
        stride = size[0] * pitch + 3 * gap_bytes
        canvas = spaced(np.full((batch, *size), UNTOUCHED, np.uint8), pitch, stride, noise=UNTOUCHED)
        source, target = self._memory(np.ascontiguousarray(scores)), self._memory(canvas)
        operator = Postprocess(self.device, self.module, threshold)
        shape = (scores.shape[0], scores.shape[1], scores.shape[2], scores.shape[3])
        operator(
            Scores(source.pointer, shape, scores.dtype),
            Labels(target.pointer, size, pitch, stride),
            self.stream,
            shares=shares,
        )
        self.device.copy_out(canvas, target.pointer, self.stream)
        self.stream.synchronize()
        operator.close()
        source.close()
        target.close()
        planes = np.lib.stride_tricks.as_strided(canvas, (batch, *size), (stride, pitch, 1))
        result = planes.copy()
        planes[...] = UNTOUCHED
        assert (canvas == UNTOUCHED).all(), "something was written between the rows or the pictures"
        return result
