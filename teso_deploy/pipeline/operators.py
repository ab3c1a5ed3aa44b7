"""The steps before and after the graphs on the host: pictures to encoder input, and class scores to labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.engine import Tensor
from teso_deploy.bundle import BundleManifest
from teso_deploy.labels import labels_of
from teso_deploy.pipeline.preprocess import normalise_picture, resize_picture
from teso_deploy.types import ImageSize


class HostOperators:
    """The :class:`~teso_deploy.backends.contracts.Operators` of the host."""

    compares_frames = False

    def __init__(self, manifest: BundleManifest) -> None:
        self._preprocessing = manifest.preprocessing
        self._threshold = manifest.postprocessing.threshold

    def image(self, frame: NDArray[np.uint8], fitted: ImageSize, bucket: ImageSize) -> NDArray[np.float32]:
        # A frame that already has the fitted size is not resized.
        how = self._preprocessing
        return normalise_picture(resize_picture(frame, fitted), mean=how.mean, std=how.std, bucket=bucket)

    def labels(self, masks: Tensor, size: ImageSize, shares: tuple[float, float]) -> NDArray[np.uint8]:
        scores: NDArray[Any] = masks.numpy()[0]
        return labels_of(scores, size, threshold=self._threshold, shares=shares)
