"""Frames side by side: the picture, the model's masks, a form's masks, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from teso_deploy.media.overlay import make_palette
from teso_deploy.outputs import open_staged_file

HEIGHT_PIXELS, CAPTION_PIXELS, GAP_PIXELS = 200, 20, 4
_DARK, _TEXT = (18, 20, 24), (235, 238, 242)
_DIFFERENT = np.array((255, 40, 40), np.uint8)
Picture = NDArray[np.uint8]


def draw_labels(picture: Picture, labels: NDArray[np.uint8]) -> Picture:
    """Draw labels (H, W) on a picture (H, W, 3) in the colours of the palette."""
    mixed = (0.5 * picture + 0.5 * make_palette()[labels]).astype(np.uint8)
    return np.where(labels[..., None] > 0, mixed, picture)


def draw_difference(picture: Picture, labels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> Picture:
    """Darken a picture, and mark in red where two label images differ.

    Args:
        picture: (H, W, 3).
        labels: (H, W).
        expected: (H, W).
    """
    return np.where((labels != expected)[..., None], _DIFFERENT, (picture // 3))


def save_sheet(path: Path, rows: Sequence[tuple[str, Sequence[Picture]]]) -> None:
    """Write rows of pictures (H, W, 3), each below its caption, as a PNG. Raises :class:`OutputError` on failure."""
    lines = []
    for caption, pictures in rows:
        images = [Image.fromarray(picture) for picture in pictures]
        scaled = [
            image.resize((max(1, HEIGHT_PIXELS * image.width // image.height), HEIGHT_PIXELS)) for image in images
        ]
        width = sum(image.width + GAP_PIXELS for image in scaled)
        line = Image.new("RGB", (width, CAPTION_PIXELS + HEIGHT_PIXELS + GAP_PIXELS), _DARK)
        ImageDraw.Draw(line).text((GAP_PIXELS, 2), caption, _TEXT, ImageFont.load_default(13))
        left = 0
        for image in scaled:
            line.paste(image, (left, CAPTION_PIXELS))
            left += image.width + GAP_PIXELS
        lines.append(line)
    sheet = Image.new("RGB", (max(line.width for line in lines), sum(line.height for line in lines)), _DARK)
    top = 0
    for line in lines:
        sheet.paste(line, (0, top))
        top += line.height
    with open_staged_file(path) as staged:
        sheet.save(staged, "PNG")
