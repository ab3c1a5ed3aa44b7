"""Contact sheets: labelled pictures in rows and columns, and how masks are drawn on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from teso_deploy.errors import OutputError
from teso_deploy.media.overlay import fit_text, load_font, make_palette, tint_masks
from teso_deploy.outputs import check_file, open_staged_file

Picture = NDArray[np.uint8]
#: File ending → Pillow's name of the format.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
#: A sheet that would be this many times as high as it is wide gets its rows in blocks side by side.
_HIGHEST, _BETWEEN = 1.7, 18
#: JPEG stores sizes in 16 bits. Larger PNGs take more memory than a viewer has.
MOST_PIXELS = 65_000
#: Pictures are scaled to this height, panoramas to this width.
HEIGHT_PIXELS, WIDTH_PIXELS = 200, 360
_GAP = 6
_TITLE, _CAPTION, _HEADING = 20, 15, 14
_DARK, _TEXT, _FAINT = (18, 20, 24), (235, 238, 242), (170, 178, 190)
_ORANGE = 5  # the number of this colour in the palette
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


def draw_mask(picture: Picture, mask: NDArray[Any]) -> Picture:
    """Draw what is not 0 in a mask (H, W) on a picture (H, W, 3), in an orange that few pictures have."""
    return draw_labels(picture, np.where(mask > 0, np.uint8(_ORANGE), np.uint8(0)))


def draw_difference(picture: Picture, labels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> Picture:
    """Darken a picture, and mark in red where two label images differ.

    Args:
        picture: (H, W, 3).
        labels: (H, W).
        expected: (H, W).
    """
    return np.where((labels != expected)[..., None], _DIFFERENT, (picture // 3))


def fit_picture(picture: Picture) -> Picture:
    """Scale a picture (H, W, 3) to the size that it has in a sheet, so that many take little memory."""
    return np.asarray(_scale(picture))


def check_sheet_file(path: Path) -> None:
    """Raise :class:`OutputError` if a sheet can't be written to this file."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path} can't be written: its name must end in {' or '.join(FORMATS)}")
    check_file(path, path.suffix.lower())


