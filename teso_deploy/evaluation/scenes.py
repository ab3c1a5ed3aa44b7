"""Composed scenes: pictures of objects on a background, and their sounds.

A scene depends only on a random generator. The same generator state gives the same scene, so nothing is stored. Ground
truth: an object sounds in a window if it is audible for at least 0.3 s of it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from teso_deploy.evaluation.datasets.media_folder import SLICE_SAMPLES, MediaLibrary, Recording
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES

HEARD_SECONDS = 0.3
_HEARD_SLICES = int(HEARD_SECONDS * SAMPLE_RATE_HZ / SLICE_SAMPLES)


@dataclass(frozen=True, slots=True)
class Picture:
    """A composed frame.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        words: The words of its objects, from back to front.
        masks: (objects, H, W) uint8, the visible coverage of each object, 0 to 255.
    """

    image: NDArray[np.uint8]
    words: tuple[str, ...]
    masks: NDArray[np.uint8]

    def mask_of(self, words: Sequence[str]) -> NDArray[np.uint8]:
        """Return the coverage (H, W) of all objects of these words together."""
        chosen = [i for i, word in enumerate(self.words) if word in words]
        if not chosen:
            return np.zeros(self.image.shape[:2], np.uint8)
        return self.masks[chosen].max(axis=0)


def _choose_background(rng: np.random.Generator, library: MediaLibrary, size: tuple[int, int]) -> Image.Image:
    height, width = size
    image = library.backgrounds[rng.integers(len(library.backgrounds))]
    share = rng.uniform(0.5, 1.0)
    crop_w, crop_h = int(image.width * share), int(image.height * share)
    left, top = int(rng.integers(image.width - crop_w + 1)), int(rng.integers(image.height - crop_h + 1))
    box = (left, top, left + crop_w, top + crop_h)
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _jitter(rng: np.random.Generator, image: Image.Image, recolour: bool) -> Image.Image:
    """Vary brightness, contrast and colour of an RGB picture. ``recolour``: sometimes remove or swap its colours.

    A label has few pictures. The model must learn their shape, not that all of them are brown.
    """
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(0.6, 1.4))
    other = rng.random() if recolour else 1.0
    if other < 0.12:
        return image.convert("L").convert("RGB")
    if other < 0.24:
        bands = image.split()
        return Image.merge("RGB", [bands[band] for band in rng.permutation(3)])
    return image


def _cut_out(rng: np.random.Generator, picture: Image.Image, *, side: float, recolour: bool) -> Image.Image:
    """Scale a subject to ``side`` pixels, and flip, turn, colour and feather it."""
    # In training, also imitate a wide frame that was squeezed into a square.
    stretch = rng.uniform(0.6, 1.25) if recolour else rng.uniform(0.8, 1.25)
    scale = side / max(picture.size)
    size = (max(6, round(picture.width * scale * stretch)), max(6, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, expand=True)
    alpha = picture.getchannel("A")
    if rng.random() < 0.5:
        alpha = alpha.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    picture = _jitter(rng, picture.convert("RGB"), recolour)
    picture.putalpha(alpha)
    return picture


def _degrade(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Imitate cameras and codecs: light, blur, JPEG, noise."""
    image = _jitter(rng, image, recolour=True) if rng.random() < 0.5 else image
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.2:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(30, 90)))
        image = Image.open(buffer).convert("RGB")
    return image


