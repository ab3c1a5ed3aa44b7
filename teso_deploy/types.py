"""Data types that are passed between the stages: frames, audio windows, cues, segmentations.

All are frozen and slotted, validated on construction, and print shapes instead of data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from teso_deploy.checks import check_image, check_samples, describe
from teso_deploy.labels import resize_highest, resize_scores

SAMPLE_RATE_HZ = 16_000
#: One VGGish patch: 96 frames of 400 samples, hop 160 (0.975 s).
WINDOW_SAMPLES = 15_600

#: Height and width of a picture, in pixels.
ImageSize = tuple[int, int]
#: The numeric precision in which a form of a graph is computed.
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: Where the sound of a clip's frame k is taken in the public data sets: ``per_second``: from k seconds on;
#: ``contiguous``: from k · 0.96 s on, one VGGish example after the other, as AVSBench prepared its sound.
Framing = Literal["per_second", "contiguous"]
#: Where cues came from: a source of :mod:`teso_deploy.cues.sources.registry`, "fallback" or "none".
CueSourceName = str


def get_hop_seconds(framing: Framing) -> float:
    """Return the time between the starts of two neighbouring windows of a clip.

    >>> get_hop_seconds("per_second"), get_hop_seconds("contiguous")
    (1.0, 0.96)
    """
    return 0.96 if framing == "contiguous" else 1.0


class _Printed:
    __slots__ = ()

    def __repr__(self) -> str:
        inside = ", ".join(f"{f.name}={describe(getattr(self, f.name))}" for f in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({inside})"


@dataclass(frozen=True, slots=True, repr=False)
class Frame(_Printed):
    """One picture of a video.

    Attributes:
        image: (H, W, 3) uint8 RGB, as players show it. OpenCV's pictures are BGR, which can't be detected: pass
            ``image[:, :, ::-1]``.
        pts_seconds: Time from the file's origin, the earliest start of its streams.
        index: Number of the decoded frame, from 0.
        segment: Number of the stretch between discontinuities of the clock, from 0.
        is_corrupt: Whether the decoder reported damage in it.
    """

    image: NDArray[np.uint8]
    pts_seconds: float
    index: int = 0
    segment: int = 0
    is_corrupt: bool = False

    def __post_init__(self) -> None:
        check_image(self.image)


@dataclass(frozen=True, slots=True, repr=False)
class AudioWindow(_Printed):
    """A window of sound. Silence is zeros.

    NaN, and samples beyond 1.5, are refused: they are most likely integers that were not divided. Readers of files
    and streams clip louder sound themselves.

    Attributes:
        samples: (N,) float32 in [-1, 1], 16 kHz mono.
        start_seconds: Time of the first sample on the frames' clock.
        gap_seconds: How much of the window was not recorded and is zeros.
        is_silent: Whether the window has no sound at all.
    """

    samples: NDArray[np.float32]
    start_seconds: float = 0.0
    gap_seconds: float = 0.0
    is_silent: bool = False

    def __post_init__(self) -> None:
        check_samples(self.samples)


@dataclass(frozen=True, slots=True, repr=False)
class Cues(_Printed):
    """Text cues.

    Attributes:
        names: In the order of the valid slots. Valid slots after the last name hold padding that the network
            attends to.
        embeddings: (N_T, d_T) float32, with zero rows where unused.
        valid: (N_T,) bool.
        source: The cue source that gave them.
        age_seconds: Time since they were given.
    """

    names: tuple[str, ...]
    embeddings: NDArray[np.float32]
    valid: NDArray[np.bool_]
    source: CueSourceName = "manual"
    age_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or self.embeddings.dtype != np.float32:
            raise ValueError(f"embeddings must be (N_T, d_T) float32, got {describe(self.embeddings)}")
        if self.valid.shape != self.embeddings.shape[:1] or self.valid.dtype != np.bool_:
            raise ValueError(f"valid must be ({len(self.embeddings)},) bool, got {describe(self.valid)}")
        if len(self.names) > int(self.valid.sum()):
            raise ValueError(f"{len(self.names)} names for {int(self.valid.sum())} valid cues")


@dataclass(frozen=True, slots=True, repr=False)
class Segmentation(_Printed):
    """The masks of one frame: which class sounds where.

    Attributes:
        labels: (H, W) uint8 at the frame's size: 0 is background, k the k-th class of the bundle (1-based).
        class_scores: (C,) float32, the highest mask probability of each class. It may exceed 1 for heads that add
            up their queries.
        cue_gate: (N_T,) float32, ξ of the paper: a cue is masked if its value is ≤ 0. None for a method without text.
        cues: The cues that were offered. None for a method without text.
        stamps: Stage → monotonic seconds at which it ended, in the order of the pipeline.
        scores: (C, h, w) float32, the mask probabilities of the classes at stride 4, without padding. They may exceed 1
            as ``class_scores`` do. None for a segmentation that was made without them.
        score_extent: How many rows and columns of ``scores`` show the frame. The last ones may do so in part. None
            means all.
    """

    labels: NDArray[np.uint8]
    class_scores: NDArray[np.float32]
    cue_gate: NDArray[np.float32] | None = None
    cues: Cues | None = None
    pts_seconds: float = 0.0
    index: int = 0
    audio_start_seconds: float = 0.0
    audio_is_silent: bool = False
    stamps: Mapping[str, float] = field(default_factory=dict)
    scores: NDArray[np.float32] | None = None
    score_extent: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype != np.uint8:
            raise ValueError(f"labels must be (H, W) uint8, got {describe(self.labels)}")

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Probability (C, H, W) float32 of each class at each pixel of the frame, in [0, 1].

        It is computed again at each access. Raises what :meth:`resize_probabilities` raises.
        """
        return self.resize_probabilities((self.labels.shape[0], self.labels.shape[1]))

    def resize_probabilities(self, size: ImageSize) -> NDArray[np.float32]:
        """Return the probabilities of the classes at another size, interpolated once, from stride 4.

        Args:
            size: Height and width of the result.

        Returns:
            (C, height, width) float32 in [0, 1]. At the frame's size and the bundle's threshold they have the labels
            of ``labels``, unless several classes exceed 1 before they are clipped.

        Raises:
            ValueError: The segmentation was made without scores.
        """
        large = resize_scores(self._get_scores(), size, extent=self.score_extent)
        return large.clip(0, 1, out=large)

    @property
    def sounding_probability(self) -> NDArray[np.float32]:
        """Probability (H, W) float32 that a pixel of the frame sounds: the highest of its classes, in [0, 1].

        It takes less memory than ``probabilities``. It is computed again at each access. Raises what
        :meth:`resize_probabilities` raises.
        """
        return self.resize_sounding_probability((self.labels.shape[0], self.labels.shape[1]))

    def resize_sounding_probability(self, size: ImageSize) -> NDArray[np.float32]:
        """Return ``sounding_probability`` at another height and width, interpolated once, from stride 4."""
        highest = resize_highest(self._get_scores(), size, extent=self.score_extent)
        return highest.clip(0, 1, out=highest)

    def _get_scores(self) -> NDArray[np.float32]:
        if self.scores is None:
            raise ValueError("this segmentation has no scores: make it with a pipeline, or give scores=")
        return self.scores

    @property
    def positive_pixel_rate(self) -> float:
        """Share of the frame's pixels that have a label, 0 … 1."""
        return float(np.count_nonzero(self.labels)) / self.labels.size

    @property
    def is_blank(self) -> bool:
        """Whether less than 0.2 % of the pixels are labelled."""
        return self.positive_pixel_rate < BLANK_PIXEL_RATE

    def shown(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the bundle's classes whose masks are not blank."""
        areas = np.bincount(self.labels.ravel(), minlength=1 + len(classes))[1:]
        least = BLANK_PIXEL_RATE * self.labels.size
        return tuple(name for name, area in zip(classes, areas, strict=True) if area >= least)


#: A frame with a smaller share of labelled pixels counts as blank.
BLANK_PIXEL_RATE = 0.002
