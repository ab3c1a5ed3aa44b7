"""The steps before and after the graphs on the host: pictures to encoder input, and class scores to labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.engine import Tensor
from teso_deploy.bundle import BundleManifest
from teso_deploy.labels import labels_of
from teso_deploy.pipeline.preprocess import normalised, resized
from teso_deploy.types import ImageSize


class HostOperators:
    """The :class:`~teso_deploy.backends.contracts.Operators` of the host."""

    compares_frames = False

    def __init__(self, manifest: BundleManifest) -> None:
        self._preprocessing = manifest.preprocessing
        self._threshold = manifest.postprocessing.threshold

    def image(self, frame: NDArray[np.uint8], fitted: ImageSize, bucket: ImageSize) -> NDArray[np.float32]:
        """Resize, normalise and pad a frame. A frame that already has the fitted size is not resized.

        Args:
            frame: RGB picture (H, W, 3).
            fitted: Size (height, width) that the frame is resized to.
            bucket: Size (height, width) that the result is padded to.

        Returns:
            The encoder's input (1, 3, height, width) float32.
        """
        how = self._preprocessing
        return normalised(resized(frame, fitted), mean=how.mean, std=how.std, bucket=bucket)

    def labels(self, masks: Tensor, size: ImageSize, shares: tuple[float, float]) -> NDArray[np.uint8]:
        """Turn class scores into labels.

        Args:
            masks: Class scores (1, C, h, w).
            size: Size (height, width) of the labels.
            shares: Shares (0 … 1) of the scores' height and width that show the picture; the rest is padding.

        Returns:
            Labels (height, width): 0 is background, k the k-th class.
        """
        scores: NDArray[Any] = masks.numpy()[0]
        return labels_of(scores, size, threshold=self._threshold, shares=shares)