def _cut_photograph(
    rng: np.random.Generator, photograph: Image.Image, size: tuple[int, int]
) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Cut out a random part of a photograph, with most of its subject and the surroundings."""
    height, width = size
    keep = rng.uniform(0.75, 1.0, 2)
    crop_w, crop_h = photograph.width * keep[0], photograph.height * keep[1]
    left, top = rng.uniform(0, photograph.width - crop_w), rng.uniform(0, photograph.height - crop_h)
    box = (left, top, left + crop_w, top + crop_h)
    # Resize colours and alpha separately. As RGBA, everything outside of the subject would turn black.
    parts = [
        part.resize((width, height), Image.Resampling.BILINEAR, box=box)
        for part in (photograph.convert("RGB"), photograph.getchannel("A"))
    ]
    if rng.random() < 0.5:
        parts = [part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in parts]
    return parts[0], np.asarray(parts[1])


def _choose_offset(rng: np.random.Generator, slack: int) -> int:
    """Choose where a subject starts along one side of the frame. A small part of it may be outside of the frame.

    A subject that is larger than the frame fills it.
    """
    return int(rng.uniform(-0.15, 1.15) * slack if slack > 0 else rng.uniform(0, 1) * slack)


def compose_picture(
    rng: np.random.Generator,
    library: MediaLibrary,
    words: Sequence[str],
    *,
    size: tuple[int, int],
    whole_rate: float = 0.0,
    degrade: bool = True,
    scale: tuple[float, float] = (0.25, 0.75),
) -> Picture:
    """Paste one picture of each word, in order, on a background.

    Later subjects are placed so that they hide as little as possible of earlier ones.

    Args:
        rng: The random generator, on which the picture depends.
        library: The media.
        words: The words, from back to front.
        size: Height and width of the picture in pixels.
        whole_rate: How often the first word is a photograph that replaces the background, if the library has one.
            Default: 0, never.
        degrade: If True, the picture is sometimes spoilt as cameras and codecs do, for training. Default: True.
        scale: The range of the longer side of a pasted subject, as a share of the frame's shorter side. Default: 0.25
            to 0.75.
    """
    height, width = size
    masks: list[NDArray[np.uint8]] = []
    words = list(words)
    rest = words
    if words and words[0] in library.whole and rng.random() < whole_rate:
        photographs = library.whole[words[0]]
        canvas, coverage = _cut_photograph(rng, photographs[rng.integers(len(photographs))], size)
        masks.append(coverage)
        rest = words[1:]
    else:
        canvas = _choose_background(rng, library, size)
    for word in rest:
        cutout = _cut_out(rng, library.draw_picture(rng, word), side=rng.uniform(*scale) * min(size), recolour=degrade)
        best: tuple[float, tuple[int, int]] = (-1.0, (0, 0))
        covered = np.maximum.reduce(masks) if masks else None
        for _ in range(1 if degrade and rng.random() < 0.3 else 8):
            left, top = _choose_offset(rng, width - cutout.width), _choose_offset(rng, height - cutout.height)
            if covered is None:
                best = (1.0, (left, top))
                break
            y0, y1 = max(top, 0), min(top + cutout.height, height)
            x0, x1 = max(left, 0), min(left + cutout.width, width)
            free = 1 - float(covered[y0:y1, x0:x1].mean()) / 255 if y1 > y0 and x1 > x0 else -1.0
            if free > best[0]:
                best = (free, (left, top))
            if free > 0.85:
                break
        layer = Image.new("L", (width, height))
        layer.paste(cutout.getchannel("A"), best[1])
        canvas.paste(cutout.convert("RGB"), best[1], cutout.getchannel("A"))
        coverage = np.asarray(layer)
        masks = [(m.astype(np.uint16) * (255 - coverage) // 255).astype(np.uint8) for m in masks]
        masks.append(coverage)
    if degrade:
        canvas = _degrade(rng, canvas)
    stacked = np.stack(masks) if masks else np.zeros((0, height, width), np.uint8)
    return Picture(np.asarray(canvas), tuple(words), stacked)


def cut_audible_excerpt(rng: np.random.Generator, recording: Recording) -> NDArray[np.float32]:
    """Cut a window from a recording at a random offset, so that the recording is audible for at least 0.3 s of it.

    The result is (15600,) float32, where the whole recording has peak 1. It is zero before the recording's start and
    after its end. If no window has 0.3 s of audible sound, the window has as much as possible.
    """
    window = WINDOW_SAMPLES // SLICE_SAMPLES
    silence = np.zeros(window, np.int64)
    total = np.concatenate(([0], np.cumsum(np.concatenate((silence, recording.heard, silence)))))
    heard = total[window:] - total[:-window]  # element i: the window that starts i - window slices into the recording
    starts = np.flatnonzero(heard >= min(_HEARD_SLICES, int(heard.max())))
    start = (int(rng.choice(starts)) - window) * SLICE_SAMPLES
    first, last = max(start, 0), min(start + WINDOW_SAMPLES, len(recording.samples))
    excerpt = np.zeros(WINDOW_SAMPLES, np.float32)
    excerpt[first - start : last - start] = recording.samples[first:last]
    return excerpt


def make_coloured_noise(rng: np.random.Generator, exponent: float) -> NDArray[np.float32]:
    """Make noise of power 1 / f^exponent (0 white, 1 pink, 2 brown), with RMS 1, (15600,)."""
    white = rng.standard_normal(WINDOW_SAMPLES)
    if exponent == 0:
        return white.astype(np.float32)
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (exponent / 2)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, WINDOW_SAMPLES)
    return (noise / noise.std()).astype(np.float32)


def measure_rms(samples: NDArray[np.float32]) -> float:
    """Return the RMS of the audible part: the samples above a hundredth of the peak."""
    loud = samples[np.abs(samples) > 0.01 * (np.abs(samples).max() + 1e-9)]
    return float(np.sqrt((loud.astype(np.float64) ** 2).mean())) if len(loud) else 0.0


def _resample(rng: np.random.Generator, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make a sound faster and higher, or slower and lower, by up to a quarter. Its length does not change."""
    rate = rng.uniform(0.8, 1.25)
    places = np.arange(WINDOW_SAMPLES) * rate
    return np.interp(places, np.arange(WINDOW_SAMPLES), samples, right=0.0).astype(np.float32)


