"""What a stream keeps of each graph, and whether a picture needs to be encoded again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.contracts import Operators
from teso_deploy.backends.engine import Engine, Tensor
from teso_deploy.types import Frame

#: Side in pixels of the squares in which two pictures are compared.
BLOCK_PIXELS = 32
#: Why the encoder did not run: the picture was equal to the encoded one, or within the threshold.
Likeness = Literal["same", "still"]
Feeds = Mapping[str, NDArray[Any] | Tensor]
#: What outputs were made from: arrays, and in place of another graph's outputs its ``version``.
Of = tuple[Any, ...]


class KeptGraph:
    """One graph in one stream: its outputs, and what they are of.

    ``version`` counts the runs, so that a graph behind this one knows when to run again; ``number`` tells
    two of one graph apart.
    """

    def __init__(self, engine: Engine, number: int = 0) -> None:
        self._slot = engine.slot()
        self.number = number
        self.outputs: Mapping[str, Tensor] = {}
        self.of: Of | None = None
        self.version = 0

    def is_of(self, of: Of) -> bool:
        """True where a run on this would give what is here."""
        return self.of is not None and all(np.array_equal(old, new) for old, new in zip(self.of, of, strict=True))

    def run(self, of: Of, feeds: Feeds) -> None:
        """Run on ``feeds``. The arrays in ``of`` are kept as they are: nobody else may write to them."""
        self.of = None  # a run that fails may leave some outputs new and some old
        self.outputs = self._slot.run(feeds)
        self.of = of
        self.version += 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture that the encoder has seen: what it found lies in ``graph``.

    ``fitted`` and ``bucket`` (height, width). ``started`` and ``encoded``: monotonic seconds.
    """

    frame: Frame
    graph: KeptGraph
    fitted: tuple[int, int]
    bucket: tuple[int, int]
    started: float
    encoded: float


class Kept:
    """What one stream keeps: its graphs by their names in the manifest, and how often each ran.

    ``encoders`` are two of a graph where pictures are encoded ahead, in turn; ``turn`` is the one that ran last.
    ``encoder_skips``: how often the encoder did not have to, by :data:`Likeness`. ``operators``: made when a
    frame first needs them.

    ``encoding`` guards what encoders write, ``decoding`` what the other graphs write. A thread that needs both takes
    ``encoding`` first. One thread may encode while another decodes.
    """

    def __init__(self) -> None:
        self.encoding, self.decoding = threading.Lock(), threading.Lock()
        self.graphs: dict[str, KeptGraph] = {}
        self.encoders: dict[tuple[str, int], KeptGraph] = {}
        self.turn = 0
        self.runs: Counter[str] = Counter()
        self.encoder_skips: Counter[str] = Counter()
        self.operators: Operators | None = None


def largest_block_change(picture: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """How much two pictures (H, W, 3) differ where they differ most, in grey levels 0 … 255.

    The mean absolute difference of each square of 32 x 32 pixels (smaller at the right and lower
    edge), and of these the largest: over the whole picture, a small thing that moves would vanish
    in the mean.
    """
    change = np.maximum(picture, other) - np.minimum(picture, other)
    rows, columns = (np.arange(0, length, BLOCK_PIXELS) for length in picture.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(change.sum(axis=2, dtype=np.uint32), rows, axis=0), columns, axis=1)
    heights, widths = (
        np.diff(starts, append=length) for starts, length in zip((rows, columns), picture.shape[:2], strict=True)
    )
    return float((sums / (3 * heights[:, None] * widths)).max())


def likeness(picture: NDArray[np.uint8], encoded: NDArray[np.uint8] | None, still_threshold: float) -> Likeness | None:
    """Whether a picture may go by the encoder's outputs of another; None where it has to be encoded.

    It is held against the picture that was encoded last, not the frame before it: changes that are
    each below the threshold add up, and a slow pan does not drift away.
    """
    if encoded is None or encoded.shape != picture.shape:
        return None
    if np.array_equal(picture, encoded):
        return "same"
    is_still = still_threshold > 0 and largest_block_change(picture, encoded) <= still_threshold
    return "still" if is_still else None
