"""Tables as pictures."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from teso_deploy.evaluation.tables.grid import Grid
from teso_deploy.outputs import open_staged_file

_TEXT, _QUIET = (20, 22, 26), (95, 100, 110)
_SIZE, _NOTE_SIZE, _TITLE_SIZE = 30, 23, 36
_MARGIN, _GAP, _SPACE = 48, 44, 14
_LINE_HEIGHT, _NOTE_HEIGHT = 50, 33
_THICK, _THIN = 4, 2
#: Notes below a narrow table still need room.
_LEAST_WIDTH = 1000
#: Characters that Pillow's own font lacks.
_REPLACED = str.maketrans({"†": "*", "‡": "**", "–": "-", "−": "-", "↑": "", "↓": "", "×": "x", "ξ": "xi", "→": "->"})


def save_picture(path: Path, grid: Grid) -> None:
    """Draw a table as PNG. Raises :class:`OutputError` if it can't be written."""
    image = draw_table(grid)
    with open_staged_file(path) as staged:
        image.save(staged, "PNG")


def draw_table(grid: Grid) -> Image.Image:
    """Draw a table in the manner of printed ones: lines above, below and under the headings."""
    plain = _simplify_grid(grid)
    spans = _measure_columns(plain)
    width = max(spans[-1].right - _MARGIN, _font(_TITLE_SIZE).getlength(plain.title), _LEAST_WIDTH)
    notes = _wrap_notes(plain.notes, width)
    lines = 1 + _has_groups(plain) + len(plain.rows)
    spaces = 5 + len(plain.rules)
    height = 2 * _MARGIN + _TITLE_SIZE + _LINE_HEIGHT * lines + _SPACE * spaces + _NOTE_HEIGHT * len(notes)
    image = Image.new("RGB", (int(width) + 2 * _MARGIN, height), "white")
    sheet = _Sheet(ImageDraw.Draw(image), spans, plain.text_columns)
    sheet.write_title(plain.title)
    sheet.draw_rule(_THICK)
    if _has_groups(plain):
        sheet.write_groups(plain.groups)
    sheet.write_row(plain.headings)
    sheet.draw_rule(_THIN)
    for number, row in enumerate(plain.rows):
        if number in plain.rules:
            sheet.draw_rule(_THIN)
        sheet.write_row(row)
    sheet.draw_rule(_THICK)
    for note in notes:
        sheet.write_note(note)
    return image


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a column begins and ends, in pixels."""

    left: float
    right: float


@dataclass
class _Sheet:
    """A picture that is written from top to bottom."""

    pen: ImageDraw.ImageDraw
    spans: Sequence[_Span]
    text_columns: int
    top: float = _MARGIN

    def write_title(self, text: str) -> None:
        self.pen.text((_MARGIN, self.top), text, _TEXT, _font(_TITLE_SIZE))
        self.top += _TITLE_SIZE + 2 * _SPACE

    def draw_rule(self, thickness: int) -> None:
        self._draw_line(self.top, thickness, _Span(self.spans[0].left, self.spans[-1].right))
        self.top += _SPACE

    def _draw_line(self, top: float, thickness: int, span: _Span) -> None:
        self.pen.line((span.left, top, span.right, top), fill=_TEXT, width=thickness)

    def write_groups(self, groups: Sequence[tuple[str, int]]) -> None:
        first = self.text_columns
        for name, count in groups:
            left, right = self.spans[first].left, self.spans[first + count - 1].right
            if name:
                self.pen.text(((left + right) / 2, self.top), name, _TEXT, _font(_SIZE), anchor="ma")
                self._draw_line(self.top + _LINE_HEIGHT - 8, _THIN, _Span(left, right))
            first += count
        self.top += _LINE_HEIGHT

    def write_row(self, cells: Sequence[str]) -> None:
        for number, (cell, span) in enumerate(zip(cells, self.spans, strict=True)):
            if number < self.text_columns:
                self.pen.text((span.left, self.top), cell, _TEXT, _font(_SIZE))
            else:
                self.pen.text((span.right, self.top), cell, _TEXT, _font(_SIZE), anchor="ra")
        self.top += _LINE_HEIGHT

    def write_note(self, text: str) -> None:
        self.pen.text((_MARGIN, self.top), text, _QUIET, _font(_NOTE_SIZE))
        self.top += _NOTE_HEIGHT


def _measure_columns(grid: Grid) -> list[_Span]:
    """Place the columns, so that every cell and every heading above several columns fits."""
    font = _font(_SIZE)
    lines = (grid.headings, *grid.rows)
    widths = [max(font.getlength(line[number]) for line in lines) for number in range(len(grid.headings))]
    first = grid.text_columns
    for name, count in grid.groups:
        missing = font.getlength(name) - sum(widths[first : first + count]) - _GAP * (count - 1)
        widths[first + count - 1] += max(0.0, missing)
        first += count
    lefts = [_MARGIN + sum(widths[:number]) + _GAP * number for number in range(len(widths))]
    return [_Span(left, left + width) for left, width in zip(lefts, widths, strict=True)]


def _wrap_notes(notes: Sequence[str], width: float) -> list[str]:
    """Break notes into lines of at most ``width`` pixels. A longer word has a line to itself, and is cut off."""
    lines: list[str] = []
    for note in notes:
        line = ""
        for word in note.split():
            longer = f"{line} {word}".lstrip()
            if line and _font(_NOTE_SIZE).getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _has_groups(grid: Grid) -> bool:
    return any(name for name, _ in grid.groups)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _simplify_grid(grid: Grid) -> Grid:
    return replace(
        grid,
        title=_simplify(grid.title),
        groups=tuple((_simplify(name), count) for name, count in grid.groups),
        headings=tuple(map(_simplify, grid.headings)),
        rows=tuple(tuple(map(_simplify, row)) for row in grid.rows),
        notes=tuple(map(_simplify, grid.notes)),
    )


def _simplify(text: str) -> str:
    """Replace what Pillow's own font lacks by what it has."""
    plain = unicodedata.normalize("NFKD", text.translate(_REPLACED)).replace("\u2044", "/")
    kept = "".join(c for c in plain if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c in "‘’“”…" else "?" for c in kept).strip()
