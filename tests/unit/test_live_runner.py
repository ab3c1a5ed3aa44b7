"""The runner on a tiny bundle and fake sources: no stream waits for another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from teso_deploy.errors import MediaError, OutputError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.runner import LiveRunner
from teso_deploy.live.scheduler import LiveOptions
from teso_deploy.media.address import Address
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.media.ring import AudioRing
from teso_deploy.media.source_health import LiveInfo, SourceHealth
from teso_deploy.pipeline.pipeline import Pipeline, Stream
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.delivery import Delivery
from teso_deploy.types import Frame
from tests.support.segmentations import read_cues


class Taken:
    """A frame, as a reader gives it."""

    def __init__(self, number: int, pts_seconds: float) -> None:
        self.pts_seconds, self.index, self.segment, self.is_corrupt = pts_seconds, number, 0, False
        self.arrived = self.decoded = time.monotonic()
        image = np.full((64, 96, 3), (number * 7) % 256, np.uint8)
        self.frame = Frame(image, pts_seconds, number)


class Camera:
    """A camera of ``fps`` frames per second for some seconds, with a tone. Stream time begins at its start."""

    def __init__(
        self, seconds: float, fps: float = 25.0, has_sound: bool = True, fails_after: float | None = None
    ) -> None:
        self.address, self.ring = Address.parse("rtsp://camera/live"), AudioRing()
        self.info = LiveInfo("rtsp", 96, 64, fps, has_sound, 0)
        self.audio_address: Address | None = None
        self.error: MediaError | None = None
        self.on_frame = self.on_sound = lambda: None
        self._seconds, self._fps, self._has_sound, self._fails_after = seconds, fps, has_sound, fails_after
        self._began, self._next, self.superseded, self._stopped = time.monotonic(), 0, 0, False

    def now_seconds(self) -> float:
        now = time.monotonic() - self._began
        if self._has_sound:
            end = self.ring.end_seconds or 0.0
            if now - end > 0.04:
                self.ring.add(end, np.full(round((now - end) * 16_000), 0.1, np.float32))
        if self._fails_after is not None and now > self._fails_after:
            self.error = MediaError("the camera was torn off the wall: mount it again")
        return now

    @property
    def ended(self) -> bool:
        return self._stopped or self.error is not None or self.now_seconds() > self._seconds

    def take(self, timeout_seconds: float) -> Taken | None:
        due = int(self.now_seconds() * self._fps)
        if self.ended or due < self._next:
            return None
        self.superseded += due - self._next
        self._next = due + 1
        return Taken(due, due / self._fps)

    def stop(self) -> None:
        self._stopped = True

    def health(self) -> SourceHealth:
        drops = {"superseded": self.superseded}
        return SourceHealth("running", self._next, 0, 0, drops, 0, 0, 0, 0.0, 1.0, self._has_sound, 0.0, 0, None, None)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, threads=1)


Enough = Callable[[list[Delivery]], bool]


def has_frames(count: int) -> Enough:
    """Return a condition that ends a run: this many frames were delivered."""
    return lambda found: sum(one.cause == "frame" for one in found) >= count


def ran(
    pipeline: Pipeline, cameras: list[Camera], *, enough: Enough = lambda found: False, **more: Any
) -> tuple[list[Delivery], LiveRunner, dict[str, Any]]:
    """Run until the cameras end, or until the deliveries are enough. A busy machine takes long for a few frames."""
    found: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        found.append(delivery)
        if enough(found):
            runner.stop()

    accounting = Accounting([camera.address.shown for camera in cameras])
    sinks = [CallbackSink(take), *more.pop("sinks", [])]
    runner = LiveRunner(pipeline, cast(list[LiveReader], cameras), sinks, accounting=accounting, **more)
    runner.run()
    return found, runner, accounting.snapshot()


@pytest.fixture
def slow_encoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    encode = Stream.encode

    def slowly(self: Stream, frame: Any) -> Any:
        time.sleep(0.6)
        return encode(self, frame)

    monkeypatch.setattr(Stream, "encode", slowly)
    yield


def test_frames_come_with_the_sound_before_them(pipeline: Pipeline) -> None:
    found, _, snapshot = ran(pipeline, [Camera(60.0)], enough=has_frames(20))
    frames = [one for one in found if one.cause == "frame"]
    indices = [one.frame.index for one in frames]
    (stream,) = snapshot["streams"]
    assert indices == sorted(indices) and len(frames) >= 8 and stream["frames"] == len(frames)
    assert stream["frames"] + sum(stream["drops"].values()) == stream["frames_decoded"]
    for one in frames:
        assert one.audio_end_seconds is not None or one.frame.pts_seconds < 0.1, "no sound had come"
        assert one.segmentation.audio_start_seconds < one.frame.pts_seconds + 0.3
        assert list(one.stamps) == ["captured", "decoded", "queued", "encoded", "heard", "fused", "masked", "delivered"]
        assert list(one.stamps.values()) == sorted(one.stamps.values())
    assert {"p50", "p99"} <= set(stream["latency_ms"]["frame"]) and stream["staleness_ms"]["p50"] < 500


def test_what_it_finds_is_what_the_pipeline_finds(pipeline: Pipeline) -> None:
    def is_enough(found: list[Delivery]) -> bool:
        return sum(one.segmentation.audio_start_seconds >= 0 for one in found) >= 4

    found, _, _ = ran(pipeline, [Camera(60.0)], cues=["dog"], enough=is_enough)
    for one in found:
        alone = pipeline.segment(one.frame, np.full(15_600, 0.1, np.float32), ["dog"])
        if one.segmentation.audio_start_seconds >= 0:
            np.testing.assert_array_equal(one.segmentation.labels, alone.labels)
    assert is_enough(found)


def test_a_slow_encoder_holds_up_no_sound(pipeline: Pipeline, slow_encoder: None) -> None:
    def is_enough(found: list[Delivery]) -> bool:
        return has_frames(5)(found) and sum(one.cause == "sound" for one in found) >= 5

    found, _, snapshot = ran(pipeline, [Camera(60.0)], enough=is_enough)
    frames = [one for one in found if one.cause == "frame"]
    sounds = [one for one in found if one.cause == "sound"]
    assert len(frames) >= 5 and len(sounds) >= 5
    assert np.median([one.staleness_seconds for one in frames]) <= 0.5 + 0.6 + 0.3
    ends = [one.audio_end_seconds for one in found if one.audio_end_seconds is not None]
    assert ends == sorted(ends) and np.median([b - a for a, b in pairwise(ends)]) <= 0.5
    assert snapshot["streams"][0]["drops"]["superseded"] > 30


def test_cues_are_used_at_once_and_tell_their_age(pipeline: Pipeline) -> None:
    """The camera gives one frame, which is decoded again with the cues."""
    camera = Camera(60.0, fps=0.01, has_sound=False)
    cues = pipeline.cues_of(["dog"])
    found: list[Delivery] = []
    offered_at: list[float] = []

    def take(delivery: Delivery) -> None:
        found.append(delivery)
        if len(found) > 1:
            runner.stop()
        else:
            offered_at.append(camera.now_seconds())
            runner.offer_cues(0, cues, of_seconds=-1.0)

    runner = LiveRunner(pipeline, cast(list[LiveReader], [camera]), [CallbackSink(take)])
    runner.run()
    first, again = found
    assert (first.cause, again.cause) == ("frame", "cues") and again.frame is first.frame
    assert read_cues(again.segmentation).names == ("dog",) != read_cues(first.segmentation).names
    assert read_cues(first.segmentation).age_seconds == 0
    assert 1 + offered_at[0] <= read_cues(again.segmentation).age_seconds <= 1 + camera.now_seconds()


def test_several_streams_are_served_alike(pipeline: Pipeline, slow_encoder: None) -> None:
    found, _, snapshot = ran(pipeline, [Camera(60.0), Camera(60.0)], enough=has_frames(6))
    counts = [sum(one.stream == n and one.cause == "frame" for one in found) for n in (0, 1)]
    assert min(counts) >= 2 and abs(counts[0] - counts[1]) <= 1
    assert [stream["frames"] for stream in snapshot["streams"]] == counts


def test_a_stream_that_fails_leaves_the_others_running(pipeline: Pipeline) -> None:
    def broken(delivery: Delivery) -> None:
        raise RuntimeError("the disk is on fire")

    def is_enough(found: list[Delivery]) -> bool:
        return any(one.stream == 0 and one.frame.pts_seconds > 1.0 for one in found)

    cameras = [Camera(60.0), Camera(60.0, fails_after=0.5)]
    found, runner, snapshot = ran(pipeline, cameras, enough=is_enough, sinks=[CallbackSink(broken, "broken")])
    assert is_enough(found)
    assert max((one.frame.pts_seconds for one in found if one.stream == 1), default=0.0) <= 0.5
    messages = sorted(str(error) for error in runner.errors())
    assert len(messages) == 2 and "on fire" in messages[0] and "torn off" in messages[1]
    assert isinstance(runner.errors()[1], OutputError) and snapshot["sinks"]["broken"]["error"]


def test_sinks_of_one_name_are_counted_apart(pipeline: Pipeline) -> None:
    def broken(delivery: Delivery) -> None:
        raise RuntimeError("the disk is on fire")

    sinks = [CallbackSink(broken, "x.jsonl"), CallbackSink(lambda delivery: None, "x.jsonl")]
    _, runner, snapshot = ran(pipeline, [Camera(0.4)], sinks=sinks)
    assert list(snapshot["sinks"]) == ["callback", "x.jsonl", "x.jsonl (2)"]
    assert snapshot["sinks"]["x.jsonl"]["error"] == str(runner.errors()[0])
    assert snapshot["sinks"]["x.jsonl (2)"]["delivered"] == snapshot["sinks"]["callback"]["delivered"] > 0


def test_it_stops_when_it_is_told_to(pipeline: Pipeline) -> None:
    camera = Camera(120.0)
    runner = LiveRunner(pipeline, cast(list[LiveReader], [camera]))
    threading.Timer(0.4, runner.stop).start()
    began = time.monotonic()
    runner.run()
    assert time.monotonic() - began < 30
    assert not [thread for thread in threading.enumerate() if thread.name in ("teso-encode", "teso-decode")]


def test_a_worker_that_fails_ends_the_run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Stream, *given: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(Stream, "decode", broken)
    with pytest.raises(MemoryError):
        ran(pipeline, [Camera(30.0)])


def test_muted_it_hears_nothing(pipeline: Pipeline) -> None:
    found, _, _ = ran(pipeline, [Camera(60.0)], enough=has_frames(3), options=LiveOptions(mute=True))
    assert found and all(one.segmentation.audio_is_silent and one.audio_end_seconds is None for one in found)


def test_two_halves_are_the_whole(pipeline: Pipeline) -> None:
    """While the next picture is encoded, the last one can be decoded again."""
    rng, stream = np.random.default_rng(0), pipeline.open_stream()
    pictures = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(4)]
    sounds = [rng.standard_normal(15_600).astype(np.float32) * 0.1 for _ in range(2)]
    before = stream.encode(pictures[0])
    for picture in pictures[1:]:
        after = stream.encode(picture)
        for sound in sounds:
            for encoded in (before, after):
                found = stream.decode(encoded, sound, ["dog"])
                alone = pipeline.open_stream().segment(encoded.frame, sound, ["dog"])
                np.testing.assert_array_equal(found.labels, alone.labels)
                np.testing.assert_array_equal(found.class_scores, alone.class_scores)
        before = after
    again = stream.encode(pictures[3])
    assert all(again.sources[name] is after.sources[name] for name in ("image", "visual_encoder"))
    assert stream.encoder_skips["same"] == 1
