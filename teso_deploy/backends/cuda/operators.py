"""The steps before and after the graphs on a GPU. Frames are uploaded, and labels downloaded, as bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.contracts import OperatorsFactory
from teso_deploy.backends.cuda.device import Device, Module
from teso_deploy.backends.cuda.kernels import Postprocess, Preprocess, load_kernels
from teso_deploy.backends.cuda.plans import Labels, RgbPictures, Scores
from teso_deploy.backends.cuda.tensors import DeviceTensor, HostInput
from teso_deploy.backends.engine import Tensor
from teso_deploy.bundle import BundleManifest
from teso_deploy.types import ImageSize


class DeviceOperators:
    """The :class:`~teso_deploy.backends.contracts.Operators` of one stream on a GPU.

    A 1080p frame is uploaded as 6 MB; its image at 384 × 384 would only be 1.8 MB. But resizing on the host takes
    longer than the larger upload.

    ``image`` returns the same tensor for equal sizes, and ``labels`` a new array on the host.

    Args:
        device: The GPU.
        module: Our kernels (:func:`load_kernels`).
        manifest: The bundle's manifest.
    """

    compares_frames = True

    def __init__(self, device: Device, module: Module, manifest: BundleManifest) -> None:
        how = manifest.preprocessing
        self._device = device
        self._stream = device.stream()
        self._preprocess = Preprocess(device, module, mean=how.mean, std=how.std)
        self._postprocess = Postprocess(device, module, manifest.postprocessing.threshold)
        self._frame: HostInput | None = None
        self._image: DeviceTensor | None = None
        self._labels: DeviceTensor | None = None

    def image(self, frame: NDArray[np.uint8], fitted: ImageSize, bucket: ImageSize) -> DeviceTensor:
        if self._frame is None or self._frame.tensor.shape != frame.shape:
            self._frame = HostInput(self._device, frame.shape, np.uint8, stream=self._stream)
        if self._image is None or self._image.shape[2:] != bucket:
            self._image = DeviceTensor(self._device, (1, 3, *bucket), np.float32)
        uploaded = self._frame.fill(frame)
        self._image.wait_unread(self._stream)
        pictures = RgbPictures(uploaded.pointer, (frame.shape[0], frame.shape[1]))
        self._preprocess(pictures, self._image.pointer, bucket=bucket, stream=self._stream, fitted=fitted)
        self._image.ready = self._stream.record()
        return self._image

    def labels(self, masks: Tensor, size: ImageSize, shares: tuple[float, float]) -> NDArray[np.uint8]:
        if self._labels is None or self._labels.shape[1:] != size:
            self._labels = DeviceTensor(self._device, (1, *size), np.uint8)
        shape: tuple[int, ...]
        if isinstance(masks, DeviceTensor):
            masks.wait_ready(self._stream)
            pointer, shape, dtype = masks.pointer, masks.shape, masks.dtype
        else:  # an OrtValue: complete when its run returns, and float32 in every precision
            pointer, shape, dtype = masks.data_ptr(), tuple(masks.shape()), np.dtype(np.float32)  # type: ignore[attr-defined]
        scores = Scores(pointer, (shape[0], shape[1], shape[2], shape[3]), dtype)
        self._postprocess(scores, Labels(self._labels.pointer, size), self._stream, shares=shares)
        self._labels.ready = done = self._stream.record()
        if isinstance(masks, DeviceTensor):
            masks.read_until(id(self), done)
        found: NDArray[np.uint8] = self._labels.numpy()[0].copy()
        return found


def load_device_operators(device: Device) -> OperatorsFactory:
    """Load our kernels onto a GPU, and return a factory that makes separate operators for each stream.

    Raises the errors of :func:`load_kernels`.
    """
    module = load_kernels(device)
    return lambda manifest: DeviceOperators(device, module, manifest)
