"""Decoding on a GPU that is missing, and on a simulated one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from teso_deploy.backends.machine import can_load
from teso_deploy.errors import DeviceError
from teso_deploy.media import nvdec, picture
from teso_deploy.media.container import open_unchecked
from teso_deploy.media.reader import VideoReader
from tests.support.clips import make_clip
from tests.support.commands import teso


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two seconds of colours that change from pixel to pixel, so that the chroma filter makes a difference."""
    path = tmp_path_factory.mktemp("nvdec") / "clip.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for i in range(24):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (72, 96, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class GpuFrame:
    """A decoded frame in GPU memory, which is downloaded as NV12."""

    def __init__(self, frame: av.VideoFrame, downloads: list[str]) -> None:
        self._frame, self._downloads = frame, downloads
        self.format, self.sw_format = SimpleNamespace(name="cuda", is_rgb=False), SimpleNamespace(name="nv12")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frame, name)

    def to_ndarray(self, **options: Any) -> Any:
        raise AssertionError("straight to RGB, it is not what software gives")

    def reformat(self, format: str) -> av.VideoFrame:
        self._downloads.append(format)
        return self._frame.reformat(format="nv12").reformat(format=format)


class GpuStream:
    """A video stream that is decoded on the GPU."""

    def __init__(self, stream: Any, gpu: Gpu) -> None:
        self._stream, self._gpu, self.thread_type = stream, gpu, ""
        self.codec_context = stream.codec_context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def decode(self, packet: Any) -> Iterator[Any]:
        for frame in self._stream.decode(packet):
            if self._gpu.decodes:
                yield GpuFrame(frame, self._gpu.downloads)
            elif self._gpu.decodes is None:
                raise av.error.ExternalError(542398533, "CUDA_ERROR")
            else:
                yield frame


class GpuContainer:
    """A file that was opened with an accelerator."""

    def __init__(self, container: Any, gpu: Gpu) -> None:
        self._container = container
        (video,) = container.streams.video
        self.streams = SimpleNamespace(video=[GpuStream(video, gpu)], audio=[*container.streams.audio])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, *streams: Any) -> Any:
        return self._container.demux(*(getattr(stream, "_stream", stream) for stream in streams))


class Gpu:
    """A GPU for PyAV. ``decodes``: the format that it decodes. None: every packet fails."""

    def __init__(self) -> None:
        self.decodes: bool | None = True
        self.downloads: list[str] = []
        self.accelerators: list[tuple[Any, dict[str, Any]]] = []

    def accelerator(self, device: str, **options: Any) -> Any:
        self.accelerators.append((device, options))
        return self

    def open(self, path: Path, hwaccel: Any) -> Any:
        assert hwaccel is self
        return GpuContainer(open_unchecked(path), self)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made_up = Gpu()
    monkeypatch.setattr(nvdec, "can_load", lambda library: True)
    monkeypatch.setattr(nvdec, "HWAccel", made_up.accelerator)
    side_data = picture._SideData
    monkeypatch.setattr(picture, "_SideData", lambda frame: side_data(getattr(frame, "_frame", frame)))
    monkeypatch.setattr(nvdec, "open_unchecked", made_up.open)
    return made_up


