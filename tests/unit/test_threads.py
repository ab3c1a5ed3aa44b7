"""One pipeline in several threads: the masks are those of one thread, in turn and in parallel."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.engine import Tensor
from teso_deploy.bundle import Bundle
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.program import TESO
from teso_deploy.recipe import Recipe
from teso_deploy.types import WINDOW_SAMPLES, Segmentation
from tests.unit.test_pipeline import FakeEngine, FakeSlot, bundle_of, cues_of, picture, sound

THREADS, FRAMES = 8, 3
Segment = Callable[[Any, Any, Any], Segmentation]


class SlowSlot(FakeSlot):
    """Lets other threads run in the middle of a run, and records simultaneous runs of one slot."""

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, Any]:
        assert not self.is_running, "two threads write into the same buffers"
        self.is_running = True
        time.sleep(0.001)
        found = super().run(feeds)
        time.sleep(0.001)
        self.is_running = False
        return found

    is_running = False


class SlowEngine(FakeEngine):
    """An engine of such slots."""

    def slot(self) -> SlowSlot:
        return SlowSlot(self)


@pytest.fixture
def pipeline(tiny_recipe: Recipe) -> Pipeline:
    return Pipeline(bundle_of(tiny_recipe), lambda bundle, name: SlowEngine(name))


@pytest.fixture(scope="module")
def shipped() -> Pipeline:
    return Pipeline.load(threads=1)


def inputs(thread: int) -> Iterator[tuple[Any, Any]]:
    """Yield pictures and sounds that only one thread has."""
    for frame in range(FRAMES):
        number = thread * FRAMES + frame
        yield picture(number), np.random.default_rng(number).uniform(-0.5, 0.5, WINDOW_SAMPLES).astype(np.float32)


def run_threads(segment_of: Callable[[int], Segment], cues: Any) -> list[list[Segmentation]]:
    """Return the results of each thread. All threads begin at the same moment."""
    together = threading.Barrier(THREADS)

    def work(thread: int) -> list[Segmentation]:
        segment = segment_of(thread)
        together.wait(120)
        return [segment(image, samples, cues) for image, samples in inputs(thread)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


def run_serially(pipeline: Pipeline, cues: Any) -> list[list[Segmentation]]:
    """Return one thread's results for all inputs."""
    segment = pipeline.open_stream().segment
    return [[segment(image, samples, cues) for image, samples in inputs(thread)] for thread in range(THREADS)]


def assert_equal(found: list[list[Segmentation]], expected: list[list[Segmentation]]) -> None:
    for segmentations, those in zip(found, expected, strict=True):
        for one, alone in zip(segmentations, those, strict=True):
            np.testing.assert_array_equal(one.labels, alone.labels)
            np.testing.assert_array_equal(one.class_scores, alone.class_scores)
            np.testing.assert_array_equal(one.cue_gate, alone.cue_gate)


@pytest.fixture(scope="module")
def shipped_alone(shipped: Pipeline) -> list[list[Segmentation]]:
    return run_serially(shipped, ["dog"])


@pytest.mark.parametrize("how", ["pipeline", "one stream", "a stream each"])
def test_threads_find_what_one_thread_finds(
    shipped: Pipeline, shipped_alone: list[list[Segmentation]], how: str
) -> None:
    one = shipped.open_stream()
    segments: dict[str, Callable[[int], Segment]] = {
        "pipeline": lambda thread: shipped.segment,
        "one stream": lambda thread: one.segment,
        "a stream each": lambda thread: shipped.open_stream().segment,
    }
    assert_equal(run_threads(segments[how], ["dog"]), shipped_alone)


@pytest.mark.parametrize("is_shared", [True, False])
def test_no_two_runs_in_the_same_buffers(pipeline: Pipeline, is_shared: bool) -> None:
    found = run_threads(lambda thread: (pipeline if is_shared else pipeline.open_stream()).segment, cues_of(1))
    assert {name: pipeline.runs[name] for name in TESO.names if name != "fusion"} == dict.fromkeys(
        (name for name in TESO.names if name != "fusion"), THREADS * FRAMES
    )
    assert_equal(found, run_serially(pipeline, cues_of(1)))


def test_streams_run_at_the_same_time(tiny_recipe: Recipe) -> None:
    both = threading.Barrier(2)

    class Meeting(FakeEngine):
        """An engine that continues once two threads are in it."""

        def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            both.wait(120)
            return super().run(feeds)

    pipeline = Pipeline(bundle_of(tiny_recipe), lambda bundle, name: Meeting(name))
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(pipeline.open_stream().segment, picture(seed), sound(0.2)) for seed in range(2)]
        assert all(one.result().labels.shape == (72, 96) for one in done)


def test_a_stream_encodes_while_it_decodes(tiny_recipe: Recipe) -> None:
    is_decoding, is_encoded = threading.Event(), threading.Event()

    class Watched(FakeEngine):
        """An engine whose decoder waits until the next picture is encoded."""

        def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            if self.name == "decoder":
                is_decoding.set()
                assert is_encoded.wait(120), "the encoder waits for the decoder"
            return super().run(feeds)

    stream = Pipeline(bundle_of(tiny_recipe), lambda bundle, name: Watched(name)).open_stream()
    first = stream.encode(picture(0))
    with ThreadPoolExecutor(1) as pool:
        decoded = pool.submit(stream.decode, first, sound(0.2), cues_of(1))
        assert is_decoding.wait(120)
        stream.encode(picture(1))
        is_encoded.set()
        assert decoded.result().labels.shape == (72, 96)


def test_an_engine_is_loaded_once(tiny_recipe: Recipe) -> None:
    loaded: Counter[str] = Counter()

    def load(bundle: Bundle, name: str) -> FakeEngine:
        time.sleep(0.01)
        loaded[name] += 1
        return FakeEngine(name)

    pipeline = Pipeline(bundle_of(tiny_recipe, sizes=((64, 64), (64, 96))), load, size="auto")
    run_threads(lambda thread: pipeline.open_stream().segment, None)
    assert set(loaded.values()) == {1} and "decoder@64x96" in loaded


def test_no_count_is_lost(pipeline: Pipeline) -> None:
    class Interrupted(Counter[str]):
        """A counter that is interrupted by another thread between reading and writing."""

        def __getitem__(self, key: str) -> int:
            found = super().__getitem__(key)
            time.sleep(0.0005)
            return found

    pipeline.stages.runs = Interrupted()
    run_threads(lambda thread: pipeline.open_stream().segment, cues_of(1))
    assert dict.__getitem__(pipeline.runs, "visual_encoder") == THREADS * FRAMES


def test_what_was_heard_stays_what_it_was(pipeline: Pipeline) -> None:
    stream = pipeline.open_stream()
    stream.segment(picture(0), sound(0.2))
    heard = stream.heard()
    before = heard.copy()
    stream.segment(picture(0), sound(0.4))
    np.testing.assert_array_equal(heard, before)
    assert stream.heard()[0] > heard[0]
