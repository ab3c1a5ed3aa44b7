"""Decoding on a real GPU: the same frames as in software."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from teso_deploy.media.reader import VideoReader
from tests.gpu.conftest import Absent
from tests.support.clips import make_clip

pytestmark = pytest.mark.gpu


Open = Callable[..., VideoReader]


@pytest.fixture(scope="module")
def on_gpu(absent: Absent) -> Open:
    """Return a function that opens a reader on the GPU."""

    def open_reader(path: Path, **options: float) -> VideoReader:
        reader = VideoReader(path, hardware="nvdec", **options)  # type: ignore[arg-type]
        if reader.decoder != "nvdec":
            reader.close()
            absent(f"there is no NVDEC: {reader.decoder_note}")
        assert reader.decoder_note is None
        return reader

    return open_reader


def assert_same(on_gpu: Open, path: Path, **options: float) -> None:
    with on_gpu(path, **options) as reader, VideoReader(path, **options) as software:  # type: ignore[arg-type]
        assert reader.info == software.info
        for ours, theirs in zip(reader, software, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
            assert (ours.pts_seconds, ours.index) == (theirs.pts_seconds, theirs.index)


def test_frames_are_those_of_software(on_gpu: Open, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", seconds=4, fps=25, size=(240, 320))
    assert_same(on_gpu, path)
    assert_same(on_gpu, path, every_nth=7)
    assert_same(on_gpu, path, fps=3)


@pytest.mark.parametrize(
    ("codec", "pixels"), [("libx265", "yuv420p"), ("libx265", "yuv420p10le"), ("libx264", "yuvj420p")]
)
def test_other_kinds_of_video(on_gpu: Open, tmp_path: Path, codec: str, pixels: str) -> None:
    path = tmp_path / "clip.mp4"
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (30, 40, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, pixels
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(picture, 5 * i, axis=1)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert_same(on_gpu, path)


def test_several_files_one_after_the_other(on_gpu: Open, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", seconds=1, size=(240, 320))
    for _ in range(20):  # decoders that stay open would exhaust the GPU's decoders
        with on_gpu(path) as reader:
            assert sum(1 for _ in reader) == 12