def same(first: Path, *, hardware: Any, **options: Any) -> VideoReader:
    """Decode in software and as requested, check that nothing differs, and return the second reader."""
    with VideoReader(first, **options) as software, VideoReader(first, hardware=hardware, **options) as reader:
        assert reader.info == software.info
        count = 0
        for ours, theirs in zip(reader, software, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
            assert (ours.pts_seconds, ours.index, ours.segment) == (theirs.pts_seconds, theirs.index, theirs.segment)
            count += 1
        assert count and (reader.frames_decoded, reader.corrupt_packets) == (software.frames_decoded, 0)
    return reader


@pytest.mark.parametrize("hardware", ["auto", "nvdec"])
def test_without_the_gpu_it_is_software_and_says_so(clip: Path, monkeypatch: pytest.MonkeyPatch, hardware: str) -> None:
    monkeypatch.setattr(nvdec, "can_load", lambda library: library != "libnvcuvid.so.1")
    reader = same(clip, hardware=hardware)
    assert reader.decoder == "software"
    assert reader.decoder_note == "libnvcuvid.so.1 can't be loaded: see teso-deploy doctor"
    monkeypatch.setattr(nvdec, "hwdevices_available", lambda: ["qsv"])
    assert "built without CUDA" in str(same(clip, hardware=hardware).decoder_note)
    with VideoReader(clip) as asked_for_nothing:
        assert (asked_for_nothing.decoder, asked_for_nothing.decoder_note) == ("software", None)


def test_what_ffmpeg_says_when_there_is_no_driver_is_a_note(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if can_load("libcuda.so.1"):
        pytest.skip("there is a driver")
    monkeypatch.setattr(nvdec, "can_load", lambda library: True)  # so that FFmpeg tries it
    reader = same(clip, hardware="nvdec")
    assert reader.decoder == "software" and "the GPU can't be opened for decoding" in str(reader.decoder_note)


def test_on_the_gpu_frames_are_the_same(clip: Path, gpu: Gpu) -> None:
    reader = same(clip, hardware="nvdec")
    assert (reader.decoder, reader.decoder_note) == ("nvdec", None)
    ((device, options),) = gpu.accelerators
    assert device == "cuda" and options == {"options": {"primary_ctx": "0"}, "is_hw_owned": True}
    assert gpu.downloads == ["yuv420p"] * 24


def test_frames_that_are_not_read_stay_on_the_gpu(clip: Path, gpu: Gpu) -> None:
    same(clip, hardware="auto", every_nth=6)
    assert len(gpu.downloads) == 4


@pytest.mark.parametrize("decodes", [False, None])
def test_a_video_that_the_gpu_does_not_decode(clip: Path, gpu: Gpu, decodes: bool | None) -> None:
    gpu.decodes = decodes
    reader = same(clip, hardware="nvdec")
    assert reader.decoder == "software"
    note = "does not decode this h264 (yuv420p) on the GPU" if decodes is False else "no picture that can be decoded"
    assert note in str(reader.decoder_note)


def test_an_older_pyav_is_a_note(clip: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def old(device: str, options: Any) -> None: ...

    monkeypatch.setattr(nvdec, "HWAccel", old)
    assert "pip install --upgrade av" in str(same(clip, hardware="nvdec").decoder_note)


def test_a_gpu_that_fails_on_the_way_is_an_error(clip: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(frame: GpuFrame, format: str) -> None:
        raise av.error.ExternalError(542398533, "Generic error in an external library")

    monkeypatch.setattr(GpuFrame, "reformat", fail)
    with VideoReader(clip, hardware="nvdec") as reader, pytest.raises(DeviceError, match="--decoder software"):
        list(reader)


def test_run_says_what_decodes(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sounding = make_clip(tmp_path / "clip.mp4", seconds=0.5)
    monkeypatch.setattr(nvdec, "can_load", lambda library: False)
    common = ("run", sounding, "--bundle", tiny_bundle, "--threads", 1, "--json", "-")
    done = teso(*common, "--decoder", "nvdec")
    assert done.code == 0, done.err
    note = "libcuda.so.1 can't be loaded: see teso-deploy doctor"
    assert json.loads(done.out)["decoder"] == {"name": "software", "note": note}
    assert f"clip.mp4 is decoded in software: {note}" in " ".join(done.err.split())
    for quiet in ((), ("--decoder", "auto"), ("--decoder", "software")):
        done = teso(*common, *quiet)
        assert json.loads(done.out)["decoder"] == {"name": "software", "note": None}
        assert "decoded in software" not in done.err


def test_run_decodes_on_the_gpu(tiny_bundle: Path, tmp_path: Path, gpu: Gpu) -> None:
    sounding = make_clip(tmp_path / "clip.mp4", seconds=0.5)
    done = teso("run", sounding, "--bundle", tiny_bundle, "--threads", 1, "--json", "-", "--decoder", "nvdec")
    assert done.code == 0, done.err
    assert json.loads(done.out)["decoder"] == {"name": "nvdec", "note": None} and len(gpu.downloads) == 6
