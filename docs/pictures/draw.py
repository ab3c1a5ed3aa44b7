"""Draw the two pictures of the documentation: ``python docs/pictures/draw.py`` writes the SVG files beside it."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
COLOURS = {"input": "#e3f2fd", "graph": "#fff3e0", "step": "#f1f8e9", "output": "#fce4ec", "plain": "#f5f5f5"}
LINE = 17


@dataclass
class Picture:
    """Boxes and arrows on a white ground, in pixels."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def add_box(self, place: tuple[int, int, int, int], text: str, kind: str = "plain") -> None:
        """Add a box at (left, top, width, height). The first line of ``text`` is bold."""
        left, top, width, height = place
        self.parts.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="8" '
            f'fill="{COLOURS[kind]}" stroke="#546e7a" stroke-width="1.3"/>'
        )
        lines = text.split("\n")
        first = top + height / 2 - (len(lines) - 1) * LINE / 2 + 5
        for number, line in enumerate(lines):
            weight, size = ("bold", 14) if number == 0 else ("normal", 12.5)
            self._add_text(left + width / 2, first + number * LINE, line, size, weight)

    def add_arrow(self, points: list[tuple[int, int]], label: str = "", at: tuple[int, int] | None = None) -> None:
        """Add an arrow through points, with a label at a place of its own."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="#37474f" stroke-width="1.5" marker-end="url(#tip)"/>'
        )
        if label and at:
            self._add_text(*at, label, 12, "normal")

    def add_label(self, at: tuple[int, int], text: str) -> None:
        """Add a line of text with its middle at a place."""
        self._add_text(*at, text, 13, "bold")

    def _add_text(self, x: float, y: float, text: str, size: float, weight: str) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" '
            f'text-anchor="middle">{html.escape(text)}</text>'
        )

    def write(self, name: str) -> None:
        """Write the picture as an SVG file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" '
            f'fill="#212121" role="img">\n<title>{html.escape(self.title)}</title>\n'
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="#37474f"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="10" fill="#ffffff"/>\n'
        )
        (FOLDER / name).write_text(head + "\n".join(self.parts) + "\n</svg>\n", encoding="utf-8")


def draw_data_flow() -> None:
    """Draw how a frame, its sound and the cues become masks."""
    picture = Picture(900, 400, "Data flow: picture, sound and cues go through four graphs and become labels")
    picture.add_box((20, 40, 150, 60), "frame\npicture with its time", "input")
    picture.add_box((20, 160, 150, 60), "sound\nwindow of 0.975 s", "input")
    picture.add_box((20, 280, 150, 60), "cues\nwords, as embeddings", "input")
    picture.add_box((240, 40, 170, 60), "visual_encoder\nonce a picture", "graph")
    picture.add_box((240, 160, 170, 60), "audio_encoder\nonce a window", "graph")
    picture.add_box((480, 220, 150, 70), "fusion\nwhich cue sounds?", "graph")
    picture.add_box((480, 40, 150, 60), "decoder\nmasks of classes", "graph")
    picture.add_box((710, 40, 170, 60), "labels\none class a pixel", "step")
    picture.add_box((710, 190, 170, 130), "outputs\nannotated video\nmasks\nevents\nreport", "output")
    picture.add_arrow([(170, 70), (240, 70)])
    picture.add_arrow([(170, 190), (240, 190)])
    picture.add_arrow([(410, 70), (480, 70)], "features", (445, 62))
    picture.add_arrow([(410, 190), (445, 190), (445, 240), (480, 240)])
    picture.add_arrow([(170, 310), (445, 310), (445, 270), (480, 270)])
    picture.add_arrow([(555, 220), (555, 100)], "queries", (585, 165))
    picture.add_arrow([(630, 70), (710, 70)], "scores", (670, 62))
    picture.add_arrow([(795, 100), (795, 190)])
    picture.add_label(
        (450, 375), "A new sound runs audio_encoder, fusion and decoder. New cues run fusion and decoder."
    )
    picture.write("data-flow.svg")


def draw_architecture() -> None:
    """Draw the parts of the package, and which of them need PyTorch."""
    picture = Picture(900, 520, "Architecture: PyTorch is needed to make a bundle, and not to run it")
    picture.add_label((220, 30), "make a model (needs PyTorch)")
    picture.add_label((670, 30), "run a model (no PyTorch)")
    picture.parts.append('<line x1="440" y1="15" x2="440" y2="420" stroke="#90a4ae" stroke-dasharray="6 5"/>')
    picture.add_box((20, 50, 180, 60), "recipe\nsizes, classes, training", "input")
    picture.add_box((220, 50, 200, 60), "checkpoints\nof others, or of train", "input")
    picture.add_box((20, 160, 180, 60), "training\nloop, calibration", "step")
    picture.add_box((220, 160, 200, 60), "models\nnetworks, key maps", "step")
    picture.add_box((120, 270, 200, 60), "conversion\nONNX graphs and forms", "step")
    picture.add_box(
        (20, 440, 860, 60), "bundle\nONNX graphs · forms · reference outputs · cue table · hash of every file", "graph"
    )
    picture.add_box((460, 50, 130, 60), "media\nfiles, streams", "input")
    picture.add_box((610, 50, 130, 60), "cues\nsources of words", "input")
    picture.add_box((760, 50, 120, 60), "backends\nCPU and GPU", "step")
    picture.add_box((530, 160, 290, 60), "pipeline\nframe, sound and cues to labels", "step")
    picture.add_box((460, 270, 130, 60), "live\nstreams in time", "step")
    picture.add_box((610, 270, 130, 60), "sinks\nwhere results go", "output")
    picture.add_box((760, 270, 120, 60), "evaluation\nscores", "output")
    picture.add_box((530, 360, 290, 50), "verification\nis this still the model?", "step")
    picture.add_arrow([(110, 110), (110, 160)])
    picture.add_arrow([(320, 110), (320, 160)])
    picture.add_arrow([(200, 190), (220, 190)])
    picture.add_arrow([(270, 220), (270, 270)])
    picture.add_arrow([(220, 330), (220, 440)])
    picture.add_arrow([(525, 110), (600, 160)])
    picture.add_arrow([(675, 110), (675, 160)])
    picture.add_arrow([(820, 110), (750, 160)])
    picture.add_arrow([(600, 220), (530, 270)])
    picture.add_arrow([(675, 220), (675, 270)])
    picture.add_arrow([(590, 300), (610, 300)])
    picture.add_arrow([(750, 220), (815, 270)])
    picture.add_arrow([(675, 440), (675, 410)])
    picture.add_arrow([(860, 440), (860, 345), (890, 345), (890, 190), (820, 190)])
    picture.write("architecture.svg")


if __name__ == "__main__":
    draw_data_flow()
    draw_architecture()
