"""``teso-deploy table`` as a user calls it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from teso_deploy.evaluation.clip_predictor import ClipPredictor
from teso_deploy.evaluation.tables.schema import list_shipped_tables
from tests.support.avs_layouts import write_avss, write_ms3, write_v3
from tests.support.commands import names_in, refused, teso

FILES = ["table-4.csv", "table-4.json", "table-4.md", "table-4.png", "table-4.tex"]
OWN = """
title = "My own table"
shows = "mIoU on several sources, with what the bundle does when nothing sounds."

[[columns]]
key = "miou"
group = "V1M"
heading = "mIoU"
dataset = "v1m"
condition = "normal"

[[columns]]
key = "blank"
heading = "Blank"
dataset = "v1m"
condition = "noise 10 dB SNR"
value = "blank_rate"

[[columns]]
key = "single"
heading = "mIoU"
dataset = "v1s"

[[rows]]
key = "filter"
name = "Filtered labels"
cues = "filter"

[[claims]]
says = "Some masks are right."
column = "miou"
row = "ours"
above = 0.0
"""


@pytest.fixture(scope="module")
def avss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avss(tmp_path_factory.mktemp("data") / "avss")


def test_without_a_name_the_tables_are_listed() -> None:
    done = teso("table")
    assert done.code == 0 and [line.split()[0] for line in done.err.splitlines()] == list(list_shipped_tables())


@pytest.mark.parametrize("name", ["4", "h10"])
def test_without_data_the_quoted_numbers_are_shown(name: str, tmp_path: Path) -> None:
    done = teso("table", name, "--json", "-", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["claims"] == [] and report["evaluations"] == []
    assert all(cell["measured"] is None for row in report["rows"] for cell in row["cells"].values())
    assert "†" in done.err


def test_a_table_in_every_format(
    avss: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = ("table", 4, "--data", avss, "--bundle", tiny_bundle, "--cues", "labels", "--out", out, "--work", work)
    done = teso(*arguments, "--clips", 1)
    assert done.code == 0, done.err
    assert names_in(out) == FILES
    report = json.loads((out / "table-4.json").read_text())
    assert [row["row"] for row in report["rows"]][-2:] == ["teso", "ours"]
    ours = report["rows"][-1]
    assert ours["name"] == "tiny (ours)" and ours["measured_with"] == "bundle tiny, cues labels"
    cells = {key: cell["measured"] for key, cell in ours["cells"].items()}
    assert all(value is not None for key, value in cells.items() if not key.endswith("drop"))
    assert 0 <= cells["mute_blank"] <= 100 and 0 <= cells["mute_f"] <= 1
    (evaluation,) = report["evaluations"]
    assert evaluation["clips"] == 1 and evaluation["dataset"] == "v1m" and evaluation["protocol"] == "avsbench"
    assert {one["verdict"] for one in report["claims"]} <= {"holds", "does not hold", "can't be judged"}
    lines = list(csv.DictReader(io.StringIO((out / "table-4.csv").read_text(encoding="utf-8"))))
    assert [line["origin"] for line in lines] == ["quoted"] * 4 + ["measured"]
    assert float(lines[-1]["mute_miou"]) == cells["mute_miou"]
    assert "tiny (ours)" in (out / "table-4.md").read_text() and str(avss) not in (out / "table-4.md").read_text()
    assert r"\toprule" in (out / "table-4.tex").read_text()
    with Image.open(out / "table-4.png") as picture:
        assert picture.format == "PNG"
    # The second time, the results in the work folder are read, and the model is not called.
    (out / "table-4.json").unlink()
    monkeypatch.setattr(ClipPredictor, "__call__", lambda self, trial: pytest.fail("the model was called"))
    assert teso(*arguments, "--clips", 1).code == 0
    assert json.loads((out / "table-4.json").read_text()) == report


def test_a_table_of_ones_own(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Named bundles, a row that filters, a data set that is missing, and a file of cues for one row."""
    (tmp_path / "own.toml").write_text(OWN)
    (tmp_path / "cues.txt").write_text("dog, car")
    done = teso(
        "table", tmp_path / "own.toml", "--data", avss, "--bundle", tiny_bundle, "--bundle", f"Twin={tiny_bundle}",
        "--cues", "labels", "--cues-file", f"words={tmp_path / 'cues.txt'}", "--clips", 1, "--json", "-",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    rows = {row["row"]: row["cells"] for row in report["rows"]}
    assert list(rows) == ["filter", "Twin", "words", "ours"]
    assert rows["Twin"] == rows["ours"]
    assert all(cells["single"]["reason"] == "no folder of --data has v1s" for cells in rows.values())
    assert all(cells["blank"]["measured"] is not None for cells in rows.values())
    assert report["claims"][0]["row"] == "tiny (ours)"
    assert report["table"] == "own" and "can't" not in report["claims"][0]["verdict"]


def test_precision_of_the_cues(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = teso("table", 3, "--data", avss, "--bundle", tiny_bundle, "--cues", "labels", "--json", "-")
    assert done.code == 0, done.err
    cells = json.loads(done.out)["rows"][-1]["cells"]
    assert cells["rec_1"]["measured"] > 0 and 0 <= cells["rec_2"]["measured"] <= 100
    # Multiple sources of MS3 have no words.
    done = teso(
        "table", 3, "--data", write_ms3(tmp_path / "ms3"), "--bundle", tiny_bundle, "--cues", "none", "--json", "-"
    )
    assert done.code == 0, done.err
    assert "avsbench gives no cue_precision" in json.loads(done.out)["rows"][-1]["cells"]["rec_1"]["reason"]


def test_few_examples_have_a_bundle_for_each_number(tiny_bundle: Path, tmp_path: Path) -> None:
    """The folder has the tables of one example; those of three and five are missing."""
    done = teso(
        "table", "H10", "--data", write_v3(tmp_path / "v3"), "--bundle", f"teso@v3-0-shot={tiny_bundle}",
        "--bundle", f"teso@v3-1-shot={tiny_bundle}", "--cues", "labels", "--json", "-",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    cells = {row["row"]: row["cells"] for row in report["rows"]}["teso"]
    assert cells["0_shot_miou"]["measured"] is not None and cells["1_shot_f"]["measured"] is not None
    assert cells["3_shot_miou"]["reason"] == "no bundle for v3-3-shot"
    assert [one["clips"] for one in report["evaluations"]] == [4, 3]


def test_bad_input_is_one_sentence(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    data = ("--data", avss)
    refused("table", "99", names="unknown table '99'")
    refused("table", tmp_path / "no.toml", names="no.toml")
    refused("table", "4", "--bundle", tiny_bundle, names="--bundle needs --data")
    refused("table", "4", *data, "--bundle", "teso=", names="has no path")
    refused("table", "4", *data, "--bundle", "teso=no/such/folder", names="no/such/folder")
    refused("table", "4", *data, "--bundle", f"teso@v9={tiny_bundle}", names="'v9' is not a data set")
    refused("table", "4", *data, "--cues", "perfect", names="'perfect'")
    refused("table", "4", *data, "--cues-file", tmp_path / "no.txt", names="no.txt")
    refused("table", "4", "--data", tmp_path / "none", names="none")
    refused("table", "4", "--data", tmp_path, names="has no data set of the tables")
    refused("table", "4", *data, "--split", "all", names="unknown split 'all'")
    refused("table", "4", *data, "--out", avss / "out", names="is inside")
    refused("table", "4", *data, "--work", avss, names="is inside")
    refused("table", "4", *data, "--out", tmp_path / "a" / "b", names="there is no folder")
    assert not (avss / "out").exists()


def test_classes_that_the_data_lacks_are_named(avss: Path, tiny_bundle: Path) -> None:
    refused("table", "2", "--data", avss, "--bundle", tiny_bundle, "--cues", "labels", names="--skip-bad")


def test_a_damaged_data_set_is_refused(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(avss, tmp_path / "damaged"))
    next((damaged / "v1m").glob("test-0*/labels_semantic/0.png")).unlink()
    refused("table", "4", "--data", damaged, "--bundle", tiny_bundle, "--cues", "labels", names="test-0")
