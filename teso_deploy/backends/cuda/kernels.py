"""Our two operators on a GPU, one launch each: pictures to the encoder's input, class scores to labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda.compiling import compile_kernels, hash_sources, list_kernel_sources
from teso_deploy.backends.cuda.device import Device, Memory, Module, Stream
from teso_deploy.backends.cuda.plans import (
    Labels,
    Launch,
    Nv12Pictures,
    RgbPictures,
    Scores,
    mask_taps,
    plan_postprocess,
    plan_preprocess,
    resize_filter,
)
from teso_deploy.errors import DeviceError, EngineError, InputNotFoundError
from teso_deploy.resources import find_shipped_path

#: The environment variable that names another fatbin.
FATBIN_VARIABLE = "TESO_KERNELS_FATBIN"
HOW_TO_BUILD = "cmake -B build && cmake --build build"


def _read_fatbin(path: Path) -> bytes:
    """Read a fatbin.

    A fatbin that was built from other sources is refused, because its kernels may take other arguments.
    """
    try:
        code = path.read_bytes()
        built_from = path.with_suffix(".sha256").read_text(encoding="ascii").strip()
    except OSError as error:
        raise InputNotFoundError(
            f"{error.filename} can't be read ({error.strerror}): build it with {HOW_TO_BUILD}"
        ) from error
    if built_from != hash_sources(list_kernel_sources()):
        raise EngineError(f"{path} was built from other sources than these: build it again with {HOW_TO_BUILD}")
    return code


def load_kernels(device: Device, fatbin: Path | None = None, cache: Path | None = None) -> Module:
    """Load our kernels on a GPU.

    Args:
        device: The GPU.
        fatbin: A file that must exist and have code for this GPU. Default: the one that ``TESO_KERNELS_FATBIN`` names;
            without that the packaged ``engines/kernels/kernels.fatbin``; if that does not exist or has no code for
            this GPU, NVRTC compiles the sources.
        cache: Folder for kernels that NVRTC compiles. Default: the user's cache.

    Returns:
        The kernels.

    Raises:
        InputNotFoundError: The named file can't be read.
        EngineError: It was built from other sources.
        DeviceError: It has no code for this GPU, or the sources can't be compiled.
        MissingExtraError: NVRTC is needed and not installed.
    """
    named = fatbin or os.environ.get(FATBIN_VARIABLE)
    if named:
        return device.module(_read_fatbin(Path(named)))
    packaged = find_shipped_path("engines/kernels/kernels.fatbin")
    if packaged.is_file():
        code = _read_fatbin(packaged)
        try:
            return device.module(code)
        except DeviceError:  # the file has no code for this architecture
            pass
    return device.module(compile_kernels(device.compute_capability, cache))


class _Tables:
    """Small tables on the device. A table depends only on sizes and shares, and is kept until :meth:`close`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kept: dict[tuple[float, ...], Memory] = {}

    def pointer(self, key: tuple[float, ...], table: NDArray[np.int32], stream: Stream) -> int:
        """Return the device address of a table.

        A new table is copied to the device, and the host waits for the copy, because other streams may use the table
        next.

        Args:
            key: The sizes and shares that the table was computed for.
            table: The table.
            stream: The stream that copies a new table.

        Returns:
            The address.
        """
        memory = self._kept.get(key)
        if memory is None:
            memory = self._device.allocate(table.nbytes)
            self._device.copy_in(memory.pointer, table, stream)
            stream.synchronize()
            self._kept[key] = memory
        return memory.pointer

    def close(self) -> None:
        for memory in self._kept.values():
            memory.close()
        self._kept.clear()


class _Operator:
    """A kernel with its tables.

    The first call for a size waits for its tables, so make that call before capturing a graph.
    """

    def __init__(self, device: Device, module: Module) -> None:
        self._module = module
        self._tables = _Tables(device)

    def close(self) -> None:
        """Free the tables. No queued work may still need them."""
        self._tables.close()

    def _launch(self, launch: Launch, stream: Stream) -> None:
        self._module.launch(
            launch.kernel, grid=launch.grid, block=launch.block, arguments=launch.arguments, stream=stream
        )


class Preprocess(_Operator):
    """Turn pictures into the encoder's input, bit for bit as :mod:`teso_deploy.pipeline.preprocess` does on the CPU.

    Args:
        device: The GPU.
        module: Our kernels.
        mean: Mean of each channel, in levels 0 … 255.
        std: Standard deviation of each channel, in levels.
        dtype: float32 (default) or float16.
    """

    def __init__(
        self,
        device: Device,
        module: Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(device, module)
        self._mean, self._std, self._dtype = tuple(mean), tuple(std), np.dtype(dtype)

    def __call__(
        self,
        pictures: RgbPictures | Nv12Pictures,
        target: int,
        *,
        bucket: tuple[int, int],
        stream: Stream,
        fitted: tuple[int, int] | None = None,
    ) -> None:
        """Queue the operator.

        Args:
            pictures: The pictures on the device.
            target: Device address of the result (batch, 3, *bucket).
            bucket: Size (height, width) of the result.
            stream: The stream that runs it.
            fitted: Size that pictures are resized to; the rest of the bucket is 0. Default: the bucket.
        """
        fitted = fitted or bucket
        rows, columns = (
            self._tables.pointer((source, length), resize_filter(source, length), stream)
            for source, length in zip(pictures.size, fitted, strict=True)
        )
        self._launch(
            plan_preprocess(
                pictures,
                target,
                dtype=self._dtype,
                bucket=bucket,
                fitted=fitted,
                mean=self._mean,
                std=self._std,
                row_filter=rows,
                column_filter=columns,
            ),
            stream,
        )


class Postprocess(_Operator):
    """Turn class scores into labels as ``labels_of`` does on the CPU.

    ``threshold`` is the lowest probability that gives a label.
    """

    def __init__(self, device: Device, module: Module, threshold: float) -> None:
        super().__init__(device, module)
        self._threshold = threshold

    def __call__(
        self, scores: Scores, labels: Labels, stream: Stream, *, shares: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        """Queue the operator.

        Args:
            scores: Class scores (B, C, h, w) on the device.
            labels: The labels (B, height, width) that are written.
            stream: The stream that runs it.
            shares: Shares of the scores' height and width, from the top left, that show the picture. Default: all.
        """
        rows, columns = (
            self._tables.pointer((cells, length, share), mask_taps(cells, length, share), stream)
            for cells, length, share in zip(scores.shape[2:], labels.size, shares, strict=True)
        )
        self._launch(
            plan_postprocess(scores, labels, threshold=self._threshold, row_taps=rows, column_taps=columns), stream
        )
