"""What stands around the graphs: pictures to the encoder's input, class scores to labels; on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.engine import Tensor
from teso_deploy.bundle import BundleManifest
from teso_deploy.pipeline.postprocess import labels_of
from teso_deploy.pipeline.preprocess import normalised, resized
from teso_deploy.types import ImageSize


class Operators(Protocol):
    """One stream's: buffers that a GPU needs for them are kept from frame to frame."""

    @property
    def compares_frames(self) -> bool:
        """Whether a frame is known again by itself, not by what it is resized to, which is made elsewhere."""

    def image(self, frame: NDArray[np.uint8], fitted: ImageSize, bucket: ImageSize) -> NDArray[np.float32] | Tensor:
        """A frame (H, W, 3) resized to ``fitted``, normalised and padded to ``bucket``: (1, 3, *bucket)."""

    def labels(self, masks: Tensor, size: ImageSize, shares: tuple[float, float]) -> NDArray[np.uint8]:
        """Class scores (1, C, h, w) → labels (height, width); ``shares`` as for :func:`labels_of`."""


#: A new set for a new stream.
OperatorsFactory = Callable[[BundleManifest], Operators]


class HostOperators:
    """See :class:`Operators`."""

    compares_frames = False

    def __init__(self, manifest: BundleManifest) -> None:
        self._preprocessing = manifest.preprocessing
        self._threshold = manifest.postprocessing.threshold

    def image(self, frame: NDArray[np.uint8], fitted: ImageSize, bucket: ImageSize) -> NDArray[np.float32]:
        """See :meth:`Operators.image`; a frame that has that size already is not resized again."""
        how = self._preprocessing
        return normalised(resized(frame, fitted), how.mean, how.std, bucket)

    def labels(self, masks: Tensor, size: ImageSize, shares: tuple[float, float]) -> NDArray[np.uint8]:
        """See :meth:`Operators.labels`."""
        scores: NDArray[Any] = masks.numpy()[0]
        return labels_of(scores, size, self._threshold, shares)
