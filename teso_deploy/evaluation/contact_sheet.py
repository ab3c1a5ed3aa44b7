"""Contact sheets: labelled pictures in rows and columns, and how masks are drawn on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from teso_deploy.errors import OutputError
from teso_deploy.media.overlay import fit_text, load_font, make_palette, tint_masks
from teso_deploy.outputs import check_file, open_staged_file

Picture = NDArray[np.uint8]
#: File ending → Pillow's name of the format.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
#: JPEG stores sizes in 16 bits. Larger PNGs take more memory than a viewer has.
MOST_PIXELS = 65_000
#: Pictures are scaled to this height, panoramas to this width.
HEIGHT_PIXELS, WIDTH_PIXELS = 200, 360
_GAP = 6
_TITLE, _CAPTION, _HEADING = 20, 15, 14
_DARK, _TEXT, _FAINT = (18, 20, 24), (235, 238, 242), (170, 178, 190)
_DIFFERENT = np.array((255, 40, 40), np.uint8)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """A row of a sheet.

    Attributes:
        title: What the row shows, such as the clip and its score.
        pictures: (heading, (H, W, 3) uint8 RGB) of each column.
    """

    title: str
    pictures: Sequence[tuple[str, Picture]]


def draw_labels(picture: Picture, labels: NDArray[np.uint8]) -> Picture:
    """Draw labels (H, W) on a picture (H, W, 3) in the colours of the palette, with their outlines."""
    image = picture.copy()
    tint_masks(image, labels, max(min(labels.shape) / 200, 0.5))
    return image


def draw_difference(picture: Picture, labels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> Picture:
    """Darken a picture, and mark in red where two label images differ.

    Args:
        picture: (H, W, 3).
        labels: (H, W).
        expected: (H, W).
    """
    return np.where((labels != expected)[..., None], _DIFFERENT, (picture // 3))


def check_sheet_file(path: Path) -> None:
    """Raise :class:`OutputError` if a sheet can't be written to this file."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path} can't be written: its name must end in {' or '.join(FORMATS)}")
    check_file(path, path.suffix.lower())


def save_sheet(
    path: Path, rows: Sequence[SheetRow], *, title: str = "", legend: Mapping[int, str] | None = None
) -> None:
    """Write rows of labelled pictures as one picture.

    The headings stand at the top if all rows have the same, otherwise above each row. Text that is too long for its
    place is cut.

    Args:
        path: A .png, .jpg or .jpeg file.
        rows: The rows, at least one, each with at least one picture.
        title: A line above everything. Default: none.
        legend: Label → its name, which are listed below with the label's colour. Default: none.

    Raises:
        OutputError: The file can't be written, or there are too many rows or columns for a picture.
        ValueError: There is no picture.
    """
    check_sheet_file(path)
    if not rows or not all(row.pictures for row in rows):
        raise ValueError("a sheet needs at least one row, and each row at least one picture")
    sheet = _draw_sheet(path, rows, title, legend=legend or {})
    with open_staged_file(path) as staged:
        sheet.save(staged, FORMATS[path.suffix.lower()], quality=92)


def _draw_sheet(path: Path, rows: Sequence[SheetRow], title: str, *, legend: Mapping[int, str]) -> Image.Image:
    scaled = [[_scale(picture) for _, picture in row.pictures] for row in rows]
    headings = [[heading for heading, _ in row.pictures] for row in rows]
    columns = max(map(len, scaled))
    widths = [max(line[i].width for line in scaled if i < len(line)) for i in range(columns)]
    width = sum(widths) + _GAP * (columns + 1)
    are_shared = len(rows) > 1 and all(line == headings[0] for line in headings)
    names = _place_legend(legend, width)
    height = _GAP + (_line(_TITLE) if title else 0) + (_line(_HEADING) if are_shared else 0)
    for row, line in zip(rows, scaled, strict=True):
        height += (_line(_CAPTION) if row.title else 0) + (0 if are_shared else _line(_HEADING))
        height += max(image.height for image in line) + _GAP
    height += names[-1][1] + _line(_HEADING) if names else 0
    if max(width, height) > MOST_PIXELS:
        raise OutputError(f"{path} would be {width} × {height} pixels large: ask for fewer rows or columns")
    sheet = Image.new("RGB", (width, height), _DARK)
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    if title:
        top = _write(pen, title, (_GAP, top), size=_TITLE, width=width - 2 * _GAP)
    if are_shared:
        top = _write_headings(pen, headings[0], widths, top=top)
    for row, line, texts in zip(rows, scaled, headings, strict=True):
        if row.title:
            top = _write(pen, row.title, (_GAP, top), size=_CAPTION, width=width - 2 * _GAP)
        if not are_shared:
            top = _write_headings(pen, texts, widths, top=top)
        left = _GAP
        for image, column in zip(line, widths, strict=False):
            sheet.paste(image, (left, top))
            left += column + _GAP
        top += max(image.height for image in line) + _GAP
    for x, y, label, name in names:
        pen.rectangle((x, top + y + 3, x + _HEADING, top + y + 3 + _HEADING), tuple(make_palette()[label].tolist()))
        pen.text((x + _HEADING + _GAP, top + y), name, _TEXT, load_font(_HEADING))
    return sheet


def _scale(picture: Picture) -> Image.Image:
    image = Image.fromarray(picture)
    factor = min(HEIGHT_PIXELS / image.height, WIDTH_PIXELS / image.width)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)


def _line(size: int) -> int:
    """Return the height of a line of text."""
    return round(size * 1.4)


def _write(
    pen: ImageDraw.ImageDraw, text: str, place: tuple[int, int], *, size: int, width: int, color: object = _TEXT
) -> int:
    """Write one line, and return where the next one begins."""
    pen.text(place, fit_text(text, size, width), color, load_font(size))  # type: ignore[arg-type]
    return place[1] + _line(size)


def _write_headings(pen: ImageDraw.ImageDraw, texts: Sequence[str], widths: Sequence[int], *, top: int) -> int:
    left = _GAP
    for text, width in zip(texts, widths, strict=False):
        _write(pen, text, (left, top), size=_HEADING, width=width, color=_FAINT)
        left += width + _GAP
    return top + _line(_HEADING)


def _place_legend(legend: Mapping[int, str], width: int) -> list[tuple[int, int, int, str]]:
    """Return (x, y, label, name) of each entry, in lines as wide as the sheet."""
    places, x, y, font = [], _GAP, 0, load_font(_HEADING)
    for label, name in legend.items():
        text = fit_text(name, _HEADING, width - _HEADING - 3 * _GAP)
        wide = _HEADING + 3 * _GAP + round(font.getlength(text))
        if x > _GAP and x + wide > width:
            x, y = _GAP, y + _line(_HEADING)
        places.append((x, y, label, text))
        x += wide
    return places
