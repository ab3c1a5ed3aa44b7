"""Names, outlines and cues are readable at any picture size, and drawn in a few milliseconds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.media.audio import AudioTrack
from teso_deploy.media.overlay import Overlay, make_palette
from teso_deploy.types import Cues, Frame, Segmentation
from tests.support.recordings import click_track

CLASSES = ("dog", "electric guitar", "rooster")
TRACK = AudioTrack(click_track(4, [0.5, 2, 3], 16_000))


def found(labels: NDArray[np.uint8], names: tuple[str, ...] = (), gate: float = 1.0) -> Segmentation:
    cues = Cues(names, np.zeros((4, 8), np.float32), np.arange(4) < len(names))
    return Segmentation(labels, np.zeros(3, np.float32), np.full(4, gate, np.float32), cues, 2.0, 0, 1.6)


def grey(height: int, width: int) -> Frame:
    return Frame(np.full((height, width, 3), 100, np.uint8), 2.0)


@pytest.mark.parametrize("size", [(64, 48), (224, 224), (360, 640), (719, 1279)])
def test_a_mask_at_the_border_has_its_outline_on_its_own_side(size: tuple[int, int]) -> None:
    height, width = size
    labels = np.zeros(size, np.uint8)
    labels[height // 2 :, width * 2 // 3 :] = 1
    picture = Overlay(CLASSES, TRACK, 4.0).draw(grey(*size), found(labels))[:height]
    assert (picture[height * 3 // 4, width * 2 // 3] == make_palette()[1]).all(), "an outline to the inside"
    tinted = 0.55 * 100 + 0.45 * make_palette()[1].astype(float)
    assert np.abs(picture[height - 1, -1] - tinted).max() <= 2, "none where the picture ends"
    assert (picture[height // 2 :, : width // 3] == 100).all(), "nothing at the opposite border"


def test_every_mask_has_a_name_at_its_place() -> None:
    labels = np.zeros((360, 640), np.uint8)
    labels[150:300, 100:200], labels[150:300, 400:600] = 1, 3
    picture = Overlay(CLASSES, TRACK, 4.0).draw(grey(360, 640), found(labels))
    for middle, label in ((150, 1), (500, 3)):
        above = picture[141:149, middle - 40 : middle + 40]
        assert (above == make_palette()[label]).all(axis=2).sum() > 100


def test_a_gate_of_zero_is_closed() -> None:
    labels, overlay = np.zeros((360, 640), np.uint8), Overlay(CLASSES, TRACK, 4.0)
    opened, closed, zero = (overlay.draw(grey(360, 640), found(labels, ("dog",), xi))[:40] for xi in (0.5, -0.5, 0.0))
    assert (zero == closed).all() and (zero != opened).any()
    green = [int((chips[..., 1].astype(int) - chips[..., 0] > 60).sum()) for chips in (opened, closed)]
    assert green[0] > 50 > green[1]


def test_many_cues_stay_inside_a_narrow_picture() -> None:
    names = ("electric guitar", "emergency vehicle", "bell", "hand saw")
    picture = Overlay(CLASSES, None, 4.0).draw(grey(240, 160), found(np.zeros((240, 160), np.uint8), names))
    assert (picture[:240, -2:] == 100).all(), "nothing is cut at the right"
    assert (picture[40:70] != 100).any(), "there are more rows"


def test_the_strip_shows_loud_and_quiet_and_the_moment() -> None:
    strip = Overlay(CLASSES, TRACK, 4.0).draw(grey(360, 640), found(np.zeros((360, 640), np.uint8)))[360:].astype(int)
    assert (strip[:, 320] > 200).all(), "the playhead, at 2 of 4 s"
    click, silence = (np.abs(strip[:, round(at * 160)] - strip[0, 0]).any(axis=1).sum() for at in (0.52, 1.2))
    assert click > 5 * silence


def test_drawing_takes_milliseconds() -> None:
    labels = np.zeros((360, 640), np.uint8)
    labels[100:300, 100:300], labels[100:300, 350:600] = 1, 2
    overlay, frame, segmentation = Overlay(CLASSES, TRACK, 4.0), grey(360, 640), found(labels, ("dog",))
    took = []
    for _ in range(15):
        began = time.thread_time()
        overlay.draw(frame, segmentation)
        took.append(time.thread_time() - began)
    # The limit leaves room for a busy machine and still notices a loop over pixels in Python.
    assert min(took) < 0.2, f"{min(took) * 1000:.1f} ms"
