"""The kept outputs of each stage in a stream, and the check whether a picture needs to be encoded again."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.contracts import Operators
from teso_deploy.backends.engine import Engine, Tensor
from teso_deploy.program import Program
from teso_deploy.types import Frame, ImageSize

#: Side in pixels of the squares in which two pictures are compared.
BLOCK_PIXELS = 32
#: Why the encoder did not run: the picture was equal to the encoded one, or within the threshold.
Likeness = Literal["same", "still"]
Feed = NDArray[Any] | Tensor


class KeptInput:
    """An external input in one stream: its tensors, and the arrays that they were made from.

    ``version`` changes with the content. No two versions in a stream are equal.
    """

    def __init__(self) -> None:
        self.outputs: Mapping[str, Feed] = {}
        self.content: tuple[NDArray[Any], ...] | None = None
        self.version = 0

    def holds(self, arrays: tuple[NDArray[Any], ...]) -> bool:
        """True if the content is equal to these arrays."""
        return self.content is not None and all(map(np.array_equal, self.content, arrays))

    def put(self, version: int, content: tuple[NDArray[Any], ...] | None, outputs: Mapping[str, Feed]) -> None:
        """Replace the content.

        Args:
            version: The new version.
            content: The arrays that the tensors were made from; None if the caller sets them later. They are kept
                without a copy, so the caller must not write to them.
            outputs: The tensors by name.
        """
        self.version, self.content, self.outputs = version, content, outputs


class History:
    """The values of an external input in one stream: of the current moment, and of ``past`` moments before it.

    A value begins a new moment if its time or its content differs from the last one's. So a second look at the same
    frame does not move the history, and continued silence does.
    """

    def __init__(self, past: int) -> None:
        self._length = past + 1
        self._values = deque[NDArray[Any]](maxlen=self._length)
        self._seconds: float | None = None

    @property
    def values(self) -> tuple[NDArray[Any], ...]:
        """The values, the newest last. At the start, the first value also stands for the moments before it."""
        values = tuple(self._values)
        return values[:1] * (self._length - len(values)) + values

    @property
    def newest(self) -> NDArray[Any]:
        """The value of the current moment."""
        return self._values[-1]

    def changes_by_repeating(self, seconds: float) -> bool:
        """True if repeating the newest value at this time changes :attr:`values`."""
        return seconds != self._seconds and any(value is not self.newest for value in self.values)

    def add(self, seconds: float, value: NDArray[Any]) -> None:
        """Begin a moment with a value. The value itself is kept, without a copy."""
        self._values.append(value)
        self._seconds = seconds

    def add_if_new(self, seconds: float, value: NDArray[Any]) -> None:
        """Begin a moment with a copy of a value, unless the current moment has this time and this value."""
        is_equal = bool(self._values) and np.array_equal(self.newest, value)
        if not is_equal or seconds != self._seconds:
            self.add(seconds, self.newest if is_equal else value.copy())


def stack_moments(values: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """Stack values (1, ...) on a new axis after the batch; a single value keeps its axes."""
    return values[0] if len(values) == 1 else np.stack(values, axis=1)


class KeptGraph:
    """The graph of a stage in one stream: its outputs, and the versions of the inputs that they were made from."""

    def __init__(self, engine: Engine) -> None:
        self._slot = engine.slot()
        self.is_asynchronous = engine.is_asynchronous
        self.outputs: Mapping[str, Tensor] = {}
        self.of: tuple[int, ...] | None = None
        self.version = 0

    def run(self, version: int, of: tuple[int, ...], feeds: Mapping[str, Feed]) -> None:
        """Run the graph.

        Args:
            version: The new version of the outputs.
            of: The versions of the inputs that the outputs are made from.
            feeds: The inputs by name.
        """
        self.of = None  # a run that fails may leave some outputs new and some old
        self.outputs = self._slot.run(feeds)
        self.of, self.version = of, version


#: An input of a stage: an external input, or another stage.
Source = KeptInput | KeptGraph


@dataclass(frozen=True, slots=True)
class CachedStage:
    """Runs a graph only if one of its inputs has another version than at the last run; for ``run_program``.

    ``find_versions`` returns the versions of the stage's inputs, and ``next_version`` a new one for the outputs.
    ``on_run`` is called after each run.
    """

    graph: KeptGraph
    find_versions: Callable[[], tuple[int, ...]]
    next_version: Callable[[], int]
    on_run: Callable[[], None]

    def run(self, feeds: Mapping[str, Feed], /) -> Mapping[str, Feed]:
        """Return the graph's outputs for these feeds."""
        if self.graph.of != (of := self.find_versions()):
            self.graph.run(self.next_version(), of, feeds)
            self.on_run()
        return self.graph.outputs


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture for which the stages that depend only on the picture have run.

    ``sources``: the picture and these stages, by name. ``fitted`` and ``bucket`` are (height, width). ``started`` and
    ``encoded`` are monotonic seconds.
    """

    frame: Frame
    sources: Mapping[str, Source]
    fitted: ImageSize
    bucket: ImageSize
    started: float
    encoded: float


class Kept:
    """The state of one stream: its inputs and its graphs, and how often each stage ran.

    ``pictures``: by bucket and turn. ``graphs``: by name in the manifest and turn. Turn 0 belongs to pictures that are
    segmented at once, and to all graphs that depend on more than the picture. Pictures that are encoded ahead have
    the turns 1 and 2 alternately; ``turn`` is the last of these. ``encoder_skips``: how often no stage had to run for
    a picture, by :data:`Likeness`. ``operators``: made when a frame first needs them.

    ``frames`` has the last pictures of each bucket and ``windows`` the last audio windows, as far back as the program
    looks.

    ``encoding`` guards the state that depends only on the picture, ``decoding`` everything else. A thread that needs
    both takes ``encoding`` first. One thread may encode while another decodes.
    """

    def __init__(self, program: Program) -> None:
        self.encoding, self.decoding = threading.Lock(), threading.Lock()
        self.frames = defaultdict[ImageSize, History](lambda: History(program.past_frames))
        self.windows = History(program.past_windows)
        self.pictures: dict[tuple[ImageSize, int], KeptInput] = {}
        self.inputs: dict[str, KeptInput] = {}
        self.graphs: dict[tuple[str, int], KeptGraph] = {}
        self.turn = 1
        self.next_version: Callable[[], int] = itertools.count(1).__next__
        self.runs: Counter[str] = Counter()
        self.encoder_skips: Counter[str] = Counter()
        self.operators: Operators | None = None


def measure_block_change(picture: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Measure how much two pictures (H, W, 3) differ where they differ most, in grey levels 0 … 255.

    This is the largest mean absolute difference of any square of 32 x 32 pixels (smaller at the right and lower edge).
    In the mean over the whole picture, a small moving object would vanish.
    """
    change = np.maximum(picture, other) - np.minimum(picture, other)
    rows, columns = (np.arange(0, length, BLOCK_PIXELS) for length in picture.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(change.sum(axis=2, dtype=np.uint32), rows, axis=0), columns, axis=1)
    heights, widths = (
        np.diff(starts, append=length) for starts, length in zip((rows, columns), picture.shape[:2], strict=True)
    )
    return float((sums / (3 * heights[:, None] * widths)).max())


def judge_likeness(
    picture: NDArray[np.uint8], encoded: NDArray[np.uint8] | None, still_threshold: float
) -> Likeness | None:
    """Decide whether a picture can use the encoder's outputs of an earlier one.

    The picture is compared with the last encoded picture, not with the previous frame. So changes below the threshold
    add up, and a slow pan is encoded again in time.

    Args:
        picture: The new picture (H, W, 3) uint8.
        encoded: The picture that was encoded last; None if there is none.
        still_threshold: Largest change in grey levels that counts as "still". 0: only equal pictures are reused.

    Returns:
        "same" or "still" if the outputs can be used; None if the picture has to be encoded.
    """
    if encoded is None or encoded.shape != picture.shape:
        return None
    if np.array_equal(picture, encoded):
        return "same"
    is_still = still_threshold > 0 and measure_block_change(picture, encoded) <= still_threshold
    return "still" if is_still else None
