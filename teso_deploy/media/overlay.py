"""Draw what a run found on the frame: masks with names, the cues, the sound."""

from __future__ import annotations

import colorsys
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from teso_deploy.media.audio import WINDOW_SECONDS, Sound
from teso_deploy.outputs import write_whole
from teso_deploy.text import to_printable
from teso_deploy.types import Frame, Segmentation

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_DARK: Color = (18, 20, 24)
_WAVE: Color = (92, 104, 122)
_HEARD: Color = (120, 220, 160)
_TEXT: Color = (235, 238, 242)
_FAINT: Color = (130, 138, 150)
_FILL = 0.45


@functools.lru_cache(maxsize=1)
def make_palette() -> NDArray[np.uint8]:
    """Return the colours of the labels (256, 3) uint8 RGB: black for 0, then bright colours that differ well."""
    colors = np.zeros((256, 3), np.uint8)
    for index in range(1, 256):
        hue = (0.02 + index * 0.618034) % 1  # the golden ratio puts neighbours far apart
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 if index % 2 else 0.55, 1.0)
        colors[index] = (round(red * 255), round(green * 255), round(blue * 255))
    return colors


def save_mask(path: Path, labels: NDArray[np.uint8], *, shown: Path | None = None) -> None:
    """Write labels as an 8-bit PNG with the palette.

    Args:
        path: The PNG.
        labels: (H, W) uint8.
        shown: The path that errors name. Default: ``path``.

    Raises:
        OutputError: The PNG can't be written.
    """
    image = Image.fromarray(labels, mode="P")
    image.putpalette(make_palette().tobytes())
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    write_whole(path, content.getvalue(), shown=shown)


@functools.lru_cache(maxsize=8)
def load_font(size: int) -> Font:
    """Return Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size)


def fit_text(text: str, size: int, width: int) -> str:
    """Return a text as one printable line that is cut where it would be too wide.

    Args:
        text: The text, of any origin.
        size: Font size in pixels.
        width: The most pixels that the line may take.
    """
    text, font = to_printable(text), load_font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def find_outline(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return the outermost pixels of a mask. A mask that touches the border of the picture has no outline there."""
    inner = mask
    for _ in range(pixels):
        outer, inner = inner, inner.copy()
        inner[1:] &= outer[:-1]
        inner[:-1] &= outer[1:]
        inner[:, 1:] &= outer[:, :-1]
        inner[:, :-1] &= outer[:, 1:]
    return mask & ~inner


def tint_masks(image: NDArray[np.uint8], labels: NDArray[np.uint8], scale: float) -> list[tuple[int, int, int]]:
    """Tint the masks on a picture in place.

    Args:
        image: (H, W, 3) uint8, which is changed.
        labels: (H, W) uint8.
        scale: Width of the outlines, for 1.5 pixels.

    Returns:
        (label, x, y) of where the name of each label goes.
    """
    places = []
    colors = make_palette()
    for label in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:]) + 1:
        whole = labels == label
        rows, columns = (np.flatnonzero(whole.any(axis)) for axis in (1, 0))
        # Add one pixel on each side: the outline depends on the neighbours of the mask's pixels.
        box = tuple(slice(max(int(along[0]) - 1, 0), int(along[-1]) + 2) for along in (rows, columns))
        mask, part = whole[box], image[box]
        tinted = part * np.float32(1 - _FILL) + colors[label] * np.float32(_FILL)
        np.copyto(part, tinted.astype(np.uint8), where=mask[..., None])
        part[find_outline(mask, max(1, round(1.5 * scale)))] = colors[label]
        per_column = mask.sum(axis=0).cumsum()
        if per_column[-1] >= 0.0005 * labels.size:
            middle = box[1].start + int(np.searchsorted(per_column, per_column[-1] / 2))
            places.append((int(label), middle, int(rows[0])))
    return places


