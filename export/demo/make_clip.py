"""Composes the demo clip: horses and a dog; the horses are heard, then a cow that nobody sees, then both.

    python export/demo/make_clip.py --data DIR [--out export/demo/]

DIR holds ``real/farm/`` (photographs and masks) and ``audio/`` (recordings). Writes
``clip.mp4`` and ``clip.json``: what is ``visible``, and the spans [start, end] in seconds in
which each thing is ``heard``. Sources and licences: ``NOTICES.md``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

RATE_HZ = 16_000
FPS = 25
DURATION_SECONDS = 10.0
HEIGHT = 360
#: A 20 ms slice is heard when it is no more than this below the recording's loudest.
HEARD_RANGE_DB = 30.0
#: Pauses inside one object's sound that are shorter than this don't end its span.
JOIN_SECONDS = 0.5
#: Faint noise of the place, white noise with its treble taken away; digital silence would sound cut off.
ROOM_NOISE_DBFS = -62.0


@dataclass(frozen=True)
class Take:
    """A stretch [start, end] of a recording played at ``at`` s, ``speed`` times as fast (and as high)."""

    recording: str
    at: float
    start: float
    end: float
    speed: float = 1.0
    gain: float = 1.0


@dataclass(frozen=True)
class Scene:
    """A photograph with the subject of another pasted in.

    ``scale``: the subject's size, pixels of the scene for a pixel of its photograph. ``feet``:
    where the middle of its feet stands, pixels of the scene. ``view_from``, ``view_to``:
    (left, top, width) of the picture's part that is shown at the start and at the end.
    """

    photograph: str
    subject: str
    scale: float
    feet: tuple[float, float]
    view_from: tuple[float, float, float]
    view_to: tuple[float, float, float]
    aspect: Fraction
    takes: dict[str, tuple[Take, ...]]


MOO = "audio/cow/0ad_003.ogg"
NEIGH, SNORT = "audio/horse/0ad_019.ogg", "audio/horse/0ad_013.ogg"
SCENE = Scene(
    photograph="horse",
    subject="dog",
    scale=0.33,
    feet=(862, 636),
    view_from=(139, 0, 885),
    view_to=(170, 24, 850),
    aspect=Fraction(4, 3),
    takes={
        "horse": (
            Take(NEIGH, 0.3, 0.25, 2.05),
            Take(NEIGH, 6.0, 0.25, 2.05, 0.95),
            Take(SNORT, 7.8, 0.3, 1.27, 0.97),
        ),
        "cow": (
            Take(MOO, 3.0, 0.3, 1.95),
            Take(MOO, 3.9, 0.35, 1.95, 0.93),
            Take(MOO, 5.85, 0.3, 1.95, 0.96, 0.5),
            Take(MOO, 7.2, 0.35, 1.95, 0.9, 0.5),
        ),
    },
)


def compose_picture(data: Path, scene: Scene) -> Image.Image:
    """The photograph with the subject standing in it, RGB at the photograph's size."""
    farm = data / "real" / "farm"
    picture = Image.open(farm / f"{scene.photograph}.webp").convert("RGB")
    subject = Image.open(farm / f"{scene.subject}.webp").convert("RGB")
    # The mask is a little too large: its outermost pixels show the subject's own meadow.
    mask = Image.open(farm / f"{scene.subject}_mask.png").convert("L").point(lambda value: 255 if value > 127 else 0)
    mask = mask.filter(ImageFilter.MinFilter(3)).resize(subject.size, Image.Resampling.BICUBIC)
    box = mask.point(lambda value: 255 if value > 127 else 0).getbbox()
    assert box is not None
    size = (round((box[2] - box[0]) * scene.scale), round((box[3] - box[1]) * scene.scale))
    subject = subject.crop(box).resize(size, Image.Resampling.LANCZOS)
    mask = mask.crop(box).resize(size, Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(0.6))

    left, top = round(scene.feet[0] - size[0] / 2), round(scene.feet[1] - size[1])
    colours = np.asarray(subject, np.float32)
    alpha = np.asarray(mask, np.float32) / 255 * _behind_grass(size)
    canvas = np.asarray(picture, np.float32) * (1 - _shadow(picture.size, (left, top), size))[..., None]
    place = canvas[top : top + size[1], left : left + size[0]]
    height, width = place.shape[:2]  # what lies outside of the photograph is cut off
    place += alpha[:height, :width, None] * (colours[:height, :width] - place)
    return Image.fromarray(np.clip(canvas, 0, 255).round().astype(np.uint8))


