"""AVSBench-Robust (Li et al., 2025): the videos of S4 and MS3 with sounds that do not belong to them.

The truth is blank, as nothing that is seen sounds. The sounds are those that the authors' ``audio_processing.py``
writes, beside the original sounds or in another folder. FOLDER or folders in it hold both::

    Single-source/s4_data/…, Multi-sources/ms3_data/…   the original videos, see s4 and ms3
    silent.wav                                          silence
    {Single-source/s4_data,Multi-sources/ms3_data}/audio_wav_noise/…        noise, named as in audio_wav
                                                   audio_wav_misaligned/…   an off-screen sound of another kind
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets import ms3, s4
from teso_deploy.evaluation.datasets.binary_masks import read_binary_mask
from teso_deploy.evaluation.datasets.contracts import DataLayout, DataRow, MaskKind, VideoSample

_SILENCE = "silent.wav"
#: Subset → the layout of its videos, and its folder.
_ORIGINALS = {
    "v1s": (s4.LAYOUT, "Single-source/s4_data"),
    "v1m": (ms3.LAYOUT, "Multi-sources/ms3_data"),
}


@dataclass(frozen=True, slots=True)
class _Part:
    """The videos of one subset.

    Attributes:
        root: The folder from which the original layout is read.
        folder: Its folder with the data.
        sounds: The file of silence, or the folder of the other sounds.
    """

    root: Path
    folder: Path
    sounds: Path


def _list_homes(root: Path) -> list[Path]:
    return [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []


def _find_parts(root: Path, negative: str) -> dict[str, _Part]:
    """Return subset → its part, for each subset that has original videos and sounds of this kind."""
    homes = _list_homes(root)
    parts = {}
    for subset, (layout, inside) in _ORIGINALS.items():
        name = negative if negative == _SILENCE else f"{inside}/{negative}"
        sounds = next((home / name for home in homes if (home / name).exists()), None)
        found = next(((home, folder) for home in homes if (folder := layout.find_folder(home)) is not None), None)
        if sounds is not None and found is not None:
            parts[subset] = _Part(*found, sounds)
    return parts


def _list_rows(root: Path, negative: str) -> list[DataRow]:
    def list_parts() -> Iterator[DataRow]:
        for subset, part in _find_parts(root, negative).items():
            yield from _ORIGINALS[subset][0].list_rows(part.root, part.folder)

    return list(list_parts())


def _read_row(root: Path, row: DataRow, negative: str) -> VideoSample:
    layout, _ = _ORIGINALS[row.subset]
    part = _find_parts(root, negative)[row.subset]
    sample = layout.read_row(part.folder, row)
    inside = sample.audio.relative_to(part.folder / "audio_wav")
    audio = part.sounds if negative == _SILENCE else part.sounds / inside
    if not audio.is_file():
        raise DataError(f"{audio} does not exist")
    return replace(sample, audio=audio)


def _read_mask(path: Path, kind: MaskKind) -> NDArray[np.uint8]:
    """Return a blank mask of the size of the original one."""
    return np.zeros_like(read_binary_mask(path, kind, "AVSBench-Robust"))


def make_layout(name: str, negative: str) -> DataLayout:
    """Make the layout of a kind of sound.

    Args:
        name: What the sounds are.
        negative: The folder of the sounds, or the file of silence.
    """
    return DataLayout(
        f"robust-{name}",
        f"s4 or ms3 with {negative}",
        lambda root: root if _find_parts(root, negative) else None,
        lambda root, folder: _list_rows(root, negative),
        lambda folder, row: _read_row(folder, row, negative),
        _read_mask,
        tuple(_ORIGINALS),
        s4.split_category,
        columns=(*s4.LAYOUT.columns, *ms3.LAYOUT.columns),
        published={**s4.PUBLISHED, **ms3.PUBLISHED},
        is_negative=True,
        is_detected=False,
    )


SILENCE = make_layout("silence", _SILENCE)
NOISE = make_layout("noise", "audio_wav_noise")
OFF_SCREEN = make_layout("off-screen", "audio_wav_misaligned")
