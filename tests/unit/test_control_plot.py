"""The picture of the audio control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teso_deploy.evaluation.control_plot import draw_control, plot_control
from tests.support.commands import refused, teso
from tests.unit.test_compared_results import make_line, write_results

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def make_report(bundle: str = "one", **values: float | None) -> dict[str, Any]:
    """Make a report of two sounds; only the normal one has the values."""
    rows = [
        {"row": f"v1m {condition}", "group": "v1m", "condition": condition, "values": found}
        for condition, found in (("normal", values), ("muted", {"blank_rate": 1.0}))
    ]
    return {"protocol": "avsbench", "data": "v1m test", "bundle": bundle, "rows": rows}


def find_columns(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Return the columns in which a colour occurs."""
    return np.flatnonzero((np.abs(np.asarray(image).astype(int) - colour).sum(axis=2) < 40).any(axis=0))


def test_a_bar_is_as_long_as_its_value() -> None:
    lengths = []
    for value in (0.25, 0.5, 1.0):
        report = {**make_report(miou=value), "rows": make_report(miou=value)["rows"][:1]}
        columns = find_columns(draw_control([report], ["one"]), BLUE)
        lengths.append(columns.max() - columns.min())
    assert lengths[1] - lengths[0] == pytest.approx(210 / 4, abs=2)
    assert lengths[2] - lengths[1] == pytest.approx(210 / 2, abs=2)


def test_each_report_has_its_colour_and_numbers_without_values_have_no_panel() -> None:
    one = draw_control([make_report(miou=0.5)], ["one"])
    assert find_columns(one, BLUE).size and not find_columns(one, ORANGE).size
    two = draw_control([make_report(miou=0.5), make_report(miou=0.7)], ["one", "two"])
    assert find_columns(two, BLUE).size and find_columns(two, ORANGE).size and two.height > one.height
    assert draw_control([make_report(miou=0.5, fpr=0.1)], ["one"]).width > one.width


@pytest.mark.parametrize("bundle", ["one", "a\nb" * 500, "名前", ""])
def test_any_name_and_several_reports_are_written(tmp_path: Path, bundle: str) -> None:
    reports = [make_report(bundle, miou=2.0, f_score=-1.0), make_report(bundle)]
    plot_control(reports, tmp_path / "plot.png")
    plot_control(reports[0], tmp_path / "one.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG" and image.width < 4000


def test_compare_draws_both(tmp_path: Path) -> None:
    rows = make_report(miou=0.5)["rows"]
    one, other = (write_results(tmp_path / name, [make_line("x", miou=0.5)], rows=rows, data="d") for name in "ab")
    done = teso("compare", one, other, "--resamples", 100, "--plot", tmp_path / "plot.png")
    assert done.code == 0, done.err
    with Image.open(tmp_path / "plot.png") as image:
        assert find_columns(image.convert("RGB"), ORANGE).size
    refused("compare", one, other, "--plot", tmp_path / "plot.jpg", names=".png")
