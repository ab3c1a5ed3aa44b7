"""Sinks of streams: slow, failing and killed ones, and the content of their files."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
from PIL import Image

from teso_deploy.errors import OutputError
from teso_deploy.media.mask_folder import describe_masks
from teso_deploy.media.ring import AudioRing
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.contracts import InputKind
from teso_deploy.sinks.delivery import Delivery, InputFacts
from teso_deploy.sinks.events import EventSink
from teso_deploy.sinks.json_lines import JsonLines
from teso_deploy.sinks.mask_folder import MaskFolderSink
from teso_deploy.sinks.mask_lines import MaskLinesSink, encode_runs
from teso_deploy.sinks.outbox import Outbox
from teso_deploy.sinks.report import ReportSink
from teso_deploy.sinks.video import AnnotatedVideoSink
from tests.support.deliveries import CAMERA, CLASSES, describe_run, make_delivery


def test_a_slow_sink_delays_no_other_and_loses_the_oldest() -> None:
    taken: list[int] = []
    may_go_on = threading.Event()

    def wait(one: Delivery) -> None:
        assert may_go_on.wait(60), "the sink holds up the one who delivers"
        taken.append(one.frame.index)

    outbox = Outbox(CallbackSink(wait), most_waiting=3)
    outbox.start()
    for number in range(50):
        outbox.put(make_delivery(number))
    may_go_on.set()
    outbox.close(60)
    assert outbox.error is None and taken[-3:] == [47, 48, 49] and len(taken) <= 4
    assert outbox.get_health()["dropped"] == 50 - len(taken)
    taken.clear()

    def slowly(one: Delivery) -> None:
        time.sleep(0.02)
        taken.append(one.frame.index)

    waiting = Outbox(CallbackSink(slowly), lossless=True, most_waiting=3)
    waiting.start()
    for number in range(20):
        waiting.put(make_delivery(number))
    waiting.close(60)
    assert taken == list(range(20)) and waiting.dropped == 0


def test_a_sink_that_hangs_does_not_hang_the_end() -> None:
    for_ever = threading.Event()
    outbox = Outbox(CallbackSink(lambda one: (for_ever.wait(120), None)[1], name="stuck"))
    outbox.start()
    outbox.put(make_delivery(0))
    began = time.monotonic()
    outbox.close(0.2)
    assert time.monotonic() - began < 20 and "stuck did not finish" in str(outbox.error)
    for_ever.set()


def test_a_full_disk_ends_the_sink_alone() -> None:
    outbox = Outbox(MaskLinesSink(Path("/dev/full"), describe_run()))
    outbox.start()
    for number in range(5):
        outbox.put(make_delivery(number))
    outbox.close()
    assert isinstance(outbox.error, OutputError) and "No space left" in str(outbox.error)
    assert outbox.delivered == 0 and outbox.dropped == 4


def decoded(counts: list[int], size: tuple[int, int]) -> np.ndarray:
    """Decode independently: alternating runs of 0 and 1, by columns."""
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    return flat.reshape(size[1], size[0]).T.astype(bool)


@pytest.mark.parametrize("seed", range(4))
def test_encode_runs(seed: int) -> None:
    mask = np.random.default_rng(seed).random((7, 5)) < (0.0, 0.3, 0.7, 1.0)[seed]
    np.testing.assert_array_equal(decoded(encode_runs(mask), (7, 5)), mask)


def test_masks_as_lines_and_as_pictures(tmp_path: Path) -> None:
    lines, folder = MaskLinesSink(tmp_path / "m.jsonl", describe_run()), tmp_path / "masks"
    marker = describe_masks(CLASSES, CAMERA, "tiny")
    folder.mkdir()
    (folder / "masks.json").write_text(json.dumps(marker))
    (folder / "000099.png").write_bytes(b"old")
    pictures = MaskFolderSink(folder, describe_run())
    given = [make_delivery(0, 1), make_delivery(1, 2), make_delivery(1, 0, at=0.3)]
    for one in given:
        lines.append(one)
        pictures.append(one)
    found = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    lines.close()
    assert [line["cause"] for line in found] == ["frame", "frame", "sound"] and found[2]["objects"] == []
    (thing,) = found[1]["objects"]
    assert thing["name"] == "dog" and thing["score"] == 0.8
    mask = decoded(thing["segmentation"]["counts"], tuple(thing["segmentation"]["size"]))
    np.testing.assert_array_equal(mask, given[1].segmentation.labels == 2)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png", "masks.json"]
    assert json.loads((folder / "masks.json").read_text())["input"] == "rtsp://camera"
    assert not np.asarray(Image.open(folder / "000001.png")).any(), "the latest of a picture"


def test_events_as_they_happen(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = EventSink(path, describe_run())

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    for number in range(25, 50):
        sink.append(make_delivery(number, 1))
    assert [(line["event"], line["name"], line["onset_seconds"]) for line in lines()] == [("onset", "cat", 1.0)]
    for number in range(50, 75):
        sink.append(make_delivery(number, 2))
    assert [(line["event"], line["name"]) for line in lines()] == [("onset", "cat"), ("onset", "dog"), ("end", "cat")]
    sink.append(make_delivery(74, 0, at=4.0))
    assert lines()[-1]["event"] == "end" and lines()[-1]["name"] == "dog", "the sound alone has ended it"
    sink.close()
    assert all(line["input"] == "rtsp://camera" for line in lines())


def test_the_video_carries_picture_and_sound(tmp_path: Path) -> None:
    path, ring = tmp_path / "out.mp4", AudioRing()
    ring.add(4.0, np.full(3 * 16_000, 0.3, np.float32))
    sink = AnnotatedVideoSink(path, describe_run())
    facts = InputFacts(name=CAMERA, fps=25.0, sound=ring)
    for number in range(125, 160):
        sink.append(make_delivery(number, size=(48, 64) if number < 150 else (96, 80), facts=facts))
    sink.close()
    with av.open(str(path)) as video:
        frames = [frame for frame in video.decode(video=0)]
        assert len(frames) == 35 and {(f.width, f.height) for f in frames} == {(frames[0].width, frames[0].height)}
        times = [float(frame.pts * frame.time_base) for frame in frames]
        assert times == pytest.approx([n / 25 for n in range(35)], abs=0.002)
    with av.open(str(path)) as video:
        samples = sum(frame.samples for frame in video.decode(audio=0))
        assert samples / 16_000 == pytest.approx(1.4, abs=0.15)


KILLED = """
import sys, time
import numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from teso_deploy.media.ring import AudioRing
from teso_deploy.sinks.delivery import InputFacts
from teso_deploy.sinks.video import AnnotatedVideoSink
from tests.support.deliveries import describe_run, make_delivery
ring, step, heard = AudioRing(), int(sys.argv[3]), float(sys.argv[4])
sink = AnnotatedVideoSink(Path(sys.argv[1]), describe_run())
facts = InputFacts(name="camera", fps=25.0, sound=ring if heard >= 0 else None)
for number in range(0, 200, step):
    if number / 25 < heard:
        ring.add(number / 25, np.zeros(640 * step, np.float32))
    sink.append(make_delivery(number, facts=facts))
