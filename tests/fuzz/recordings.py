"""Valid but odd recordings: times that leap, and rare sizes, rates and channels."""

from __future__ import annotations

import io
import random
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.packet import Packet

#: By how much the times of a track leap, in seconds.
_LEAPS = (0.3, 2.0, 45.0, 3600.0, 1e5, 1e7, 1e9, -0.2, -5.0, -3600.0)
_SIZES = ((1, 1), (2, 2), (2, 600), (4000, 3), (3, 4000), (16384, 16), (16, 16384), (33, 47), (1080, 1920))
_RATES = (Fraction(1, 100), Fraction(1), Fraction(30000, 1001), Fraction(240), Fraction(1000), Fraction(90_000))
_SOUND_RATES = (1, 100, 4000, 8000, 11_025, 22_050, 96_000, 192_000, 384_000)
_ODD_SAMPLES = (float("nan"), float("inf"), -float("inf"), 1e38, 40_000.0, 1e-40)


def move_times(draw: random.Random, content: bytes, name: str) -> bytes:
    """Write the packets again, with the times of a track leaping at one of them. If that fails, return the content."""
    stream, leap, sound_too = io.BytesIO(), draw.choice(_LEAPS), draw.random() < 0.5
    first = draw.randint(0, 6)
    ending = draw.choice((name.rpartition(".")[2], "mkv", "nut"))
    try:
        with (
            av.open(io.BytesIO(content)) as given,
            av.open(stream, "w", format={"ts": "mpegts", "mkv": "matroska"}.get(ending, ending)) as container,
        ):
            tracks = {one.index: container.add_stream_from_template(one) for one in given.streams}
            for number, packet in enumerate(given.demux()):
                if packet.dts is None or packet.pts is None:
                    continue
                is_moved = number >= first and (sound_too or packet.stream.type == "video")
                ticks = round(leap / packet.time_base) if is_moved else 0
                copy: Packet[Any] = Packet(bytes(packet))
                copy.pts, copy.dts, copy.time_base = packet.pts + ticks, packet.dts + ticks, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, tracks[packet.stream.index]
                container.mux(copy)
    except (av.FFmpegError, ValueError, OverflowError):
        return content
    return stream.getvalue()


def record_picture(draw: random.Random) -> bytes:
    """Write a few pictures of an odd size at an odd rate, or at a common rate if the format requires it."""
    height, width = draw.choice(_SIZES)
    rate, name, codec = draw.choice(_RATES), draw.choice(("matroska", "nut")), draw.choice(("ffv1", "rawvideo"))
    try:
        return _record(height, width, rate, name, codec)
    except av.FFmpegError:
        return _record(height, width, Fraction(25), "matroska", "ffv1")


def _record(height: int, width: int, rate: Fraction, name: str, codec: str) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format=name) as container:
        video: Any = container.add_stream(codec, rate=rate)
        video.height, video.width = height, width
        video.pix_fmt = "bgr0" if video.codec_context.name == "ffv1" else "rgb24"
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 40 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return stream.getvalue()


def record_sound(draw: random.Random) -> bytes:
    """A WAV of floats with an odd rate, odd channels, or samples that are odd numbers."""
    channels, rate = draw.choice((1, 1, 2, 3, 8, 16, 64)), draw.choice(_SOUND_RATES)
    count = min(max(rate // 2, 8), 48_000)
    samples = np.sin(np.arange(count * channels, dtype=np.float32) / 20) * np.float32(0.3)
    for _ in range(draw.choice((0, 1, 1, 50))):
        samples[draw.randrange(len(samples))] = draw.choice(_ODD_SAMPLES)
    data = samples.astype("<f4").tobytes()
    kind = struct.pack("<HHIIHH", 3, channels, rate, rate * channels * 4 % 2**32, channels * 4 % 2**16, 32)
    sizes = struct.pack("<I", 36 + len(data)), struct.pack("<I", len(kind)), struct.pack("<I", len(data))
    return b"RIFF" + sizes[0] + b"WAVEfmt " + sizes[1] + kind + b"data" + sizes[2] + data


def turn_picture(draw: random.Random, content: bytes) -> bytes:
    """Give an MP4 another display matrix, valid or not."""
    place = content.find(b"tkhd")
    if place < 0:
        return content
    one, rest = 1 << 16, 1 << 30
    values = [draw.choice((0, one, -one, one, 2 * one, 1, 2**31 - 1)) for _ in range(9)]
    if draw.random() < 0.6:
        a, b, c, d = draw.choice(((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, 1), (0, 1, 1, 0), (0, -1, -1, 0)))
        values = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, rest]
    matrix = place + 4 + 40
    return content[:matrix] + struct.pack(">9i", *values) + content[matrix + 36 :]
