"""Small videos for tests, made with PyAV itself and not with our writer."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def make_clip(
    path: Path,
    *,
    seconds: float = 1.0,
    fps: int = 12,
    size: tuple[int, int] = (72, 96),
    has_video: bool = True,
    has_audio: bool = True,
    hertz: float = 440.0,
) -> Path:
    """Write a square that moves over grey, in H.264 of ``size`` (height, width), and a tone in AAC at 44.1 kHz."""
    height, width = size
    with av.open(str(path), "w") as container:
        if has_video:
            video = container.add_stream("libx264", rate=Fraction(fps))
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        if has_audio:
            audio = container.add_stream("aac", rate=44_100, layout="mono")
        if has_video:
            for i in range(round(seconds * fps)):
                image = np.full((height, width, 3), 90, np.uint8)
                left = 4 + i % (width // 2)
                image[20:50, left : left + 30] = (220, 40, 40)
                picture = av.VideoFrame.from_ndarray(image, format="rgb24")
                picture.pts, picture.time_base = i, Fraction(1, fps)
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        if has_audio:
            times = np.arange(int(seconds * 44_100)) / 44_100
            tone = (0.3 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)[None]
            for start in range(0, tone.shape[1], 1024):
                sound = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = 44_100, start, Fraction(1, 44_100)
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path