print("there", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("step", "heard_seconds"), [(1, 9.0), (8, 9.0), (1, -1.0), (8, 0.0), (8, -1.0), (1, 2.0), (8, 2.0)]
)
def test_what_a_killed_run_leaves_can_be_played(tmp_path: Path, step: int, heard_seconds: float) -> None:
    """At 25 and at 3 frames per second; with sound, without (negative), with sound that never comes, and that stops."""
    path = tmp_path / "out.mp4"
    command = [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parents[2]), str(step), str(heard_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        process.kill()
    with av.open(str(path)) as video:
        shown = [frame.time for frame in video.decode(video=0)]
    assert shown[0] < 0.1 and shown[-1] > 5.5 and len(shown) > 5.5 * 25 / step, "of 8 s the last two are missing"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"):
        MaskLinesSink(tmp_path / "none" / "m.jsonl", describe_run())
    with pytest.raises(OutputError, match="no folder"):
        MaskFolderSink(tmp_path / "none" / "masks", describe_run())
    (tmp_path / "holiday.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match="holiday"):
        MaskFolderSink(tmp_path, describe_run())
    assert (tmp_path / "holiday.png").exists()


def test_lines_of_several_files_keep_the_order_of_the_files(tmp_path: Path) -> None:
    path, facts = tmp_path / "events.jsonl", [InputFacts(name=name, fps=25.0) for name in ("a.mp4", "b.mp4")]
    with EventSink(path, describe_run("files", ("a.mp4", "b.mp4"))) as sink:
        for stream in (0, 1):
            for number in range(3):
                sink.append(make_delivery(number, stream=stream, facts=facts[stream]))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [
        {"input": name, "name": "cat", "onset_seconds": 0.0, "end_seconds": 0.08, "confidence": 0.9, "frames": 3}
        for name in ("a.mp4", "b.mp4")
    ]


def test_events_that_end_on_a_full_disk_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(lines: JsonLines, line: object) -> None:
        raise OutputError("the disk is full")

    sink = EventSink(tmp_path / "events.jsonl", describe_run("files"))
    sink.append(make_delivery(0, 1))
    monkeypatch.setattr(JsonLines, "write", fill)
    with pytest.raises(OutputError, match="the disk is full"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_each_input(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    released = [InputFacts(name=name, fps=25.0, describe=lambda: {"backend": "cpu"}) for name in ("a.mp4", "b.mp4")]
    with ReportSink(path, describe_run("files", ("a.mp4", "b.mp4"))) as sink:
        for stream, label in ((0, 1), (1, 0)):
            for number in range(4):
                sink.append(make_delivery(number, label, stream=stream, facts=released[stream]))
    first, second = json.loads(path.read_text())["runs"]
    assert (first["input"], first["frames"], first["masks_nonblank"], first["events"]) == ("a.mp4", 4, 4, 1)
    assert (second["input"], second["frames"], second["masks_nonblank"], second["events"]) == ("b.mp4", 4, 0, 0)
    assert first["positive_pixel_rate"] == pytest.approx(400 / (48 * 64)) and first["backend"] == "cpu"
    assert first["latency_ms"]["delivered"]["p50"] == pytest.approx(250.0)
    alone = ReportSink(None, describe_run())
    alone.append(make_delivery(0))
    alone.append(make_delivery(0, at=0.3))
    assert alone.describe()["frames"] == 1, "a new sound is not another frame"
    assert alone.describe()["latency_ms"]["delivered"]["p50"] == pytest.approx(250.0, rel=0.01)


@pytest.mark.parametrize("kind", ["files", "streams"])
def test_a_full_disk_names_the_folder_that_the_user_gave(
    kind: InputKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(folder: Path) -> BinaryIO:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    folder = tmp_path / "masks"
    with pytest.raises(OutputError) as caught, MaskFolderSink(folder, describe_run(kind)) as sink:
        monkeypatch.setattr("teso_deploy.outputs.create_file", fill)
        sink.append(make_delivery(0))
    assert str(caught.value) == f"{folder} can't be written (No space left on device): name another place"
    assert folder.exists() == (kind == "streams")
