"""``check-data``: each thing that can be wrong or odd with a data set, one by one."""

from __future__ import annotations

import json
import shutil
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.evaluation.datasets import checking
from teso_deploy.evaluation.datasets.checking import DataCheck, check_dataset
from teso_deploy.evaluation.datasets.contracts import DataLayout, DataRow
from teso_deploy.evaluation.datasets.reading import read_dataset
from tests.support.avs_layouts import write_avss, write_ms3, write_s4, write_wav
from tests.support.commands import refused, teso

CLIP = "v1m/test-0_0_5000"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an avss data set whose clips all differ: those of the splits have another brightness."""
    root = write_avss(tmp_path_factory.mktemp("avss"), size=32)
    for number, path in enumerate(sorted(root.glob("v1m/*/frames/*.jpg"))):
        Image.fromarray(np.asarray(Image.open(path)) // 2 + number).save(path, quality=95)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "data")


def list_findings(check: DataCheck) -> list[tuple[str, str, str, str]]:
    """Return severity, kind, clip and text of what was found. That few clips are not all published ones is omitted."""
    return [(found.severity, found.kind, found.clip, found.text) for found in check.findings if found.kind != "count"]


def check_one(root: Path, severity: str, kind: str) -> str:
    """Check a data set in which one thing was found in the first test clip, and return its text."""
    check = check_dataset(root)
    ((found_severity, found_kind, clip, text),) = list_findings(check)
    assert (found_severity, found_kind, clip) == (severity, kind, "test-0_0_5000")
    assert check.wrong == (severity == "wrong")
    assert {(count.split, count.wrong, count.odd) for count in check.counts} == {
        ("train", 0, 0), ("val", 0, 0), ("test", int(severity == "wrong"), int(severity == "odd")),
    }  # fmt: skip
    return text


def test_a_data_set_that_is_whole(root: Path) -> None:
    started: list[int] = []
    done: list[int] = []
    check = check_dataset(root, on_start=started.append, on_clip=lambda: done.append(1), threads=3)
    assert list_findings(check) == [] and check.wrong == 0 and check.layout == "avss"
    assert started == [6] and len(done) == 6
    assert [(count.subset, count.split, count.clips, count.published) for count in check.counts] == [
        ("v1m", "train", 2, 296), ("v1m", "val", 2, 64), ("v1m", "test", 2, 64),
    ]  # fmt: skip
    assert [found.text for found in check.findings][2] == "v1m has 2 clips in test; 64 are published"
    assert [count.split for count in check_dataset(root, "avss", "val").counts] == ["val"]


def test_an_interrupt_ends_the_check(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    check = checking._check_clip

    def check_slowly(folder: Path, layout: DataLayout, row: DataRow) -> object:
        begun.append(row.uid)
        time.sleep(0.2)
        return check(folder, layout, row)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "_check_clip", check_slowly)
    with pytest.raises(KeyboardInterrupt):
        check_dataset(written, on_clip=interrupt, threads=1)
    assert 1 <= len(begun) <= 2


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:44])


@pytest.mark.parametrize(("damage", "kind", "text"), [
    (lambda clip: (clip / "frames/3.jpg").unlink(), "files", "frames has 4 of 5 frames, 3 missing"),
    (lambda clip: (clip / "labels_semantic/0.png").unlink(), "files", "labels_semantic has 4 of 5 masks, 0 missing"),
    (lambda clip: (clip / "audio.wav").unlink(), "files", "audio.wav does not exist"),
    (lambda clip: Image.new("L", (16, 32)).save(clip / "labels_semantic/2.png"), "files", "2.png has 16 × 32 pixels"),
    (lambda clip: shorten(clip / "audio.wav"), "sound", "audio.wav"),
    (lambda clip: (clip / "audio.wav").write_text("no sound"), "sound", "audio.wav"),
    (lambda clip: Image.new("RGB", (32, 32)).save(clip / "labels_semantic/1.png"), "mask", "not an index image but"),
    (lambda clip: Image.new("L", (32, 32), 99).save(clip / "labels_semantic/1.png"), "mask", "1.png has the class 99"),
])  # fmt: skip
def test_what_is_wrong(root: Path, damage: Callable[[Path], None], kind: str, text: str) -> None:
    damage(root / CLIP)
    assert text in check_one(root, "wrong", kind)


def test_all_files_of_a_clip_are_named(root: Path) -> None:
    for name in ("frames/3.jpg", "labels_semantic/1.png", "audio.wav"):
        (root / CLIP / name).unlink()
    for number in (0, 2):
        Image.new("L", (16, 32)).save(root / "v1m/test-1_0_5000/labels_semantic" / f"{number}.png")
    found = list_findings(check_dataset(root))
    assert [clip for _, kind, clip, _ in found if kind == "files"] == ["test-0_0_5000"] * 3 + ["test-1_0_5000"] * 2
    assert ["3 missing" in found[0][3], "1 missing" in found[1][3], "audio.wav" in found[2][3]] == [True] * 3
    with pytest.raises(DataError, match=r"3 missing, and 2 more of its files can't be used; 1 more of 2 videos"):
        read_dataset(root, None, "test")


@pytest.mark.parametrize("name", ["frames/1.jpg", "labels_semantic/1.png"])
def test_a_picture_that_is_cut_off_is_decoded(root: Path, name: str) -> None:
    path = root / CLIP / name
    noise = np.random.default_rng(0).integers(0, 71, (32, 32), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    found = check_dataset(root)
    wrong = [text for severity, _, _, text in list_findings(found) if severity == "wrong"]
    assert len(wrong) == 1 and wrong[0].startswith(f"{path} can't be read")


def blank_masks(clip: Path) -> None:
    for mask in (clip / "labels_semantic").iterdir():
        Image.new("L", (32, 32)).save(mask)


def write_samples(path: Path, samples: NDArray[np.float64]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.mark.parametrize(("change", "kind", "text"), [
    (lambda clip: write_wav(clip / "audio.wav", [("dog",)] * 4), "short", "ends at 4.00 s, but its frames need 4.97 s"),
    (lambda clip: write_wav(clip / "audio.wav", [()] * 5), "silent", "audio.wav is silent throughout"),
    (lambda clip: blank_masks(clip), "blank", "labels_semantic has only blank masks"),
    (lambda clip: Image.new("L", (32, 32), 25).save(clip / "labels_semantic/3.png"), "class",
     "labels_semantic shows frying food, but the table names dog_car"),
])  # fmt: skip
def test_what_is_odd(root: Path, change: Callable[[Path], None], kind: str, text: str) -> None:
    change(root / CLIP)
    assert text in check_one(root, "odd", kind)


def test_a_sound_that_ends_a_little_early_is_accepted(root: Path) -> None:
    write_samples(root / CLIP / "audio.wav", 0.1 * np.sin(np.arange(int(4.9 * 16_000))))
    assert list_findings(check_dataset(root)) == []


def test_frames_of_different_sizes(root: Path) -> None:
    for name in ("frames/2.jpg", "labels_semantic/2.png"):
        Image.open(root / CLIP / name).resize((40, 32), Image.Resampling.NEAREST).save(root / CLIP / name)
    assert "has frames of 32 × 32 and 40 × 32 pixels" in check_one(root, "odd", "size")


def test_clips_with_the_same_content(root: Path) -> None:
    for name, other in (("test-1_0_5000", "test-0_0_5000"), ("test-0_0_5000", "train-1_0_5000")):
        shutil.rmtree(root / "v1m" / name / "frames")
        shutil.copytree(root / "v1m" / other / "frames", root / "v1m" / name / "frames")
    shutil.copy(root / "v1m/train-1_0_5000/audio.wav", root / "v1m/test-0_0_5000/audio.wav")
    texts = [text for severity, kind, _, text in list_findings(check_dataset(root)) if kind == "duplicate"]
    assert texts == [
        "test-0_0_5000 has the same content as train-1_0_5000 of train, although it is in test",
    ]
    shutil.rmtree(root / "v1m/test-1_0_5000/frames")
    shutil.copytree(root / "v1m/test-0_0_5000/frames", root / "v1m/test-1_0_5000/frames")
    write_wav(root / "v1m/test-1_0_5000/audio.wav", [("piano",)] * 5)
    inside = list_findings(check_dataset(root, "avss", "test"))
    assert [found[1:] for found in inside] == [
        ("duplicate", "test-1_0_5000", "test-1_0_5000 has the same pictures, with another sound, as test-0_0_5000"),
    ]  # fmt: skip


def test_tables_with_twins_and_unknown_columns(root: Path) -> None:
    table = root / "metadata.csv"
    head, *rows = table.read_text().splitlines()
    lines = [f"{head},mood", *(f"{row},calm" for row in [*rows, rows[-1], rows[0].replace(",train,", ",dev,")])]
    table.write_text("\n".join(lines) + "\n")
    found = list_findings(check_dataset(root))
    assert [(severity, kind, clip) for severity, kind, clip, _ in found] == [
        ("wrong", "table", "test-1_0_5000"), ("odd", "table", "train-0_0_5000"), ("wrong", "table", "train-0_0_5000"),
        ("odd", "table", ""),
    ]  # fmt: skip
    assert found[0][3] == f"{table}: test-1_0_5000 is there twice"
    assert found[1][3] == f"{table}: train-0_0_5000 has the split 'dev', which is never read"
    assert found[3][3] == f"{table} has the unknown column 'mood', which is ignored"


def test_rows_without_name_or_with_another_subset(root: Path) -> None:
    table = root / "metadata.csv"
    table.write_text(table.read_text() + "x,,0,0,dog,test,v1m\nx,x_0,0,0,dog,test,v7\n")
    found = list_findings(check_dataset(root))
    assert [text for _, _, _, text in found] == [
        f"{table}: a row has no name", f"{table}: x_0 has the label 'v7', not v1s, v1m, v2",
    ]  # fmt: skip


def test_binary_masks_with_grey_levels(tmp_path: Path) -> None:
    root = write_s4(tmp_path, size=16)
    mask = next(root.rglob("gt_masks/test/*/*/*_2.png"))
    Image.fromarray(np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))).save(mask)
    found = [one for one in list_findings(check_dataset(root)) if one[1] != "duplicate"]
    assert [(severity, kind, text) for severity, kind, _, text in found] == [
        ("odd", "mask", f"{mask} has 16 grey levels: all but black count as the object")
    ]


def test_negatives_are_blank_and_silent_on_purpose(tmp_path: Path) -> None:
    root = write_ms3(tmp_path, size=16)
    write_wav(root / "silent.wav", [()] * 5)
    found = list_findings(check_dataset(root, "robust-silence"))
    assert {kind for _, kind, _, _ in found} == {"duplicate"}, "the splits of the test data are alike"


def test_a_folder_that_is_not_a_data_set(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no known layout"):
        check_dataset(tmp_path)
    with pytest.raises(InputNotFoundError, match="no folder"):
        check_dataset(tmp_path / "no")
    (root / "metadata.csv").write_text("vid,uid,a_obj,split,label\n")
    with pytest.raises(DataError, match="has no clip"):
        check_dataset(root)
    with pytest.raises(DataError, match="has no clip in the split val"):
        check_dataset(root, "avss", "val")


def test_the_command(root: Path, tmp_path: Path) -> None:
    done = teso("check-data", root, "--json", "-")
    assert done.code == 0, done
    report = json.loads(done.out)
    assert report["layout"] == "avss" and len(report["rows"]) == 3 and len(report["findings"]) == 3
    assert "odd: v1m has 2 clips in test; 64 are published" in done.err
    (root / CLIP / "audio.wav").unlink()
    report_file = tmp_path / "report.json"
    done = teso("check-data", root, "--split", "test", "--layout", "avss", "--jobs", 1, "--json", report_file)
    assert done.code == 1
    (wrong,) = (found for found in json.loads(report_file.read_text())["findings"] if found["severity"] == "wrong")
    assert wrong == {
        "severity": "wrong", "kind": "files", "split": "test", "clip": "test-0_0_5000",
        "text": f"{root / CLIP / 'audio.wav'} does not exist",
    }  # fmt: skip
    assert "wrong: " in done.err and "does not exist" in done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith(f"teso-deploy: 1 thing is wrong in {root}: restore the files")


@pytest.mark.parametrize(("arguments", "text"), [
    (("--layout", "s5"), "unknown layout 's5': name one of s4, ms3, avss, clips"),
    (("--layout", "s4"), "does not have the layout s4"),
    (("--split", "dev"), "unknown split 'dev': choose from train, val, test"),
])  # fmt: skip
def test_commands_that_are_refused(root: Path, arguments: tuple[str, ...], text: str) -> None:
    refused("check-data", root, *arguments, names=text)