def _behind_grass(size: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W) how much of the subject is in front of the grass: blades hide the lowest part of its paws."""
    width, height = size
    blades = np.random.default_rng(3).uniform(2, 14, width)
    blades = np.convolve(blades, [0.3, 0.4, 0.3], mode="same")
    above_ground = height - 1 - np.arange(height)[:, None]
    return np.clip((above_ground - blades + 2) / 3, 0, 1).astype(np.float32)


def _shadow(canvas: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W) share of the light that the subject takes from the ground under it."""
    (left, top), (width, height) = corner, size
    shadow = Image.new("L", canvas, 0)
    draw = ImageDraw.Draw(shadow)
    ground = top + height - 0.03 * height

    def across(share: float) -> float:
        return left + width * share

    def ellipse(middle: float, wide: float, tall: float, darkness: int, lift: float = 0.0) -> None:
        x, y = across(middle), ground - lift * height
        draw.ellipse((x - wide * width, y - tall * height, x + wide * width, y + tall * height), fill=darkness)

    ellipse(0.5, 0.38, 0.05, 95, lift=0.03)
    soft = np.asarray(shadow.filter(ImageFilter.GaussianBlur(width * 0.022)), np.float32)
    draw.rectangle((0, 0, *canvas), fill=0)
    for middle, lift in ((0.25, 0.0), (0.57, 0.04), (0.67, 0.0)):
        ellipse(middle, 0.065, 0.022, 150, lift)
    contact = np.asarray(shadow.filter(ImageFilter.GaussianBlur(width * 0.012)), np.float32)
    return np.asarray(np.maximum(soft, contact) / 255, np.float32)


def view(picture: Image.Image, scene: Scene, share: float) -> Image.Image:
    """What the camera shows at ``share`` (0 … 1) of the clip: a slow move that starts and stops gently."""
    eased = share * share * (3 - 2 * share)
    left, top, width = (a + eased * (b - a) for a, b in zip(scene.view_from, scene.view_to, strict=True))
    size = (round(HEIGHT * scene.aspect / 2) * 2, HEIGHT)
    box = (left, top, min(left + width, picture.width), min(top + width / float(scene.aspect), picture.height))
    return picture.resize(size, Image.Resampling.LANCZOS, box=box)


def read_sound(path: Path) -> NDArray[np.float32]:
    """(N,) float32, 16 kHz mono, peak 1."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
        parts = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    samples = np.concatenate(parts).astype(np.float32)
    return np.asarray(samples / np.abs(samples).max(), np.float32)


def play(data: Path, takes: tuple[Take, ...]) -> NDArray[np.float32]:
    """One object's sound over the whole clip, (N,) float32."""
    track = np.zeros(round(DURATION_SECONDS * RATE_HZ), np.float32)
    for take in takes:
        sound = read_sound(data / take.recording)[round(take.start * RATE_HZ) : round(take.end * RATE_HZ)]
        times = np.arange(0, len(sound) - 1, take.speed)
        sound = take.gain * np.interp(times, np.arange(len(sound)), sound).astype(np.float32)
        ramp = np.minimum(np.arange(len(sound)), np.arange(len(sound))[::-1]) / (0.03 * RATE_HZ)
        at = round(take.at * RATE_HZ)
        track[at : at + len(sound)] += sound * np.minimum(ramp, 1).astype(np.float32)
    return track


def heard_spans(track: NDArray[np.float32]) -> list[list[float]]:
    """[[start, end], …] in seconds in which a track is heard."""
    slices = track.reshape(-1, RATE_HZ // 50)
    loudness = np.sqrt((slices**2).mean(axis=1))
    spans: list[list[float]] = []
    for index in np.flatnonzero(loudness > loudness.max() * 10 ** (-HEARD_RANGE_DB / 20)):
        start, end = round(index / 50, 2), round((index + 1) / 50, 2)
        if spans and start - spans[-1][1] < JOIN_SECONDS:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    return spans


def room_noise(samples: int) -> NDArray[np.float32]:
    """(N,) float32, a soft rush without treble."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(samples))
    spectrum /= np.sqrt(1 + (np.fft.rfftfreq(samples, 1 / RATE_HZ) / 400) ** 2)
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / noise.std() * 10 ** (ROOM_NOISE_DBFS / 20), np.float32)


def write_clip(path: Path, picture: Image.Image, scene: Scene, sound: NDArray[np.float32]) -> None:
    """H.264 + AAC; the sound is muxed beside the pictures."""
    frames = round(DURATION_SECONDS * FPS)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "25", "preset": "slow", "g": str(FPS)})
        video.pix_fmt = "yuv420p"
        video.width, video.height = view(picture, scene, 0).size
        audio = container.add_stream("aac", rate=48_000, layout="mono", bit_rate=96_000)
        block = len(sound) // frames
        for index in range(frames):
            image = view(picture, scene, index / (frames - 1))
            container.mux(video.encode(av.VideoFrame.from_image(image)))
            samples = sound[None, index * block : (index + 1) * block]
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="flt", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = RATE_HZ, index * block, Fraction(1, RATE_HZ)
            container.mux(audio.encode(heard))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def main() -> None:
    """Compose the clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with real/farm/ and audio/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()

    scene = SCENE
    tracks = {name: play(arguments.data, takes) for name, takes in scene.takes.items()}
    mix = sum(tracks.values(), np.zeros(1, np.float32))
    mix = 0.8 * mix / np.abs(mix).max()
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / "clip"
    write_clip(stem.with_suffix(".mp4"), compose_picture(arguments.data, scene), scene, mix + room_noise(len(mix)))
    spans = {name: heard_spans(track) for name, track in tracks.items()}
    script = {"visible": [scene.photograph, scene.subject], "heard": spans}
    stem.with_suffix(".json").write_text(json.dumps(script) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
