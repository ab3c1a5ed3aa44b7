"""The drawing: masks at their labels, cues by their gate, the strip of sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teso_deploy.media.audio import AudioTrack
from teso_deploy.media.overlay import Overlay, make_palette, save_mask
from teso_deploy.types import Cues, Frame, Segmentation

SIZE = (120, 160)


def segmentation(
    labels: np.ndarray, gates: tuple[float, ...] = (1.0, -1.0), names: tuple[str, ...] = ("dog", "cow")
) -> Segmentation:
    valid = np.zeros(4, np.bool_)
    valid[: len(names)] = True
    gate = np.zeros(4, np.float32)
    gate[: len(gates)] = gates
    cues = Cues(names, np.zeros((4, 8), np.float32), valid)
    return Segmentation(labels, np.zeros(2, np.float32), gate, cues, audio_start_seconds=1.0)


def draw(labels: np.ndarray, **options: object) -> np.ndarray:
    track = AudioTrack.white_noise(4.0, -12.0)
    frame = Frame(np.full((*SIZE, 3), 100, np.uint8), pts_seconds=1.5)
    return Overlay(("dog", "cow"), track, 4.0).draw(frame, segmentation(labels, **options))  # type: ignore[arg-type]


def test_masks_are_tinted_where_they_are_and_nowhere_else() -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[60:100, 20:60], labels[60:100, 100:140] = 1, 2
    drawn, blank = draw(labels), draw(np.zeros(SIZE, np.uint8))
    for label, place in ((1, (80, 40)), (2, (80, 120))):
        expected = 100 * 0.55 + make_palette()[label] * 0.45
        assert drawn[place] == pytest.approx(expected, abs=2)
    assert np.array_equal(drawn[105 : SIZE[0]], blank[105 : SIZE[0]])
    assert (blank[50 : SIZE[0]] == np.full((70, 160, 3), 100)).all(), "no mask, no tint"


def test_the_strip_lies_below_the_picture_and_marks_the_window() -> None:
    drawn = draw(np.zeros(SIZE, np.uint8))
    assert drawn.shape[0] > SIZE[0] and drawn.shape[1] == SIZE[1]
    strip = drawn[SIZE[0] :].astype(int)
    green = (strip[..., 1] - strip[..., 0] > 60).any(axis=0)
    columns = np.flatnonzero(green) / SIZE[1] * 4.0
    assert columns.min() == pytest.approx(1.0, abs=0.05) and columns.max() == pytest.approx(1.975, abs=0.05)


def test_accepted_and_rejected_cues_look_different() -> None:
    labels = np.zeros(SIZE, np.uint8)
    accepted, rejected = draw(labels, gates=(1.0, 1.0)), draw(labels, gates=(1.0, -1.0))
    assert not np.array_equal(accepted[:50], rejected[:50])
    assert draw(labels, names=(), gates=(1.0,)).shape == accepted.shape


def test_without_sound_and_at_odd_sizes() -> None:
    for size in ((1, 1), (31, 47), (700, 400)):
        frame = Frame(np.zeros((*size, 3), np.uint8), pts_seconds=0)
        drawn = Overlay(("dog", "cow"), None, 0.0).draw(frame, segmentation(np.ones(size, np.uint8)))
        assert drawn.dtype == np.uint8 and drawn.shape[1] == size[1]


def test_the_input_is_not_drawn_on() -> None:
    frame = Frame(np.full((*SIZE, 3), 100, np.uint8), pts_seconds=0)
    Overlay(("dog", "cow"), None, 1.0).draw(frame, segmentation(np.ones(SIZE, np.uint8)))
    assert (frame.image == 100).all()


def test_masks_are_class_ids_with_a_palette(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_mask(tmp_path / "000001.png", labels)
    with Image.open(tmp_path / "000001.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), labels)
    assert len(np.unique(make_palette()[:71], axis=0)) == 71 and not make_palette()[0].any()
