"""The interface of a backend: it receives a request and returns engines and operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.engine import EngineFactory, Tensor
from teso_deploy.bundle import Bundle, BundleManifest
from teso_deploy.types import ImageSize, Precision

#: Receives a sentence about the progress, or about something that differs from the request.
Note = Callable[[str], None]
#: (bundle, graph) → a check of a built engine, which returns its measurements or raises :class:`CheckFailedError`.
EngineCheckFactory = Callable[[Bundle, str], Callable[[Any], dict[str, Any]]]


class Operators(Protocol):
    """The steps before and after the graphs, for one stream: picture to encoder input, and class scores to labels.

    Each stream has its own operators, because a GPU keeps their buffers from frame to frame.
    """

    @property
    def compares_frames(self) -> bool:
        """Whether to compare frames, not their resized copies, to find out if a frame repeats the last one.

        True if the resized copy is made on a device: it never reaches the host, which compares.
        """

    def image(self, frame: NDArray[np.uint8], fitted: ImageSize, bucket: ImageSize) -> NDArray[np.float32] | Tensor:
        """Prepare a frame for the encoder.

        Args:
            frame: RGB picture (H, W, 3).
            fitted: Size (height, width) that the frame is resized to.
            bucket: Size (height, width) that the resized and normalised frame is padded to.

        Returns:
            The encoder's input (1, 3, height, width), of the bucket's size.
        """

    def labels(self, masks: Tensor, size: ImageSize, shares: tuple[float, float]) -> NDArray[np.uint8]:
        """Turn class scores into labels.

        Args:
            masks: Class scores (1, C, h, w).
            size: Size (height, width) of the labels.
            shares: Shares (0 … 1) of the scores' height and width that show the picture; the rest is padding.

        Returns:
            Labels (height, width): 0 is background, k the k-th class.
        """


#: Makes the operators of one stream.
OperatorsFactory = Callable[[BundleManifest], Operators]


def _ignore(note: str) -> None:
    """Take a note and do nothing with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRequest:
    """The arguments of a backend's factory.

    Attributes:
        name: The backend's name in the registry; one factory may serve several.
        bundle: The bundle whose graphs will be run.
        precision: Precision of the graphs. Default: fp32.
        threads: Threads of each graph on the CPU. Default: all cores.
        profile: Build profile, by name or TOML file, for backends that build engines. Default: any.
        rebuild_engines: Whether engines are built again although some exist. Default: no.
        may_build: Whether engines may be built at all. Default: yes.
        check_of: Makes the check that a new engine has to pass. Default: engines are not checked.
        on_progress: Called with the name of each step that takes time. Default: ignored.
        on_note: Called with anything that is slower or different than requested. Default: ignored.
    """

    name: str
    bundle: Bundle
    precision: Precision = "fp32"
    threads: int | None = None
    profile: str | None = None
    rebuild_engines: bool = False
    may_build: bool = True
    check_of: EngineCheckFactory | None = None
    on_progress: Note = _ignore
    on_note: Note = _ignore


@dataclass(frozen=True, slots=True)
class Backend:
    """A loaded backend, which runs a bundle's graphs.

    Attributes:
        engines: Loads the engine of a graph.
        operators: Makes the steps before and after the graphs. Default: those of the host.
    """

    engines: EngineFactory
    operators: OperatorsFactory | None = None


#: The form of the function that a registry entry names.
BackendFactory = Callable[[BackendRequest], Backend]