def _equalise(rng: np.random.Generator, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply a random gentle filter, as rooms and microphones do."""
    spectrum = np.fft.rfft(samples)
    points = rng.uniform(-9, 9, 6)
    curve = np.interp(np.linspace(0, 1, len(spectrum)) ** 0.5, np.linspace(0, 1, 6), points)
    return np.fft.irfft(spectrum * 10 ** (curve / 20), len(samples)).astype(np.float32)


def _reverberate(rng: np.random.Generator, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Imitate a room: convolve the sound with decaying noise, and add the result."""
    length = int(rng.uniform(0.05, 0.4) * SAMPLE_RATE_HZ)
    tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    size = len(samples) + length
    echo = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)]
    loudness = np.sqrt((samples.astype(np.float64) ** 2).mean() / ((echo**2).mean() + 1e-12))
    return (samples + rng.uniform(0.1, 0.7) * loudness * echo).astype(np.float32)


def compose_sound(
    rng: np.random.Generator,
    library: MediaLibrary,
    words: Sequence[str],
    *,
    noise_snr_db: float | None = None,
    vary: bool = True,
) -> NDArray[np.float32]:
    """Mix a window in which every word is audible. Without words it is silent, except for the noise.

    Args:
        rng: The random generator, on which the sound depends.
        library: The media.
        words: The words that sound.
        noise_snr_db: The ratio of sound to added noise in dB. Default: no noise.
        vary: If True, pitch, colour and room of each sound vary a little, for training. Default: True.

    Returns:
        (15600,) float32 in [-1, 1].
    """
    level = 10 ** (rng.uniform(-32, -12) / 20)
    mix = np.zeros(WINDOW_SAMPLES, np.float32)
    for word in words:
        choices = library.sounds[word]
        part = cut_audible_excerpt(rng, choices[rng.integers(len(choices))])
        if vary:
            part = _resample(rng, part) if rng.random() < 0.5 else part
            part = _equalise(rng, part) if rng.random() < 0.7 else part
            part = _reverberate(rng, part) if rng.random() < 0.3 else part
        mix += part * np.float32(level * 10 ** (rng.uniform(-4, 4) / 20) / (measure_rms(part) + 1e-6))
    if noise_snr_db is not None:
        loudness = measure_rms(mix) if words else level
        mix += make_coloured_noise(rng, float(rng.choice([0.0, 1.0, 2.0]))) * np.float32(
            loudness * 10 ** (-noise_snr_db / 20)
        )
    peak = float(np.abs(mix).max())
    return mix / np.float32(peak) if peak > 1 else mix
