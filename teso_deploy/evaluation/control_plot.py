"""A picture of the audio control: the numbers of one or several evaluations for each sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from teso_deploy.outputs import open_staged_file
from teso_deploy.text import shorten_middle, to_one_line

#: Number → the title of its panel.
_PANELS = {
    "miou": "mIoU",
    "f_score": "F",
    "blank_rate": "blank frames",
    "fpr": "FPR (false pixels)",
}
#: Colours that people with any colour vision can tell apart (Okabe and Ito).
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
_TEXT, _QUIET, _LINE, _BAND = (30, 33, 38), (110, 116, 126), (224, 227, 232), (247, 248, 250)
#: It is drawn this many times as large and then reduced, because Pillow draws dots with hard edges.
_ZOOM = 3
_MARGIN, _GAP, _PANEL, _ROW, _PER_REPORT = 28, 64, 210, 16, 20
_SIZE, _SMALL, _TITLE = 15, 12, 18
_DOT = 5
_LONGEST_LABEL = 48
Colour = tuple[int, int, int]
Report = Mapping[str, Any]


def plot_control(report: Report | Sequence[Report], path: Path, names: Sequence[str] | None = None) -> None:
    """Write a picture of mIoU, F, blank rate and FPR for each sound.

    Args:
        report: The report of an evaluation, or several of the same protocol.
        path: The PNG.
        names: A name for each report. Default: its bundle, and its backend if the bundles are equal.

    Raises:
        OutputError: The picture can't be written.
    """
    reports = [report] if isinstance(report, Mapping) else list(report)
    image = draw_control(reports, names or _name_reports(reports))
    with open_staged_file(path) as staged:
        image.save(staged, "PNG")


def _name_reports(reports: Sequence[Report]) -> list[str]:
    names = [to_one_line(report.get("bundle")) for report in reports]
    if len(set(names)) == len(names):
        return names
    return [
        f"{name}, {report.get('backend')}, cues: {to_one_line(report.get('cues'))}"
        for name, report in zip(names, reports, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Plot:
    """The values of a plot: the labels of its lines, its panels, and report → (line, panel) → value."""

    lines: Sequence[str]
    panels: Sequence[str]
    values: Sequence[Mapping[tuple[str, str], float]]


def _collect_values(reports: Sequence[Report]) -> _Plot:
    lines: dict[str, None] = {}
    values: list[dict[tuple[str, str], float]] = []
    several = any(len({row.get("group") for row in report["rows"]}) > 1 for report in reports)
    for report in reports:
        found: dict[tuple[str, str], float] = {}
        for row in report["rows"]:
            parts = (row.get("group"), row.get("condition")) if several else (row.get("condition") or row.get("group"),)
            label = " ".join(str(part) for part in parts if part)
            lines[to_one_line(label)] = None
            for name in _PANELS:
                if (value := row["values"].get(name)) is not None:
                    found[to_one_line(label), name] = float(value)
        values.append(found)
    panels = [name for name in _PANELS if any(name == panel for found in values for _, panel in found)]
    return _Plot(list(lines), panels, values)


def draw_control(reports: Sequence[Report], names: Sequence[str]) -> Image.Image:
    """Draw a panel for each number, with a line for each sound and a dot for each report.

    Args:
        reports: The reports.
        names: A name for each.

    Returns:
        The picture.
    """
    plot = _collect_values(reports)
    names = [shorten_middle(name, _LONGEST_LABEL) for name in names]
    labels = [shorten_middle(line, _LONGEST_LABEL) for line in plot.lines]
    left = _MARGIN + max((_font(_SIZE).getlength(label) for label in labels), default=0) / _ZOOM + 20
    row = _ROW + _PER_REPORT * len(reports)
    top = _MARGIN + _TITLE + 14 + (_SIZE + 18 if len(reports) > 1 else 0) + _SIZE + 14
    width = left + len(plot.panels) * (_PANEL + _GAP) + _MARGIN - 20
    width = max(width, _MARGIN * 2 + _font(_TITLE).getlength(_write_title(reports[0])) / _ZOOM)
    if len(reports) > 1:
        width = max(width, _MARGIN + sum(_measure_name(name) for name in names))
    height = top + row * len(labels) + 24 + _MARGIN
    image = Image.new("RGB", (round(width * _ZOOM), round(height * _ZOOM)), "white")
    pen = _Pen(ImageDraw.Draw(image))
    pen.write((_MARGIN, _MARGIN), _write_title(reports[0]), size=_TITLE)
    if len(reports) > 1:
        _draw_legend(pen, names, _MARGIN + _TITLE + 20)
    for number, label in enumerate(labels):
        middle = top + row * (number + 0.5)
        if number % 2 == 0:
            pen.fill((_MARGIN - 10, top + row * number, width - _MARGIN + 10, top + row * (number + 1)), _BAND)
        pen.write((_MARGIN, middle), label, anchor="lm")
    for number, panel in enumerate(plot.panels):
        _draw_panel(pen, plot, panel, place=(left + number * (_PANEL + _GAP), top), row=row)
    return image.resize((round(width), round(height)), Image.Resampling.LANCZOS)


def _write_title(report: Report) -> str:
    return f"{report['protocol']}, {report['data']}"


def _draw_legend(pen: _Pen, names: Sequence[str], top: float) -> None:
    x: float = _MARGIN
    for number, name in enumerate(names):
        pen.dot((x + _DOT, top + _SIZE / 2), _choose_colour(number))
        pen.write((x + 2 * _DOT + 8, top + _SIZE / 2), name, anchor="lm")
        x += _measure_name(name)


def _measure_name(name: str) -> float:
    """Return the width of a name in the legend, with its dot and the space after it."""
    return 2 * _DOT + 8 + _font(_SIZE).getlength(name) / _ZOOM + 26


def _draw_panel(pen: _Pen, plot: _Plot, panel: str, *, place: tuple[float, float], row: float) -> None:
    """Draw the dots of one number, with the grid under them."""
    left, top = place
    bottom = top + row * len(plot.lines)
    pen.write((left, top - 12), _PANELS[panel], anchor="ls", fill=_TEXT)
    for step in range(5):
        x = left + _PANEL * step / 4
        pen.line((x, top, x, bottom), _LINE)
        if step % 2 == 0:
            pen.write((x, bottom + 8), f"{step / 4:g}", size=_SMALL, fill=_QUIET, anchor="ma")
    for number, values in enumerate(plot.values):
        colour = _choose_colour(number)
        for index, line in enumerate(plot.lines):
            y = top + row * index + _ROW / 2 + _PER_REPORT * (number + 0.5)
            value = values.get((line, panel))
            if value is None:
                pen.write((left, y), "-", size=_SMALL, fill=_QUIET, anchor="lm")
                continue
            x = left + _PANEL * min(max(value, 0.0), 1.0)
            pen.line((left, y, x, y), colour, thickness=2)
            pen.dot((x, y), colour)
            pen.write((x + _DOT + 4, y), f"{value:.3f}", size=_SMALL, fill=_QUIET, anchor="lm")


def _choose_colour(number: int) -> Colour:
    return _COLOURS[number % len(_COLOURS)]


@dataclass(frozen=True, slots=True)
class _Pen:
    """Draws in the units of the reduced picture."""

    draw: ImageDraw.ImageDraw

    def write(
        self, place: tuple[float, float], text: str, *, size: int = _SIZE, fill: Colour = _TEXT, anchor: str = "la"
    ) -> None:
        self.draw.text((place[0] * _ZOOM, place[1] * _ZOOM), text, fill, _font(size), anchor=anchor)

    def line(self, ends: tuple[float, float, float, float], fill: Colour, *, thickness: int = 1) -> None:
        self.draw.line([end * _ZOOM for end in ends], fill, width=thickness * _ZOOM)

    def fill(self, box: tuple[float, float, float, float], fill: Colour) -> None:
        self.draw.rectangle([side * _ZOOM for side in box], fill)

    def dot(self, centre: tuple[float, float], fill: Colour) -> None:
        x, y = centre
        self.draw.ellipse([side * _ZOOM for side in (x - _DOT, y - _DOT, x + _DOT, y + _DOT)], fill)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _ZOOM)
