"""Recordings with flashes and clicks at known times, made with PyAV itself and not with our writer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from numpy.typing import NDArray

from teso_deploy.media.container import convert_to_seconds
from teso_deploy.media.reader import VideoReader

SIZE = (64, 96)
RATE_HZ = 48_000
CLICK_SECONDS = 0.05
_TICK = Fraction(1, 90_000)


def click_track(seconds: float, clicks: Sequence[float], rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    """Return silence (N,) with tones of 50 ms that start at ``clicks``, in seconds."""
    sound = np.zeros(round(seconds * rate_hz), np.float32)
    tone = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(round(CLICK_SECONDS * rate_hz)) / rate_hz)
    for at in clicks:
        first = round(at * rate_hz)
        sound[first : first + len(tone)] = tone[: len(sound) - first]
    return sound


def record(
    path: Path,
    times: Sequence[float],
    *,
    flashes: Sequence[float] = (),
    sound: NDArray[np.float32] | None = None,
    sound_start: float = 0.0,
    left_out: Sequence[tuple[float, float]] = (),
    rate_hz: int = RATE_HZ,
    audio_codec: str = "aac",
    size: tuple[int, int] = SIZE,
) -> Path:
    """Write a dark picture at each of ``times`` (seconds), white for 50 ms from each of ``flashes``.

    ``sound`` (N,) mono starts at ``sound_start``. Packets that start within a span of ``left_out`` are not written, as
    if the recorder had dropped them.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = _TICK
        video.options = {"crf": "28", "preset": "ultrafast", "g": "10"}
        audio: AudioStream | None = None
        if sound is not None:
            stream = container.add_stream(audio_codec, rate=rate_hz, layout="mono")
            assert isinstance(stream, AudioStream)
            audio = stream
        packets: list[Packet[Any]] = []
        for at in times:
            image = np.full((*size, 3), 20, np.uint8)
            image[:20, :30] = (250, 0, 0)  # the upper left corner is red
            if any(flash - 1e-6 <= at < flash + CLICK_SECONDS - 1e-6 for flash in flashes):
                image[24:] = 255
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = round(at / _TICK), _TICK
            packets += video.encode(picture)
        packets += video.encode(None)
        if audio is not None and sound is not None:
            block = audio.codec_context.frame_size or 1024
            heard: list[Packet[Any]] = []
            for first in range(0, len(sound), block):
                piece = av.AudioFrame.from_ndarray(sound[None, first : first + block], format="fltp", layout="mono")
                piece.sample_rate, piece.time_base = rate_hz, Fraction(1, rate_hz)
                piece.pts = first + round(sound_start * rate_hz)
                heard += audio.encode(piece)
            heard += audio.encode(None)
            packets += [packet for packet in heard if not any(a <= _start(packet) < b for a, b in left_out)]
        for packet in sorted(packets, key=_start):
            container.mux(packet)
    return path


def _start(packet: Packet[Any]) -> float:
    stamp = packet.dts if packet.dts is not None else packet.pts
    seconds = convert_to_seconds(stamp, packet.time_base)
    return float("inf") if seconds is None else seconds


def shifted(path: Path, out: Path, seconds: float, audio_tracks: int = 1) -> Path:
    """Write the same packets ``seconds`` later, as a transport stream, whose stamps have 33 bits."""
    with av.open(str(path)) as given, av.open(str(out), "w", format="mpegts") as container:
        tracks: dict[int, list[Any]] = {}
        tracks[given.streams.video[0].index] = [container.add_stream_from_template(given.streams.video[0])]
        for stream in given.streams.audio:
            tracks[stream.index] = [container.add_stream_from_template(stream) for _ in range(audio_tracks)]
        for packet in given.demux():
            if packet.dts is None or packet.pts is None:
                continue
            ticks = round(seconds / packet.time_base)
            content, pts, dts, base = bytes(packet), packet.pts + ticks, packet.dts + ticks, packet.time_base
            for track in tracks[packet.stream.index]:
                copy = Packet(content)
                copy.pts, copy.dts, copy.time_base, copy.stream = pts, dts, base, track
                copy.is_keyframe = packet.is_keyframe
                container.mux(copy)
    return out


def turn(path: Path, counterclockwise_degrees: int) -> Path:
    """Write a display matrix into the first track of an MP4, as a phone that is held sideways does."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    one, rest = 1 << 16, 1 << 30
    # (a, b, c, d): a point (x, y) moves to (a x + c y, b x + d y), with y pointing down.
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}[counterclockwise_degrees]
    content[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, rest)
    path.write_bytes(content)
    return path


def flash_times(path: Path) -> list[float]:
    """Return when the picture turns white, in seconds, as our reader reports it."""
    times, was_bright = [], False
    with VideoReader(path) as reader:
        for frame in reader:
            is_bright = float(frame.image[frame.image.shape[0] // 2 :].mean()) > 128
            if is_bright and not was_bright:
                times.append(frame.pts_seconds)
            was_bright = is_bright
    return times


def click_times(samples: NDArray[np.float32], start_seconds: float = 0.0, rate_hz: int = 16_000) -> list[float]:
    """Return when tones of 50 ms start in (N,) samples, in seconds, to about a millisecond."""
    window = rate_hz // 1000
    loud = np.convolve(np.abs(samples) > 0.2, np.ones(30 * window), "full")[: len(samples)] > 0
    onsets = np.flatnonzero(loud & ~np.concatenate(([False], loud[:-1])))
    return [start_seconds + int(onset) / rate_hz for onset in onsets]
