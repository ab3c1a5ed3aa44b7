"""Contact sheets of any size, read back as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import OutputError
from teso_deploy.evaluation.contact_sheet import (
    HEIGHT_PIXELS,
    WIDTH_PIXELS,
    SheetRow,
    draw_difference,
    draw_labels,
    draw_mask,
    save_sheet,
)
from teso_deploy.media.overlay import make_palette

RED, BLUE = (200, 10, 10), (10, 10, 200)


def paint(color: tuple[int, int, int], size: tuple[int, int] = (100, 100)) -> NDArray[np.uint8]:
    return np.full((*size, 3), color, np.uint8)


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def find_rows(sheet: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.intp]:
    """Return the places of the rows that have a color."""
    return np.flatnonzero((sheet == color).all(axis=2).any(axis=1))


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("columns", [1, 6])
def test_a_sheet_has_all_pictures(count: int, columns: int, tmp_path: Path) -> None:
    rows = [SheetRow(f"clip {i}", [(f"column {j}", paint(RED)) for j in range(columns)]) for i in range(count)]
    save_sheet(tmp_path / "sheet.png", rows)
    sheet = read(tmp_path / "sheet.png")
    assert (sheet == RED).all(axis=2).sum() == count * columns * HEIGHT_PIXELS**2
    assert sheet.shape[0] < 2 * sheet.shape[1] + 100, "many rows stand side by side"


def test_rows_of_different_lengths_and_headings(tmp_path: Path) -> None:
    rows = [SheetRow("a", [("one", paint(RED)), ("two", paint(BLUE))]), SheetRow("", [("three", paint(RED))])]
    save_sheet(tmp_path / "sheet.png", rows, title="Figure")
    assert (read(tmp_path / "sheet.png") == RED).all(axis=2).sum() == 2 * HEIGHT_PIXELS**2


def test_pictures_of_any_shape_keep_it(tmp_path: Path) -> None:
    shapes = ((50, 1000), (1000, 50), (2, 2))
    save_sheet(tmp_path / "sheet.png", [SheetRow("", [("", paint(RED, shape))]) for shape in shapes])
    found = (read(tmp_path / "sheet.png") == RED).all(axis=2)
    assert found.sum() == WIDTH_PIXELS * 18 + HEIGHT_PIXELS * 10 + HEIGHT_PIXELS**2


def test_text_that_is_too_long_is_cut(tmp_path: Path) -> None:
    """Otherwise a heading would run into its neighbour."""
    long, empty = "a very long heading " * 9, [("", paint(RED)), ("", paint(RED))]
    save_sheet(tmp_path / "long.png", [SheetRow(long, [(long, paint(RED)), ("", paint(RED))])])
    save_sheet(tmp_path / "empty.png", [SheetRow("x", empty)])
    sheet, other = read(tmp_path / "long.png"), read(tmp_path / "empty.png")
    assert sheet.shape == other.shape
    top = find_rows(sheet, RED)[0]
    beside = sheet[top - 18 : top, 6 + HEIGHT_PIXELS + 6 :]
    assert (beside == beside[0, 0]).all(), "nothing is written above the second picture"


def test_the_legend_has_the_colours_of_the_labels(tmp_path: Path) -> None:
    names = {label: f"a long name of class {label}" for label in range(1, 40)}
    save_sheet(tmp_path / "sheet.png", [SheetRow("", [("", paint(RED))])], legend=names)
    sheet = read(tmp_path / "sheet.png")
    for label in names:
        assert (sheet == make_palette()[label]).all(axis=2).any()


def test_the_footer_is_below_the_pictures(tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", [SheetRow("", [("", paint(RED))])], footer=paint(BLUE, (20, 700)))
    sheet = read(tmp_path / "sheet.png")
    assert (sheet == BLUE).all(axis=2).sum() == 20 * 700
    assert find_rows(sheet, BLUE)[0] > find_rows(sheet, RED)[-1]


def test_a_jpeg(tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.JPG", [SheetRow("", [("", paint(RED))])])
    with Image.open(tmp_path / "sheet.JPG") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize("name", ["sheet.gif", "sheet", "none/sheet.png"])
def test_a_file_that_can_not_be_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        save_sheet(tmp_path / name, [SheetRow("", [("", paint(RED))])])
    assert not list(tmp_path.iterdir())


def test_too_many_rows_for_a_picture(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="fewer rows"):
        save_sheet(tmp_path / "sheet.png", [SheetRow("", [("", paint(RED, (2, 2)))] * 400)])
    assert not list(tmp_path.iterdir())


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        save_sheet(tmp_path / "sheet.png", [])


def test_labels_and_differences() -> None:
    picture, labels = paint((100, 100, 100), (40, 60)), np.zeros((40, 60), np.uint8)
    labels[10:30, 10:30] = 3
    drawn = draw_labels(picture, labels)
    assert (picture == 100).all(), "the picture itself is not changed"
    np.testing.assert_array_equal((drawn != 100).any(axis=2), labels > 0)
    np.testing.assert_array_equal(drawn[10, 10], make_palette()[3])
    np.testing.assert_array_equal((draw_mask(picture, labels) != 100).any(axis=2), labels > 0)
    difference = draw_difference(picture, labels, np.zeros_like(labels))
    np.testing.assert_array_equal((difference == (255, 40, 40)).all(axis=2), labels > 0)
