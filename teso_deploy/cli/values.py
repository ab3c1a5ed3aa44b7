"""Values of options that are given as text: sizes, precisions, engine targets, checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer

from teso_deploy.backends.tensorrt.targets import TARGETS, Target
from teso_deploy.errors import InputNotFoundError
from teso_deploy.text import to_one_line
from teso_deploy.types import PRECISIONS, ImageSize, Precision

_PARTS = ("visual", "audio", "text", "model")


def parse_checkpoint(text: str) -> tuple[str | None, Path]:
    """Split a checkpoint's part from its file: ``visual=FILE`` → ("visual", FILE), ``FILE`` → (None, FILE).

    Raises :class:`InputNotFoundError`, and :class:`typer.BadParameter` for an unknown part.
    """
    part, separator, name = text.partition("=")
    if separator and not os.path.lexists(text):  # Path.exists raises for a name that is too long
        if part not in _PARTS:
            raise typer.BadParameter(
                f"unknown part {part!r}: choose one of {', '.join(_PARTS)}", param_hint="--checkpoint"
            )
    else:
        part, name = "", text
    if not os.path.lexists(name):
        raise InputNotFoundError(f"no checkpoint {name}: check the path")
    return part or None, Path(name)


def parse_bundle(text: str) -> tuple[str | None, Path]:
    """Split a bundle's name from its folder: ``NAME=FOLDER`` → (NAME, FOLDER), ``FOLDER`` → (None, FOLDER).

    Raises :class:`typer.BadParameter` if the name or the folder is empty.
    """
    name, separator, folder = text.partition("=")
    if not separator or os.path.lexists(text):
        return None, Path(text)
    if not name or not folder:
        shown = to_one_line(repr(text), 80)
        raise typer.BadParameter(f"{shown} lacks a name or a folder: give NAME=FOLDER", param_hint="--bundle")
    return name, Path(folder)


def parse_size(text: str) -> ImageSize:
    """Parse ``288x512`` → (288, 512), height first, or ``384`` → (384, 384). Raises :class:`typer.BadParameter`."""
    parts = text.lower().split("x")
    # Python refuses to convert a text of thousands of digits to a number.
    if len(text) > 40 or len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        shown = to_one_line(repr(text), 40)
        raise typer.BadParameter(f"{shown} is not a size: give HEIGHTxWIDTH or one number", param_hint="--size")
    return int(parts[0]), int(parts[-1])


def parse_precision(text: str) -> Precision:
    """Return the precision of this name. Raises :class:`typer.BadParameter`."""
    for precision in PRECISIONS:
        if text == precision:
            return precision
    choices = ", ".join(PRECISIONS)
    raise typer.BadParameter(f"{text!r} is not a precision: choose from {choices}", param_hint="--precision")


def parse_targets(texts: Sequence[str]) -> list[Target]:
    """Return the libraries to build engines for. ``onnx`` is always written. Raises :class:`typer.BadParameter`."""
    if unknown := [text for text in texts if text not in (*TARGETS, "onnx")]:
        raise typer.BadParameter(
            f"{unknown[0]!r} is not a target: choose from onnx, {', '.join(TARGETS)}", param_hint="--target"
        )
    return [target for target in TARGETS if target in texts]
