"""``teso-deploy figure`` with the shipped bundle on small data sets, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from teso_deploy.evaluation.figures import FIGURES
from teso_deploy.resources import find_shipped_path
from tests.support.avs_layouts import write_avss, write_s4
from tests.support.commands import names_in, refused, teso

SUBSETS = ("v1s", "v1m", "v2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avss(tmp_path_factory.mktemp("data"), videos=2, subsets=SUBSETS)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure(name: str, data: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "figure.png", tmp_path / "report.json"
    done = teso("figure", name, "--data", data, "--out", out, "--cues", "labels", "--json", report, "--threads", 1)
    assert done.code == 0, done.err
    assert names_in(tmp_path) == ["figure.png", "report.json"]
    with Image.open(out) as sheet:
        assert min(sheet.size) > 300 and sheet.mode == "RGB"
    found = json.loads(report.read_text())
    assert found["figure"] == name and {clip["subset"] for clip in found["clips"]} == {*FIGURES[name].subsets}
    columns = {"4": 3, "B6": 3, "B7": 3, "J8": 5, "J9": 6}[name]
    assert all(len(clip["columns"]) == columns for clip in found["clips"])


def test_bundles_side_by_side_and_named_clips(tmp_path: Path) -> None:
    data, report = write_s4(tmp_path / "data", videos=2), tmp_path / "report.json"
    shipped = find_shipped_path("engines/bundles/teso-nano")
    done = teso(
        "figure", "J8", "--data", data, "--out", tmp_path / "f.jpg", "--bundle", f"ours={shipped}", "--bundle", shipped,
        "--clip", "val-1_0_5000", "--split", "val", "--cues", "none", "--json", report, "--threads", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    (clip,) = json.loads(report.read_text())["clips"]
    assert clip["clip"] == "val-1_0_5000" and clip["cues"] == [] and clip["words"] == ["car"]
    assert clip["columns"][2:4] == ["ours: with sound", "ours: muted"] and clip["columns"][5] == "teso-nano: with sound"
    with Image.open(tmp_path / "f.jpg") as sheet:
        assert sheet.format == "JPEG"


def test_two_runs_give_the_same_file(data: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        assert teso("figure", "J8", "--data", data, "--out", tmp_path / name, "--threads", 1).code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_cues_of_a_file(data: Path, tmp_path: Path) -> None:
    words, report = tmp_path / "words.txt", tmp_path / "report.json"
    words.write_text("horse\n")
    done = teso(
        "figure", "4", "--data", data, "--out", tmp_path / "f.png", "--cues-file", words, "--json", report,
        "--clips", 1, "--threads", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(report.read_text())["clips"][0]["cues"] == ["horse"]


def test_what_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.png"
    shipped = find_shipped_path("engines/bundles/teso-nano")
    inside = data / "v1m" / "f.png"
    for arguments, reason in (
        (("5",), "unknown figure '5': name one of 4, B6"),
        (("4", "--clip", "nobody"), "unknown clip 'nobody'"),
        (("4", "--split", "dev"), "unknown split 'dev'"),
        (("4", "--subset", "v3"), "unknown subset 'v3'"),
        (("4", "--layout", "s5"), "unknown layout 's5'"),
        (("4", "--layout", "ms3"), "does not have the layout ms3"),
        (("4", "--cues", "visible"), "unknown way 'visible' to choose cues"),
        (("4", "--cues-file", tmp_path / "none.json"), "none.json"),
        (("4", "--bundle", tmp_path / "none"), "none"),
        (("4", "--bundle", shipped, "--bundle", shipped), "two bundles are called teso-nano"),
    ):
        refused("figure", *arguments, "--data", data, "--out", out, names=reason)
    refused("figure", "4", "--data", data, "--out", inside, names="is inside")
    refused("figure", "4", "--data", data, "--out", tmp_path / "f.gif", names="must end in .png or .jpg")
    refused("figure", "4", "--data", data, "--out", out, "--json", out, names="same output")
    refused("figure", "4", "--data", tmp_path / "none", "--out", out, names="no folder")
    for options in (("--clip", "x", "--clips", 2), ("--cues", "none", "--cues-file", "x"), ("--bundle", "=x")):
        done = teso("figure", "4", "--data", data, "--out", out, *options)
        assert done.code == 2 and "Traceback" not in done.err, done.err
    assert not names_in(tmp_path) and not inside.exists()


def test_classes_of_binary_masks(tmp_path: Path) -> None:
    data = write_s4(tmp_path / "data", videos=1)
    reason = "figure B7 shows classes, which s4 does not have: name one of 4, B6, J8, J9"
    refused("figure", "B7", "--data", data, "--out", tmp_path / "f.png", names=reason)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    data = write_avss(tmp_path / "data", videos=1)
    picture = next((data / "v1m").glob("test-*/frames/2.jpg"))
    picture.write_bytes(picture.read_bytes()[:-300])
    refused("figure", "4", "--data", data, "--subset", "v1m", "--out", tmp_path / "f.png", names=str(picture))
    assert not (tmp_path / "f.png").exists()
