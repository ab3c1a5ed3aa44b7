"""Code blocks of the documentation: where they are, what they need, and which commands they contain."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r'^```(?P<language>[a-z]+)(?P<notes>(?: [a-z]+="[^"\n]*")*)$\n(?P<code>.*?)^```$', re.M | re.S)
_NOTE = re.compile(r'([a-z]+)="([^"]*)"')
_OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "(", ")"}


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A fenced block of a page.

    ``notes`` are instructions for the tests on its first line. ``notest`` gives the reason why it can't run here; its
    commands are still parsed. ``slow`` gives the reason why it takes long. ``needs`` names a package without which it
    is skipped.
    """

    page: str
    line: int
    language: str
    notes: Mapping[str, str]
    code: str

    @property
    def is_run(self) -> bool:
        """Whether the tests run it."""
        return self.language in ("bash", "python") and "notest" not in self.notes


def find_blocks(page: Path) -> list[CodeBlock]:
    """Find the fenced blocks of a page that name their language."""
    text = page.read_text(encoding="utf-8")
    return [
        CodeBlock(
            page.relative_to(ROOT).as_posix(),
            text.count("\n", 0, found.start()) + 1,
            found["language"],
            dict(_NOTE.findall(found["notes"])),
            found["code"],
        )
        for found in _FENCE.finditer(text)
    ]


def find_pages() -> dict[str, list[CodeBlock]]:
    """Find all pages with code: README, CONTRIBUTING, SECURITY and everything in ``docs/``."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
        ROOT.glob("docs/**/*.md")
    )
    blocks = {page.relative_to(ROOT).as_posix(): find_blocks(page) for page in pages}
    return {page: found for page, found in blocks.items() if found}


def find_commands(block: CodeBlock) -> Iterator[list[str]]:
    """Yield the arguments of each ``teso-deploy`` in a block of bash."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if "teso-deploy" not in line:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.wordchars += "@:%[]{}$!,"
        words = list(lexer)
        for start, word in enumerate(words):
            is_first = start == 0 or words[start - 1] in (*_OPERATORS, "do", "then")
            if is_first and word.rsplit("/", 1)[-1] == "teso-deploy":
                rest = words[start + 1 :]
                end = next((at for at, each in enumerate(rest) if each in _OPERATORS), len(rest))
                yield rest[:end]


def write_example_clip(path: Path, source: Path, start_seconds: float = 1.0, frames: int = 5) -> None:
    """Write a second of a video at 5 frames per second: H.264 of a quarter of its size, and its sound in AAC."""
    with av.open(str(source)) as recorded, av.open(str(path), "w") as written:
        video = written.add_stream("libx264", rate=Fraction(5))
        video.width, video.height, video.pix_fmt = 240, 180, "yuv420p"
        audio = written.add_stream("aac", rate=44_100, layout="mono")
        resampler = av.AudioResampler("fltp", "mono", 44_100)
        kept = 0
        for frame in recorded.decode(video=0):
            if kept < frames and frame.time is not None and frame.time >= start_seconds + kept / 5:
                picture = frame.reformat(240, 180, "yuv420p")
                picture.pts, picture.time_base = kept, Fraction(1, 5)
                written.mux(video.encode(picture))
                kept += 1
        written.mux(video.encode(None))
        recorded.seek(0)
        for sound in recorded.decode(audio=0):
            if sound.time is not None and start_seconds <= sound.time < start_seconds + frames / 5:
                for part in resampler.resample(sound):
                    part.pts = None
                    written.mux(audio.encode(part))
        written.mux(audio.encode(None))
