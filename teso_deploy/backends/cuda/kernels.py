"""Our two operators on a GPU: pictures to the encoder's input, class scores to labels. One launch each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teso_deploy.backends.cuda.compiling import compiled, kernel_sources, sources_sha256
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
from teso_deploy.resources import shipped_path

#: Names a fatbin of one's own.
FATBIN_VARIABLE = "TESO_KERNELS_FATBIN"
HOW_TO_BUILD = "cmake -B build && cmake --build build"


def _read_fatbin(path: Path) -> bytes:
    """A fatbin, if it was built from the sources that are here: other kernels may take other arguments."""
    try:
        code = path.read_bytes()
        built_from = path.with_suffix(".sha256").read_text(encoding="ascii").strip()
    except OSError as error:
        raise InputNotFoundError(
            f"{error.filename} can't be read ({error.strerror}): build it with {HOW_TO_BUILD}"
        ) from error
    if built_from != sources_sha256(kernel_sources()):
        raise EngineError(f"{path} was built from other sources than these: build it again with {HOW_TO_BUILD}")
    return code


def load_kernels(device: Device, fatbin: Path | None = None, cache: Path | None = None) -> Module:
    """Our kernels, ready to be launched on a GPU.

    ``fatbin``, else the file that ``TESO_KERNELS_FATBIN`` names, has to be there and to hold something for this GPU.
    Otherwise the packaged ``engines/kernels/kernels.fatbin`` is taken where there is one, and where there is none,
    or it has nothing for this GPU, NVRTC compiles the sources.

    Raises :class:`InputNotFoundError`, :class:`EngineError` (built from other sources), :class:`DeviceError`,
    :class:`MissingExtraError` (no NVRTC).
    """
    named = fatbin or os.environ.get(FATBIN_VARIABLE)
    if named:
        return device.module(_read_fatbin(Path(named)))
    packaged = shipped_path("engines/kernels/kernels.fatbin")
    if packaged.is_file():
        code = _read_fatbin(packaged)
        try:
            return device.module(code)
        except DeviceError:  # a GPU of an architecture that nobody built for
            pass
    return device.module(compiled(device.compute_capability, cache))


class _Tables:
    """Small tables on the device, by what they were made for. They stay until :meth:`close`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kept: dict[tuple[float, ...], Memory] = {}

    def pointer(self, key: tuple[float, ...], table: NDArray[np.int32], stream: Stream) -> int:
        """Its address; a new one is copied, and waited for, since other streams may use it next."""
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
    """A kernel with its tables. The first call for a size waits for its tables: make it before a graph is captured."""

    def __init__(self, device: Device, module: Module) -> None:
        self._module = module
        self._tables = _Tables(device)

    def close(self) -> None:
        """Give the tables back. Nothing that was queued may still need them."""
        self._tables.close()

    def _launch(self, launch: Launch, stream: Stream) -> None:
        self._module.launch(launch.kernel, launch.grid, launch.block, launch.arguments, stream)


class Preprocess(_Operator):
    """Pictures → the encoder's input: equal, bit for bit, to ``resized`` and ``normalised`` on the CPU.

    ``mean`` and ``std`` a channel, of levels 0 … 255; ``dtype`` float32 or float16.
    """

    def __init__(
        self,
        device: Device,
        module: Module,
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
        bucket: tuple[int, int],
        stream: Stream,
        fitted: tuple[int, int] | None = None,
    ) -> None:
        """Queue: ``pictures`` → (batch, 3, *bucket) at the device address ``target``.

        ``fitted`` (default: the bucket) is what pictures are resized to; the rest of the bucket becomes 0.
        """
        fitted = fitted or bucket
        rows, columns = (
            self._tables.pointer((source, length), resize_filter(source, length), stream)
            for source, length in zip(pictures.size, fitted, strict=True)
        )
        self._launch(
            plan_preprocess(pictures, target, self._dtype, bucket, fitted, self._mean, self._std, rows, columns), stream
        )


class Postprocess(_Operator):
    """Class scores → labels: equal to ``labels_of`` on the CPU. ``threshold``: of the probability, for any label."""

    def __init__(self, device: Device, module: Module, threshold: float) -> None:
        super().__init__(device, module)
        self._threshold = threshold

    def __call__(
        self, scores: Scores, labels: Labels, stream: Stream, shares: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        """Queue: scores (B, C, h, w) → labels (B, height, width).

        ``shares``: of the scores' height and width, from the top and the left, that show the picture.
        """
        rows, columns = (
            self._tables.pointer((cells, length, share), mask_taps(cells, length, share), stream)
            for cells, length, share in zip(scores.shape[2:], labels.size, shares, strict=True)
        )
        self._launch(plan_postprocess(scores, labels, self._threshold, rows, columns), stream)
