"""Sound with any number of channels becomes mono by their plain average, in files and in streams."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from teso_deploy.media.address import Address
from teso_deploy.media.audio import read_audio
from teso_deploy.media.live_reader import LiveReader

RATE_HZ = 48_000
SECONDS = 1.0


def tones(channels: int) -> NDArray[np.float32]:
    """Return (N, channels), in which each channel has a different tone and loudness."""
    times = np.arange(round(SECONDS * RATE_HZ)) / RATE_HZ
    hertz = 200 + 90 * np.arange(channels)
    loudness = 0.9 / (1 + np.arange(channels) % 5)
    return (np.sin(2 * np.pi * hertz * times[:, None]) * loudness).astype(np.float32)


def write(path: Path, sound: NDArray[np.float32], codec: str, layout: str) -> Path:
    """Write (N, channels) of sound with a picture. PyAV converts the samples to the encoder's format."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        stream = container.add_stream(codec, rate=RATE_HZ, layout=layout)
        assert isinstance(stream, AudioStream)
        if codec == "wavpack":  # its first format has 8 bits
            stream.codec_context.format = "fltp"
        for number in range(round(len(sound) / RATE_HZ * 25)):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(video.encode(picture))
        for first in range(0, len(sound), 960):
            packed = np.ascontiguousarray(sound[first : first + 960]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, first, Fraction(1, RATE_HZ)
            container.mux(stream.encode(frame))
        container.mux(video.encode(None))
        container.mux(stream.encode(None))
    return path


def hear_stream(path: Path) -> NDArray[np.float32]:
    """Return the sound (N,) in a stream's ring at the end."""
    with LiveReader(Address.parse(path), lossless=True) as reader:
        reader.start()
        while not reader.ended:
            reader.take(0.1)
        return reader.ring.read(0.0, SECONDS)


@pytest.mark.parametrize(
    ("channels", "codec", "layout"),
    [
        (2, "pcm_s16le", "stereo"),
        (6, "pcm_f32le", "5.1"),
        (8, "pcm_s16le", "7.1"),
        (8, "pcm_f32le", "8 channels"),
        (8, "wavpack", "7.1"),
        (9, "pcm_s16le", "ambisonic 2"),
        (16, "wavpack", "16 channels"),
        (24, "pcm_s16le", "22.2"),
        (64, "pcm_f32le", "64 channels"),
    ],
)
def test_mono_is_the_plain_average(channels: int, codec: str, layout: str, tmp_path: Path) -> None:
    """WavPack's decoder gives planar frames, the decoder of PCM packed ones. Both are lossless."""
    sound = tones(channels)
    path = write(tmp_path / "many.mkv", sound, codec, layout)
    mean = write(tmp_path / "mean.mkv", sound.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32),
                 "pcm_f32le", "mono")  # fmt: skip
    expected = read_audio(mean).samples
    assert np.abs(expected).max() > 0.05 and len(expected) == 16_000
    np.testing.assert_allclose(read_audio(path).samples, expected, atol=1e-4)
    np.testing.assert_allclose(hear_stream(path), expected, atol=1e-4)


def mix_by_ffmpeg(path: Path) -> NDArray[np.float32]:
    """Return the average sound (N,) of a film with eight channels, made by FFmpeg's ``pan`` filter."""
    graph, mixed = av.filter.Graph(), []
    with av.open(str(path)) as container:
        source = graph.add_abuffer(container.streams.audio[0])
        pan = graph.add("pan", "mono|" + "c0=" + "+".join(f"0.125*c{n}" for n in range(8)))
        chosen = graph.add("aformat", "sample_fmts=flt:sample_rates=16000:channel_layouts=mono")
        sink = graph.add("abuffersink")
        source.link_to(pan)
        pan.link_to(chosen)
        chosen.link_to(sink)
        graph.configure()
        for frame in (*container.decode(audio=0), None):
            graph.push(frame)
            while True:
                try:
                    pulled = graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
                assert isinstance(pulled, av.AudioFrame)
                mixed.append(pulled.to_ndarray()[0])
    return np.concatenate(mixed)


def test_a_film_of_eight_channels_sounds_as_ffmpeg_mixes_it(tmp_path: Path) -> None:
    film = write(tmp_path / "film.mp4", tones(8), "aac", "7.1")
    expected = mix_by_ffmpeg(film)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(read_audio(film).samples, expected, atol=1e-4)
