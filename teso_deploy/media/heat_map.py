"""Draw probabilities on a picture, with a scale that says which colour means what."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from teso_deploy.media.overlay import find_outline, fit_text, load_font
from teso_deploy.types import Segmentation

Picture = NDArray[np.uint8]
#: OKLCh of 0, 1/4 … 1: lightness, chroma, hue in degrees. Lightness rises evenly, so that equal steps of probability
#: look equal, also in grey and to the colour-blind.
_LIGHTNESS = (0.14, 0.345, 0.55, 0.755, 0.96)
_CHROMA = (0.10, 0.20, 0.24, 0.18, 0.12)
_HUE = (280.0, 310.0, 378.0, 422.0, 468.0)
#: OKLab → cube roots of cone responses → linear sRGB (Björn Ottosson, 2020).
_TO_CONES = np.array(
    ((1, 0.3963377774, 0.2158037573), (1, -0.1055613458, -0.0638541728), (1, -0.0894841775, -1.2914855480))
)
_TO_RGB = np.array(
    (
        (4.0767416621, -3.3077115913, 0.2309699292),
        (-1.2684380046, 2.6097574011, -0.3413193965),
        (-0.0041960863, -0.7034186147, 1.7076147010),
    )
)
#: The variants of a frame in order: with cues or not, with sound or not. A method without text has the last two.
VARIANTS = ("cues-sound", "cues-muted", "no-cues-sound", "no-cues-muted", "sound", "muted")
_DARK, _TEXT = (18, 20, 24), (235, 238, 242)
#: Share of the colour in the mix with the picture, at probability 0 and 1.
_FAINTEST, _STRONGEST = 0.45, 0.85


def _convert_to_linear(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    # From OKLCh (N,) to linear sRGB (N, 3).
    angle = np.radians(hue)
    lab = np.stack((lightness, chroma * np.cos(angle), chroma * np.sin(angle)), axis=1)
    linear: NDArray[np.float64] = (lab @ _TO_CONES.T) ** 3 @ _TO_RGB.T
    return linear


@functools.lru_cache(maxsize=1)
def make_color_map() -> NDArray[np.uint8]:
    """Return the colours (256, 3) uint8 RGB of the probabilities 0 … 1: dark blue, purple, red, orange, pale yellow."""
    places, known = np.linspace(0, 1, 256), np.linspace(0, 1, len(_LIGHTNESS))
    lightness, chroma, hue = (np.interp(places, known, values) for values in (_LIGHTNESS, _CHROMA, _HUE))
    low, high = np.zeros_like(chroma), chroma
    for _ in range(20):  # bisect for the highest chroma that a screen can show
        middle = (low + high) / 2
        linear = _convert_to_linear(lightness, middle, hue)
        is_shown = ((linear >= 0) & (linear <= 1)).all(axis=1)
        low, high = np.where(is_shown, middle, low), np.where(is_shown, high, middle)
    linear = _convert_to_linear(lightness, low, hue).clip(0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (coded * 255).round().astype(np.uint8)


def color_probabilities(probability: NDArray[np.float32]) -> Picture:
    """Return the colours (H, W, 3) of probabilities (H, W) in [0, 1]. NaN has the colour of 0."""
    return make_color_map()[(np.nan_to_num(probability) * np.float32(255)).round().astype(np.uint8)]


def draw_heat_map(
    picture: Picture, probability: NDArray[np.float32], labels: NDArray[np.uint8] | None = None
) -> Picture:
    """Draw probabilities on a picture.

    The picture becomes grey, so that its colours can't be taken for probabilities. High probabilities cover more of it.

    Args:
        picture: (H, W, 3) uint8 RGB.
        probability: (H, W) float32 in [0, 1].
        labels: (H, W) uint8; what reaches the threshold is outlined in white. Default: no outline.

    Returns:
        (H, W, 3) uint8.
    """
    grey = picture @ np.array((0.299, 0.587, 0.114), np.float32)
    share = (_FAINTEST + (_STRONGEST - _FAINTEST) * np.nan_to_num(probability))[..., None]
    mixed: Picture = (grey[..., None] * (1 - share) + color_probabilities(probability) * share).astype(np.uint8)
    if labels is not None:
        mixed[find_outline(labels > 0, max(1, round(min(labels.shape) / 240)))] = 255
    return mixed


def add_scale(picture: Picture, text: str) -> Picture:
    """Add a strip below a picture (H, W, 3): what it shows, and the scale of the colours from 0 to 1."""
    height, width = picture.shape[:2]
    return np.concatenate((picture, draw_scale(text, width, size=max(11, round(min(height, width) / 22)))))


def draw_scale(text: str, width: int, *, size: int) -> Picture:
    """Draw a text, and to the right of it the scale of the colours from 0 to 1.

    Args:
        text: What the colours show. It is cut where it would be too wide.
        width: In pixels.
        size: Font size, in pixels.

    Returns:
        (H, width, 3) uint8.
    """
    font, gap = load_font(size), max(3, size // 3)
    bar = min(max(4 * size, 64), max(width // 3, 1))
    digits = round(font.getlength("0")) + gap
    strip = Image.new("RGB", (width, size + 2 * gap), _DARK)
    pen = ImageDraw.Draw(strip)
    left = width - bar - digits - gap
    pen.text((gap, strip.height / 2), fit_text(text, size, max(left - digits - 3 * gap, 0)), _TEXT, font, anchor="lm")
    pen.text((left - digits, strip.height / 2), "0", _TEXT, font, anchor="lm")
    pen.text((width - digits, strip.height / 2), "1", _TEXT, font, anchor="lm")
    made = np.array(strip)
    ramp = color_probabilities(np.linspace(0, 1, bar, dtype=np.float32)[None])
    made[gap : gap + size, max(left, 0) : max(left, 0) + bar] = ramp
    return made


def describe_variant(name: str, found: Segmentation) -> str:
    """Describe a variant (:data:`VARIANTS`) for the line below its picture: ``muted, cues: dog, horse``."""
    sound = "muted" if name.endswith("muted") else "with sound"
    if name.startswith("no-cues"):
        return f"{sound}, no cues"
    return sound if found.cues is None else f"{sound}, cues: {', '.join(found.cues.names)}"
