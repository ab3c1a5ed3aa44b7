"""`teso-deploy eval` on data sets of clips: results folders, interruptions, damaged clips."""

from __future__ import annotations

import csv
import json
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from teso_deploy.evaluation import results_folder
from teso_deploy.evaluation.clip_predictor import ClipPredictor
from teso_deploy.evaluation.clip_trials import ClipTrial
from teso_deploy.evaluation.contracts import Prediction
from tests.support.avs_layouts import write_avss, write_ms3, write_s4
from tests.support.commands import names_in, refused, teso

COMMON = ("--cues", "labels", "--protocol", "avsbench", "--condition", "muted", "--noise-snr", 10)


@pytest.fixture(scope="module")
def avss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avss(tmp_path_factory.mktemp("avss"), videos=6)


@pytest.fixture
def damaged(avss: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(avss, tmp_path / "damaged"))


def evaluate(root: Path, bundle: Path, *arguments: object) -> dict[str, Any]:
    done = teso("eval", root, "--bundle", bundle, *COMMON, "--json", "-", *arguments)
    assert done.code == 0, done.err
    report: dict[str, Any] = json.loads(done.out)
    return report


def test_a_results_folder(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = evaluate(avss, tiny_bundle, "--out", out)
    assert names_in(out) == ["clips.jsonl", "report.json", "state.json", "table.md"]
    assert json.loads((out / "report.json").read_text()) == report
    assert report["protocol"] == "avsbench" and report["layout"] == "avss" and report["split"] == "test"
    assert [row["condition"] for row in report["rows"]] == ["normal", "muted", "noise 10 dB SNR"]
    assert all(row["samples"] == 6 and row["frames"] == 30 for row in report["rows"])
    lines = [json.loads(line) for line in (out / "clips.jsonl").read_text().splitlines()]
    assert len(lines) == 18 and {line["clip"] for line in lines} == {f"test-{k}_0_5000" for k in range(6)}
    normal = [line["values"]["miou"] for line in lines if line["condition"] == "normal"]
    assert report["rows"][0]["values"]["miou"] == pytest.approx(sum(normal) / 6)
    assert lines[0]["words"] == ["dog", "car"]
    assert (out / "table.md").read_text().splitlines()[2].startswith("| normal | 6 | ")


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let the model end the process after some trials, with a state written after each batch."""
    monkeypatch.setattr(results_folder, "_SECONDS_BETWEEN_STATES", 0.0)
    answer = ClipPredictor.__call__

    def set_trials(count: int) -> None:
        left = iter(range(count))

        def limited(self: ClipPredictor, trial: ClipTrial) -> Prediction:
            if next(left, None) is None:
                raise Killed
            return answer(self, trial)

        monkeypatch.setattr(ClipPredictor, "__call__", limited)

    yield set_trials


@pytest.mark.parametrize("protocol", ["avsbench", "gewu", "avss"])
@pytest.mark.parametrize("trials", [20, 50, 77])
def test_a_killed_run_continues_to_the_same_numbers(
    avss: Path, tiny_bundle: Path, tmp_path: Path, kill_after: Any, protocol: str, trials: int
) -> None:
    arguments = ("--protocol", protocol, "--skip-bad", "--jobs", 1)
    whole = evaluate(avss, tiny_bundle, *arguments, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    kill_after(trials)
    with pytest.raises(Killed):
        evaluate(avss, tiny_bundle, *arguments, "--out", out)
    assert "report.json" not in names_in(out)
    kill_after(10_000)
    assert evaluate(avss, tiny_bundle, *arguments, "--out", out) == whole
    assert (out / "clips.jsonl").read_bytes() == (tmp_path / "whole" / "clips.jsonl").read_bytes()


def test_a_finished_run_is_not_run_again(avss: Path, tiny_bundle: Path, tmp_path: Path, kill_after: Any) -> None:
    whole = evaluate(avss, tiny_bundle, "--out", tmp_path / "out")
    kill_after(0)
    assert evaluate(avss, tiny_bundle, "--out", tmp_path / "out", "--jobs", 2) == whole


def test_a_run_whose_lines_were_removed_begins_again(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = evaluate(avss, tiny_bundle, "--out", out)
    lines = (out / "clips.jsonl").read_bytes()
    (out / "clips.jsonl").write_bytes(lines[:100])
    assert evaluate(avss, tiny_bundle, "--out", out) == whole
    assert (out / "clips.jsonl").read_bytes() == lines


def test_results_of_other_settings_are_kept(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(avss, tiny_bundle, "--out", out)
    before = (out / "report.json").read_bytes()
    common = ("eval", avss, "--bundle", tiny_bundle, *COMMON, "--out", out, "--clips", 2)
    refused(*common, names="has results of other settings, data, weights or version")
    assert (out / "report.json").read_bytes() == before
    assert teso(*common, "--overwrite").code == 0
    assert json.loads((out / "report.json").read_text())["clips"] == 2


def test_a_folder_with_other_files_is_refused(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    arguments = ("eval", avss, "--bundle", tiny_bundle, "--out")
    refused(*arguments, tmp_path, names="has files that are not of an evaluation")
    refused(*arguments, avss / "v1m", names="is inside")
    refused(*arguments, tmp_path / "no" / "out", names="make it first")
    assert names_in(tmp_path) == ["thesis.tex"]


def damage_mask(root: Path) -> None:
    (root / "v1m/test-1_0_5000/labels_semantic/2.png").unlink()


def damage_size(root: Path) -> None:
    path = root / "v1m/test-1_0_5000/labels_semantic/2.png"
    Image.open(path).resize((20, 20)).save(path)


def damage_picture(root: Path) -> None:
    (root / "v1m/test-1_0_5000/frames/3.jpg").write_bytes(b"\xff\xd8\xff")


def damage_palette(root: Path) -> None:
    path = root / "v1m/test-1_0_5000/labels_semantic/2.png"
    Image.open(path).convert("RGB").save(path)


def damage_class(root: Path) -> None:
    path = root / "v1m/test-1_0_5000/labels_semantic/2.png"
    Image.new("L", (64, 64), 200).save(path)


def damage_sound(root: Path) -> None:
    (root / "v1m/test-1_0_5000/audio.wav").write_bytes(b"RIFF")


DAMAGES = (damage_mask, damage_size, damage_picture, damage_palette, damage_class, damage_sound)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_clip_is_named_or_skipped(damaged: Path, tiny_bundle: Path, damage: Any) -> None:
    damage(damaged)
    said = refused("eval", damaged, "--bundle", tiny_bundle, *COMMON, names="test-1_0_5000")
    done = teso("eval", damaged, "--bundle", tiny_bundle, *COMMON, "--skip-bad", "--json", "-")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["rows"][0]["samples"] == 5
    assert [problem for problem in report["skipped"] if "test-1_0_5000" in problem], report["skipped"]
    assert "skipped: " in done.err and "test-1_0_5000" in said


def test_a_damaged_first_mask_is_skipped(damaged: Path, tiny_bundle: Path) -> None:
    path = damaged / "v1m/test-0_0_5000/labels_semantic/0.png"
    Image.open(path).convert("RGB").save(path)
    arguments = ("eval", damaged, "--bundle", tiny_bundle, "--cues", "none", "--protocol", "avss", "--skip-bad")
    report = json.loads(teso(*arguments, "--json", "-").out)
    assert report["rows"][0]["samples"] == 5 and "test-0_0_5000" in report["skipped"][0]


def test_data_without_a_readable_clip_is_refused(damaged: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for path in damaged.glob("v1m/test-*/audio.wav"):
        path.write_bytes(b"RIFF")
    out = tmp_path / "out"
    arguments = ("eval", damaged, "--bundle", tiny_bundle, *COMMON, "--skip-bad", "--out", out)
    refused(*arguments, names="none of the 6 samples can be read; the first: ")
    assert "report.json" not in names_in(out)


def test_wrong_tables_and_splits(damaged: Path, tiny_bundle: Path) -> None:
    arguments = ("eval", damaged, "--bundle", tiny_bundle)
    refused(*arguments, "--subset", "v2", names="no video of v2 in the split test")
    refused(*arguments, "--subset", "v7", names="unknown subset 'v7'")
    refused(*arguments, "--split", "holdout", names="unknown split 'holdout'")
    refused(*arguments, "--layout", "davis", names="'davis'")
    refused(*arguments, "--condition", "loud", names="unknown condition 'loud'")
    table = damaged / "metadata.csv"
    rows = list(csv.reader(table.read_text().splitlines()))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["vid", "name", "s_min", "s_sec", "a_obj", "split", "label"], *rows[1:]])
    refused(*arguments, names="must have the columns uid,a_obj,split,label")


@pytest.mark.parametrize(
    ("option", "level", "said"),
    [
        ("--noise-dbfs", 10, "is 10.0: give dBFS from -200 to 0"),
        ("--noise-dbw", "nan", "is nan: give dBW from -200 to 200"),
        ("--noise-snr", "inf", "is inf: give dB from -200 to 200"),
    ],
)
def test_levels_that_are_out_of_range(avss: Path, tiny_bundle: Path, option: str, level: object, said: str) -> None:
    """The second value of an option that may be repeated is checked like the first."""
    done = teso("eval", avss, "--bundle", tiny_bundle, option, -20, option, level)
    assert done.code == 2 and f"{option} {said}" in " ".join(done.err.split())


def test_a_bundle_with_other_classes(damaged: Path, tiny_bundle: Path) -> None:
    arguments = ("eval", damaged, "--bundle", tiny_bundle, "--cues", "none", "--protocol", "avss")
    refused(*arguments, names="tiny has classes that the data set lacks (cow): --skip-bad scores them as background")
    done = teso(*arguments, "--skip-bad", "--json", "-")
    assert done.code == 0 and json.loads(done.out)["notes"] == ["tiny's classes cow are scored as background"]


def test_options_of_other_protocols_are_refused(avss: Path, media_folder: Path, tiny_bundle: Path) -> None:
    done = teso("eval", media_folder, "--bundle", tiny_bundle, "--condition", "muted", "--noise-snr", 5)
    assert done.code == 2 and "--condition and --noise-snr are for avsbench and gewu" in " ".join(done.err.split())
    done = teso("eval", avss, "--bundle", tiny_bundle, "--seeds", 5)
    assert done.code == 2 and "--seeds is for composed-scenes: omit it" in done.err


def test_options_without_effect_are_refused(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("eval", avss, "--bundle", tiny_bundle, "--cues", "none", "--protocol", "avsbench")
    refused(*arguments, "--mistakes", names="--mistakes is for the protocol avss: omit it")
    done = teso(*arguments, "--overwrite")
    assert done.code == 2 and "--overwrite: needs --out" in done.err
    arguments = ("eval", write_s4(tmp_path), "--bundle", tiny_bundle, "--cues", "none", "--subset", "v1m")
    refused(*arguments, names="the layout s4 has no subset v1m: it has v1s, omit --subset")


def test_the_default_protocol_is_that_of_the_data(tmp_path: Path, tiny_bundle: Path) -> None:
    done = teso("eval", write_s4(tmp_path), "--bundle", tiny_bundle, "--json", "-", "--cues", "none")
    report = json.loads(done.out)
    assert report["protocol"] == "avsbench" and report["rows"][0]["group"] == "v1s" and report["clips"] == 2


def test_cues_of_a_file(avss: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    released = {f"test-{k}": {f"f{second}": "dog,car," for second in range(5)} for k in range(6)}
    cues = tmp_path / "cues.json"
    cues.write_text(json.dumps(released))
    arguments = ("eval", avss, "--bundle", tiny_bundle, "--cues-file", cues)
    done = teso(*arguments, "--protocol", "avsbench", "--json", "-")
    assert done.code == 0 and json.loads(done.out)["cues"] == str(cues), done.err
    del released["test-3"]
    cues.write_text(json.dumps(released))
    refused(*arguments, "--protocol", "avsbench", names="but not of 'test-3_0_5000'")


def test_labels_as_cues(damaged: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    table = damaged / "metadata.csv"
    table.write_text(table.read_text().replace("dog_car", "sorna_emergency-car"))
    report = evaluate(damaged, tiny_bundle)
    assert report["notes"] == ["tiny has no embedding for the labels sorna, which are not offered as cues"]
    arguments = ("eval", write_ms3(tmp_path), "--bundle", tiny_bundle, "--cues", "labels")
    refused(*arguments, names="ms3 does not say what sounds in a clip: give --cues auto or --cues-file")


def test_silence_is_not_a_damaged_sound(damaged: Path, tiny_bundle: Path) -> None:
    with wave.open(str(damaged / "v1m/test-1_0_5000/audio.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(160_000))
    assert evaluate(damaged, tiny_bundle)["skipped"] == []


def test_the_worst_clips_as_a_picture(avss: Path, media_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    sheet, out = tmp_path / "worst.png", tmp_path / "out"
    evaluate(avss, tiny_bundle, "--out", out, "--clips", 4)
    evaluate(avss, tiny_bundle, "--out", out, "--clips", 4, "--worst", sheet)  # all scores are read from the folder
    with Image.open(sheet) as image:
        assert image.height > 4 * 200 and image.width > 4 * 200
    refused("eval", avss, "--bundle", tiny_bundle, *COMMON, "--worst", tmp_path / "worst.gif", names=".png or .jpg")
    done = teso("eval", media_folder, "--bundle", tiny_bundle, "--worst", sheet)
    assert done.code == 2 and "--worst is for avsbench" in " ".join(done.err.split())
