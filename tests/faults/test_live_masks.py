"""The shipped model after a fault: within a second of clean input its masks are those of an undamaged stream."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.live.runner import LiveRunner
from teso_deploy.live.scheduler import LiveOptions
from teso_deploy.media.address import Address
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.pipeline.pipeline import AUTO, Pipeline
from teso_deploy.resources import find_shipped_path
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.delivery import Delivery
from tests.support.streams import Damage, Sender, lost, serving, tcp, untouched
from tests.support.transport import begins_picture

FPS, CLIP_SECONDS, DAMAGED_SECONDS, LONG_SECONDS = 25, 10.0, (1.0, 2.5), 5.0
Masks = dict[float, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the shipped clip as a transport stream with a key frame every half second."""
    path = tmp_path_factory.mktemp("masks") / "clip.ts"
    with (
        av.open(str(find_shipped_path("export/demo/clip.mp4"))) as given,
        av.open(str(path), "w", format="mpegts") as out,
    ):
        video, sound = given.streams.video[0], given.streams.audio[0]
        picture = out.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = video.width, video.height, "yuv420p"
        picture.options = {"preset": "ultrafast", "g": "12"}
        audio = out.add_stream_from_template(sound)
        for packet in given.demux():
            if packet.stream is sound:
                if packet.dts is not None:
                    packet.stream = audio
                    out.mux(packet)
                continue
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    frame.pict_type = av.video.frame.PictureType.NONE
                    out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
    return path


def within(damage: Damage) -> Damage:
    """Return damage only to packets of ``DAMAGED_SECONDS`` of the clip."""
    pictures = [0]

    def damaged(packet: bytes) -> bytes:
        pictures[0] += begins_picture(packet)
        first, last = (FPS * at for at in DAMAGED_SECONDS)
        return damage(packet) if first <= pictures[0] < last else packet

    return damaged


def masks_of(pipeline: Pipeline, clip: Path, damage: Damage) -> tuple[Masks, int]:
    """Return time in the clip → labels, and how many frames and packets were damaged."""
    sender, found = Sender(clip, CLIP_SECONDS, damage), Masks()

    def take(delivery: Delivery) -> None:
        at = delivery.frame.pts_seconds
        found[round(at, 2)] = delivery.segmentation.labels
        if at > LONG_SECONDS:
            runner.stop()

    with (
        serving(tcp(sender)) as server,
        LiveReader(Address.parse(f"tcp://127.0.0.1:{server.port}"), lossless=True, reconnect=False) as reader,
    ):
        reader.start()
        runner = LiveRunner(pipeline, [reader], [CallbackSink(take)], options=LiveOptions(lossless=True), cues=AUTO)
        runner.run()
        health = reader.health()
    return found, health.corrupt_frames + health.corrupt_packets


def test_masks_are_right_again_within_a_second(clip: Path) -> None:
    pipeline = Pipeline.load(threads=2)
    expected, undamaged = masks_of(pipeline, clip, untouched)
    assert undamaged == 0
    assert sum(labels.any() for labels in expected.values()) >= 25, "something sounds"
    end = DAMAGED_SECONDS[1]
    for share in (0.05, 0.2):
        found, damaged = masks_of(pipeline, clip, within(lost(share)))
        agreement = {at: float((found[at] == expected[at]).mean()) for at in found if at in expected}
        assert damaged > 5 and min(agreement.values()) < 1.0
        behind = [share for at, share in agreement.items() if at > end + 1.0]
        assert len(behind) >= 30 and min(behind) >= 0.98
        # The effect lasts longer in a window that moves by hops, and in sound that is sent after its picture.
        assert min(share for at, share in agreement.items() if at > end + 1.0 + 0.24) > 0.999