def save_sheet(
    path: Path,
    rows: Sequence[SheetRow],
    *,
    title: str = "",
    legend: Mapping[int, str] | None = None,
    footer: Picture | None = None,
) -> None:
    """Write rows of labelled pictures as one picture.

    Many rows stand in blocks side by side. The headings stand at the top if all rows have the same, otherwise above
    each row. Text that is too long for its place is cut.

    Args:
        path: A .png, .jpg or .jpeg file.
        rows: The rows, at least one, each with at least one picture.
        title: A line above everything. Default: none.
        legend: Label → its name, which are listed below with the label's colour. Default: none.
        footer: A picture below everything, such as a scale. Default: none.

    Raises:
        OutputError: The file can't be written, or there are too many rows or columns for a picture.
        ValueError: The rows have no picture.
    """
    check_sheet_file(path)
    if not rows or not all(row.pictures for row in rows):
        raise ValueError("a sheet needs at least one row, and each row at least one picture")
    sheet = _draw_sheet(path, rows, title, legend=legend or {}, footer=footer)
    with open_staged_file(path) as staged:
        sheet.save(staged, FORMATS[path.suffix.lower()], quality=92)


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows whose pictures have their final size, and the measures of a sheet of them.

    ``widths``: of the columns. ``heights``: of the rows, with title, headings and gap. ``headings``: those of all rows;
    None if they differ.
    """

    rows: list[tuple[str, list[str], list[Image.Image]]]
    widths: list[int]
    heights: list[int]
    headings: list[str] | None

    @classmethod
    def measure(cls, rows: Sequence[SheetRow]) -> _Table:
        """Scale the pictures."""
        scaled = [
            (row.title, [text for text, _ in row.pictures], [_scale(picture) for _, picture in row.pictures])
            for row in rows
        ]
        headings = scaled[0][1] if len(rows) > 1 and all(texts == scaled[0][1] for _, texts, _ in scaled) else None
        columns = max(len(images) for *_, images in scaled)
        widths = [max(images[i].width for *_, images in scaled if i < len(images)) for i in range(columns)]
        above = 0 if headings else _get_line_height(_HEADING)
        heights = [
            (_get_line_height(_CAPTION) if title else 0) + above + max(image.height for image in images) + _GAP
            for title, _, images in scaled
        ]
        return cls(scaled, widths, heights, headings)

    @property
    def width(self) -> int:
        """Width of a block of rows, with the gap after it."""
        return sum(self.widths) + _GAP * len(self.widths)

    def split(self) -> list[range]:
        """Split the rows into blocks that stand side by side, so that the sheet is not much higher than wide."""
        blocks = [range(len(self.rows))]
        for count in range(1, len(self.rows) + 1):
            size = -(-len(self.rows) // count)
            blocks = [range(first, min(first + size, len(self.rows))) for first in range(0, len(self.rows), size)]
            if self.measure_height(blocks) <= _HIGHEST * self.width * len(blocks):
                break
        return blocks

    def measure_height(self, blocks: Sequence[range]) -> int:
        """Return the height of the highest block."""
        above = _get_line_height(_HEADING) if self.headings else 0
        return above + max(sum(self.heights[number] for number in block) for block in blocks)

    def draw(self, sheet: Image.Image, block: range, place: tuple[int, int]) -> None:
        """Draw a block of rows.

        Args:
            sheet: The sheet, which is changed.
            block: Numbers of the rows.
            place: Left upper corner of the block, (x, y).
        """
        pen, (left, top), width = ImageDraw.Draw(sheet), place, self.width - _GAP
        if self.headings:
            self._write_headings(pen, self.headings, place)
            top += _get_line_height(_HEADING)
        for number in block:
            title, texts, images = self.rows[number]
            end = top + self.heights[number]
            if title:
                top = _write(pen, title, (left, top), size=_CAPTION, width=width)
            if not self.headings:
                self._write_headings(pen, texts, (left, top))
                top += _get_line_height(_HEADING)
            x = left
            for image, column in zip(images, self.widths, strict=False):
                sheet.paste(image, (x, top))
                x += column + _GAP
            top = end

    def _write_headings(self, pen: ImageDraw.ImageDraw, texts: Sequence[str], place: tuple[int, int]) -> None:
        left, top = place
        for text, width in zip(texts, self.widths, strict=False):
            _write(pen, text, (left, top), size=_HEADING, width=width, color=_FAINT)
            left += width + _GAP


def _draw_sheet(
    path: Path, rows: Sequence[SheetRow], title: str, *, legend: Mapping[int, str], footer: Picture | None
) -> Image.Image:
    table = _Table.measure(rows)
    blocks = table.split()
    between = _BETWEEN * (len(blocks) - 1)
    width = max(_GAP + table.width * len(blocks) + between, _GAP * 2 + (footer.shape[1] if footer is not None else 0))
    names = _place_legend(legend, width)
    top = _GAP + (_get_line_height(_TITLE) if title else 0)
    below = top + table.measure_height(blocks)
    height = below + (names[-1][1] + _get_line_height(_HEADING) if names else 0)
    height += len(footer) + _GAP if footer is not None else 0
    if max(width, height) > MOST_PIXELS:
        raise OutputError(f"{path} would be {width} × {height} pixels large: ask for fewer rows or columns")
    sheet = Image.new("RGB", (width, height), _DARK)
    pen = ImageDraw.Draw(sheet)
    if title:
        _write(pen, title, (_GAP, _GAP), size=_TITLE, width=width - 2 * _GAP)
    for number, block in enumerate(blocks):
        table.draw(sheet, block, (_GAP + number * (table.width + _BETWEEN), top))
    for x, y, label, name in names:
        box = (x, below + y + 3, x + _HEADING, below + y + 3 + _HEADING)
        pen.rectangle(box, tuple(make_palette()[label].tolist()))
        pen.text((x + _HEADING + _GAP, below + y), name, _TEXT, load_font(_HEADING))
    if footer is not None:
        sheet.paste(Image.fromarray(footer), (_GAP, height - len(footer) - _GAP))
    return sheet


def _scale(picture: Picture) -> Image.Image:
    image = Image.fromarray(picture)
    factor = min(HEIGHT_PIXELS / image.height, WIDTH_PIXELS / image.width)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)


def _get_line_height(size: int) -> int:
    """Return the height of a line of text."""
    return round(size * 1.4)


def _write(
    pen: ImageDraw.ImageDraw, text: str, place: tuple[int, int], *, size: int, width: int, color: object = _TEXT
) -> int:
    """Write one line, and return where the next one begins."""
    pen.text(place, fit_text(text, size, width), color, load_font(size))  # type: ignore[arg-type]
    return place[1] + _get_line_height(size)


def _place_legend(legend: Mapping[int, str], width: int) -> list[tuple[int, int, int, str]]:
    """Return (x, y, label, name) of each entry, in lines as wide as the sheet."""
    places, x, y, font = [], _GAP, 0, load_font(_HEADING)
    for label, name in legend.items():
        text = fit_text(name, _HEADING, width - _HEADING - 3 * _GAP)
        wide = _HEADING + 3 * _GAP + round(font.getlength(text))
        if x > _GAP and x + wide > width:
            x, y = _GAP, y + _get_line_height(_HEADING)
        places.append((x, y, label, text))
        x += wide
    return places