class Overlay:
    """Draws on frames of one file; a strip below the picture shows all of its sound.

    Args:
        classes: Names of the labels from 1.
        track: The sound that the model hears. None: the strip stays empty.
        duration_seconds: Duration of the file, for the strip with the sound.
    """

    def __init__(self, classes: Sequence[str], track: Sound | None, duration_seconds: float) -> None:
        self.classes = tuple(classes)
        self._track = track
        self._from_seconds, self._seconds = 0.0, max(duration_seconds, 0.1)
        self._strips: dict[int, NDArray[np.uint8]] = {}

    def _strip(self, width: int, height: int) -> NDArray[np.uint8]:
        """Return the waveform, which is drawn once: it does not change."""
        if width not in self._strips:
            self._strips[width] = self._draw_waveform(width, height)
        return self._strips[width]

    def _draw_waveform(self, width: int, height: int) -> NDArray[np.uint8]:
        strip = np.full((height, width, 3), _DARK, np.uint8)
        if self._track is not None and self._track.end_seconds is not None:
            peaks = self._track.read_peaks(self._from_seconds, self._from_seconds + self._seconds, width)
            reach = np.maximum((peaks**0.6 * (height / 2 - 2)).round(), 0.5)
            rows = np.abs(np.arange(height) - (height - 1) / 2)[:, None]
            strip[rows <= reach[None]] = _WAVE
        return strip

    def draw(self, frame: Frame, segmentation: Segmentation) -> NDArray[np.uint8]:
        """Return the frame with masks, names and cues, and the strip of sound below it: (H', W, 3) uint8."""
        image = frame.image.copy()
        height, width = image.shape[:2]
        scale = max(min(height, width) / 360, 0.5)
        places = tint_masks(image, segmentation.labels, scale)
        strip_height = round(44 * scale)
        strip = self._strip(width, strip_height).copy()
        self._mark_window(strip, segmentation)
        canvas = Image.fromarray(np.concatenate((image, strip)))
        pen = ImageDraw.Draw(canvas, "RGBA")
        font = load_font(max(9, round(15 * scale)))
        for label, x, top in places:
            red, green, blue = make_palette()[label].tolist()
            name = self.classes[label - 1]
            self._tag(
                pen,
                name,
                (x, max(top - round(10 * scale), 0)),
                font=font,
                color=(red, green, blue),
                width=width,
                scale=scale,
            )
        self._draw_cues(pen, segmentation, font=font, width=width, scale=scale)
        self._mark_now(pen, frame.pts_seconds, width=width, top=height, height=strip_height)
        return np.asarray(canvas)

    def _mark_window(self, strip: NDArray[np.uint8], segmentation: Segmentation) -> None:
        """Brighten the window of sound in the waveform."""
        width = strip.shape[1]
        start = segmentation.audio_start_seconds - self._from_seconds
        low, high = (round(t / self._seconds * width) for t in (start, start + WINDOW_SECONDS))
        part = strip[:, max(low, 0) : max(high, 0)]
        heard = (part == _WAVE).all(axis=2)
        part[~heard] = (34, 40, 48)
        part[heard] = _FAINT if segmentation.audio_is_silent else _HEARD

    def _mark_now(self, pen: ImageDraw.ImageDraw, at_seconds: float, *, width: int, top: int, height: int) -> None:
        x = min(round((at_seconds - self._from_seconds) / self._seconds * width), width - 1)
        pen.line((x, top, x, top + height), fill=(255, 255, 255, 230), width=max(1, round(height / 44)))

    @staticmethod
    def _tag(
        pen: ImageDraw.ImageDraw,
        text: str,
        place: tuple[int, int],
        *,
        font: Font,
        color: Color,
        width: int,
        scale: float,
    ) -> None:
        """Draw a name at a place (x of its middle, y of its top) in the mask's colour, inside the picture."""
        left, _, right, _ = pen.textbbox((0, 0), text, font=font)
        _, top, _, bottom = pen.textbbox((0, 0), "Ag", font=font)  # so that all labels are equally high
        gap = max(2, round(4 * scale))
        wide, tall = right - left + 3 * gap, bottom - top + 2 * gap
        x, y = min(max(place[0] - wide / 2, 2), max(width - wide - 2, 2)), place[1]
        pen.rounded_rectangle((x, y, x + wide, y + tall), gap, fill=(*color, 255))
        brightness = np.dot(color, (0.3, 0.59, 0.11))
        pen.text((x + 1.5 * gap - left, y + gap - top), text, font=font, fill=_DARK if brightness > 110 else _TEXT)

    @staticmethod
    def _draw_cues(
        pen: ImageDraw.ImageDraw, segmentation: Segmentation, *, font: Font, width: int, scale: float
    ) -> None:
        """Draw accepted cues bright, rejected ones faint and struck out, in rows as wide as the picture."""
        cues = segmentation.cues
        if cues is None:  # the model's method takes no cues
            return
        # Without a gate every cue is accepted.
        gate = np.ones(len(cues.valid), np.float32) if segmentation.cue_gate is None else segmentation.cue_gate
        alive_slots = gate[np.flatnonzero(cues.valid)] > 0
        named = [(name, bool(alive)) for name, alive in zip(cues.names, alive_slots, strict=False)]
        if not named:
            named = [("no cue", bool(gate[0] > 0))]
        gap = max(2, round(6 * scale))
        line = max(1, round(scale))
        x, y = gap, gap
        _, top, _, bottom = pen.textbbox((0, 0), "Ag", font=font)
        tall = bottom - top + 2 * gap
        for name, alive in named:
            left, _, right, _ = (round(side) for side in pen.textbbox((0, 0), name, font=font))
            wide = right - left + 2 * gap
            if x > gap and x + wide + gap > width:
                x, y = gap, round(y + tall + gap)
            color = _TEXT if alive else _FAINT
            pen.rounded_rectangle(
                (x, y, x + wide, y + tall), gap, (*_DARK, 190), (*(_HEARD if alive else _FAINT), 255), line
            )
            pen.text((x + gap - left, y + gap - top), name, font=font, fill=color)
            if not alive:
                middle = y + tall / 2
                pen.line((x + gap, middle, x + wide - gap, middle), fill=(*_TEXT, 255), width=line)
            x += wide + gap


class RollingOverlay(Overlay):
    """Draws on frames of a stream; the strip below the picture shows the last ten seconds of sound."""

    SECONDS = 10.0

    def __init__(self, classes: Sequence[str], sound: Sound | None) -> None:
        super().__init__(classes, sound, self.SECONDS)

    def _strip(self, width: int, height: int) -> NDArray[np.uint8]:
        return self._draw_waveform(width, height)

    def draw(self, frame: Frame, segmentation: Segmentation) -> NDArray[np.uint8]:
        latest = max(frame.pts_seconds, segmentation.audio_start_seconds + WINDOW_SECONDS)
        self._from_seconds = max(0.0, latest - self.SECONDS)
        return super().draw(frame, segmentation)
