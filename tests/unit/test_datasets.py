"""Reading the published layouts: which files are found, accepted, and refused with one sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.evaluation.datasets.avss import CLASSES, list_avss_classes
from teso_deploy.evaluation.datasets.contracts import FRAMES, VideoSample
from teso_deploy.evaluation.datasets.pictures import load_frame
from teso_deploy.evaluation.datasets.reading import detect_layout, load_mask, read_dataset
from teso_deploy.evaluation.datasets.registry import Layout
from tests.support.avs_layouts import (
    AVSS_INDEX,
    PATTERN,
    SPLITS,
    THINGS,
    avss_colours,
    sounding,
    things_of,
    write_avss,
    write_ms3,
    write_s4,
)

WRITERS = {"s4": write_s4, "ms3": write_ms3, "avss": write_avss}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write each layout once. Tests that change a file use a copy."""
    roots = {name: write(tmp_path_factory.mktemp(name), size=32) for name, write in WRITERS.items()}
    roots["all subsets"] = write_avss(
        tmp_path_factory.mktemp("subsets"), videos=1, size=32, subsets=("v1s", "v1m", "v2")
    )
    return roots


@pytest.fixture
def copies(written: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: shutil.copytree(root, tmp_path / name) for name, root in written.items()}


# --- finding files


@pytest.mark.parametrize("layout", ["s4", "ms3", "avss"])
def test_layouts_are_told_apart_and_read_in_the_order_of_the_table(written: dict[str, Path], layout: Layout) -> None:
    root = written[layout]
    assert detect_layout(root) == layout
    for split in ("train", "val", "test"):
        samples = read_dataset(root, None, split)
        assert samples == read_dataset(root, layout, split)
        assert [sample.uid.split("_")[0] for sample in samples] == [f"{split}-0", f"{split}-1"]
        for sample in samples:
            assert sample.split == split and sample.subset == ("v1s" if layout == "s4" else "v1m")
            assert len(sample.frames) == 5 and all(path.is_file() for path in sample.frames)
            assert sample.audio.is_file()
            labelled = [mask is not None for mask in sample.masks]
            assert labelled == ([True] + [False] * 4 if (layout, split) == ("s4", "train") else [True] * 5)
    assert [sample.category for sample in read_dataset(root, layout, "val")] == {
        "s4": ["dog_barking", "race_car"], "ms3": ["", ""], "avss": ["dog_car", "car_piano"],
    }[layout]  # fmt: skip


def test_the_table_gives_the_order(copies: dict[str, Path]) -> None:
    table = copies["avss"] / "metadata.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(rows)]))
    assert [sample.uid for sample in read_dataset(copies["avss"], None, "test")] == ["test-1_0_5000", "test-0_0_5000"]


def test_subsets_of_avss(written: dict[str, Path]) -> None:
    root = written["all subsets"]
    samples = read_dataset(root, None, "train")
    assert [(sample.subset, len(sample.frames)) for sample in samples] == list(FRAMES.items())
    assert [sum(mask is not None for mask in sample.masks) for sample in samples] == [1, 5, 10]
    assert samples[0].masks[0] is not None
    test = read_dataset(root, None, "test", subsets=("v2", "v1s"))
    assert [(sample.subset, sum(mask is not None for mask in sample.masks)) for sample in test] == [
        ("v1s", 5), ("v2", 10),
    ]  # fmt: skip


def test_frames_and_masks_are_those_of_their_second(written: dict[str, Path]) -> None:
    for number, sample in enumerate(read_dataset(written["avss"], "avss", "test")):
        for second, (frame, mask) in enumerate(zip(sample.frames, sample.masks, strict=True)):
            image = load_frame(frame)
            assert image.shape == (32, 32, 3) and image.dtype == np.uint8
            assert mask is not None
            classes = load_mask(mask, "avss", "semantic")
            assert classes.shape == (32, 32) and classes.dtype == np.uint8
            heard = sounding(number, second)
            assert set(np.unique(classes)) == {0} | {AVSS_INDEX[word] for word in heard}
            for word in heard:
                colour = np.median(image[classes == AVSS_INDEX[word]].astype(float), axis=0)
                assert np.abs(colour - THINGS[word][0]).max() < 40, "the mask lies on the thing"
            binary = load_mask(mask, "avss", "binary")
            assert binary.dtype == np.uint8 and np.array_equal(binary, classes > 0)
    masks = [
        load_mask(mask, "ms3", "binary") for s in read_dataset(written["ms3"], "ms3", "val") for mask in s.masks if mask
    ]
    assert [bool(mask.any()) for mask in masks] == [bool(heard) for heard in PATTERN] * 2
    assert {int(value) for mask in masks for value in np.unique(mask)} == {0, 1}


def test_classes_of_avss_are_in_its_own_order() -> None:
    classes = list_avss_classes()
    assert len(classes) == len(set(classes)) == CLASSES - 1 and list(classes) == sorted(classes)
    assert all(classes[value - 1] == word for word, value in AVSS_INDEX.items())
    # Values of label2idx.json minus one, copied from there.
    expected = {1: "accordion", 22: "emergency car", 25: "frying food", 43: "missile rocket", 66: "utv", 70: "woman"}
    assert {value: classes[value - 1] for value in expected} == expected
    assert not any("-" in word or "_" in word for word in classes)


# --- accepted variants


@pytest.mark.parametrize(("layout", "folders"), [
    ("s4", ("Single-source", "Single-source/s4_data")),
    ("ms3", ("Multi-sources", "Multi-sources/ms3_data")),
])  # fmt: skip
def test_a_root_may_be_an_inner_folder(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch, layout: Layout, folders: tuple[str, ...]
) -> None:
    expected = [sample.uid for sample in read_dataset(written[layout], None, "test")]
    for folder in folders:
        root = written[layout] / folder
        assert detect_layout(root) == layout
        assert [sample.uid for sample in read_dataset(root, None, "test")] == expected
        monkeypatch.chdir(root)
        assert detect_layout(Path(".")) == layout
        assert [sample.uid for sample in read_dataset(Path("."), None, "test")] == expected


@pytest.mark.parametrize("place", ["", "Single-source/s4_data"])
def test_the_table_may_lie_elsewhere(copies: dict[str, Path], place: str) -> None:
    root = copies["s4"]
    shutil.move(root / "Single-source/s4_meta_data.csv", root / place / "s4_meta_data.csv")
    assert len(read_dataset(root, None, "val")) == 2


def test_a_renamed_folder_with_the_table_in_it(copies: dict[str, Path]) -> None:
    shutil.copy(copies["ms3"] / "Multi-sources/ms3_meta_data.csv", copies["ms3"] / "Multi-sources/ms3_data")
    renamed = (copies["ms3"] / "Multi-sources/ms3_data").rename(copies["ms3"] / "renamed")
    assert len(read_dataset(renamed, None, "val")) == 2


def test_names_and_kinds_of_pictures_may_vary(copies: dict[str, Path]) -> None:
    frames = copies["s4"] / "Single-source/s4_data/visual_frames/test/dog_barking/test-0_0_5000"
    for i, name in enumerate(("test-0_0_5000.mp4_1.png", "test-0_0_5000_2.jpg", "3.jpeg", "test-0_0_5000_4.PNG"), 1):
        old = frames / f"test-0_0_5000_{i}.png"
        with Image.open(old) as image:
            image.save(frames / f"new{Path(name).suffix}")
        old.unlink()
        (frames / f"new{Path(name).suffix}").rename(frames / name)
    for other in (".DS_Store", "Thumbs.db", "test-0_0_5000_1_mask_color.png", "other_1.png"):
        (frames / other).write_text("nothing to us")
    samples = read_dataset(copies["s4"], None, "test")
    assert [path.name for path in samples[0].frames] == [
        "test-0_0_5000.mp4_1.png", "test-0_0_5000_2.jpg", "3.jpeg", "test-0_0_5000_4.PNG", "test-0_0_5000_5.png",
    ]  # fmt: skip
    (frames / "test-0_0_5000_5.jpg").write_text("the .png goes before it")
    assert read_dataset(copies["s4"], None, "test") == samples


def test_a_byte_order_mark_and_blanks_in_the_table(copies: dict[str, Path]) -> None:
    table = copies["avss"] / "metadata.csv"
    lines = [line.split(",", 1)[1].replace(",test,", ", test ,") for line in table.read_text().splitlines()]
    table.write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    assert len(read_dataset(copies["avss"], None, "test")) == 2


def test_masks_of_other_kinds(tmp_path: Path) -> None:
    truth = np.zeros((6, 8), np.uint8)
    truth[2:4, 3:7] = 1
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[truth > 0] = (0, 128, 0)
    palette = Image.fromarray(1 - truth, "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    kinds = {
        "bits": Image.fromarray(truth > 0),
        "ones": Image.fromarray(truth),
        "grey": Image.fromarray(truth * 200),
        "colour": Image.fromarray(colours),
        "alpha": Image.fromarray(np.dstack([colours, np.full((6, 8), 255, np.uint8)])),
        "sixteen": Image.fromarray(truth.astype(np.uint16) * 60_000),
        "palette": palette,
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        mask = load_mask(tmp_path / f"{name}.png", "ms3", "binary")
        assert mask.dtype == np.uint8 and np.array_equal(mask, truth), name
    indices = Image.fromarray(truth * 70, "P")
    indices.putpalette(avss_colours().tobytes())
    indices.save(tmp_path / "indices.png")
    assert np.array_equal(load_mask(tmp_path / "indices.png", "avss", "semantic"), truth * 70)


# --- refused data


def test_no_such_folder(tmp_path: Path) -> None:
    for call in (lambda: detect_layout(tmp_path / "no"), lambda: read_dataset(tmp_path / "no", "s4", "test")):
        with pytest.raises(InputNotFoundError, match="no folder"):
            call()


def test_no_layout_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s4_data/visual_frames.*ms3_data/visual_frames.*metadata\.csv"):
        detect_layout(tmp_path)
    (tmp_path / "visual_frames").mkdir()
    with pytest.raises(DataError, match="no known layout"):
        read_dataset(tmp_path, None, "test")


def test_another_layout_than_the_one_named(written: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"does not have the layout ms3: it should have Multi-sources"):
        read_dataset(written["s4"], "ms3", "test")
    with pytest.raises(DataError, match=r"does not have the layout avss: it should have metadata\.csv"):
        read_dataset(written["s4"], "avss", "test")


def test_several_layouts_must_be_named(tmp_path: Path) -> None:
    write_s4(tmp_path, videos=1, size=16)
    write_ms3(tmp_path, videos=1, size=16)
    with pytest.raises(DataError, match="s4 and ms3"):
        detect_layout(tmp_path)
    assert read_dataset(tmp_path, "s4", "val")[0].subset == "v1s"
    assert read_dataset(tmp_path, "ms3", "val")[0].subset == "v1m"


@pytest.mark.parametrize(("layout", "table"), [
    ("s4", "Single-source/s4_meta_data.csv"), ("ms3", "Multi-sources/ms3_meta_data.csv"), ("avss", "metadata.csv"),
])  # fmt: skip
def test_tables_that_can_not_be_used(copies: dict[str, Path], layout: Layout, table: str) -> None:
    path = copies[layout] / table
    whole = path.read_text()
    path.write_text(whole.replace("split", "part"))
    with pytest.raises(DataError, match="must have the columns"):
        read_dataset(copies[layout], None, "test")
    path.write_text("")
    with pytest.raises(DataError, match="it has none"):
        read_dataset(copies[layout], None, "test")
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(DataError, match="can't be read"):
        read_dataset(copies[layout], None, "test")
    path.write_text("\n".join(line for line in whole.splitlines() if ",test" not in line))
    with pytest.raises(DataError, match=r"in the split test; it has train \(2\), val \(2\)"):
        read_dataset(copies[layout], None, "test")
    path.unlink()
    with pytest.raises(DataError, match=f"has no {path.name}"):
        read_dataset(copies[layout], None, "test")


def test_subsets_that_are_not_there(copies: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"no video of v2 in the split test; it has none at all"):
        read_dataset(copies["avss"], None, "test", subsets=("v2",))
    with pytest.raises(DataError, match="unknown subset 'v3'"):
        read_dataset(copies["avss"], None, "test", subsets=("v1m", "v3"))
    with pytest.raises(DataError, match="unknown split 'dev'"):
        read_dataset(copies["avss"], None, "dev")  # type: ignore[arg-type]
    table = copies["avss"] / "metadata.csv"
    table.write_text(table.read_text().replace("v1m", "v9", 1))
    with pytest.raises(DataError, match="'v9'"):
        read_dataset(copies["avss"], None, "test")


@pytest.mark.parametrize("layout", ["s4", "ms3", "avss"])
def test_videos_that_are_not_whole(copies: dict[str, Path], layout: Layout) -> None:
    root = copies[layout]
    before = read_dataset(root, None, "test")
    sample = before[0]
    mask = sample.masks[2]
    assert mask is not None

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match) as caught:
            read_dataset(root, None, "test")
        assert "restore the files" in str(caught.value) and "\n" not in str(caught.value)

    number = 2 if layout == "avss" else 3
    for path, what in ((sample.frames[2], "frames"), (mask, "masks")):
        aside = path.rename(path.with_name("aside.tmp"))
        refused(f"{path.parent} has 4 of 5 {what}, {number} missing: ")
        folder = path.parent.rename(path.parent.with_name("away"))
        refused(f"{path.parent} does not exist: ")
        path.parent.mkdir()
        refused(f"{path.parent} has no {what}: ")
        path.parent.rmdir()
        folder.rename(path.parent)
        aside.rename(path)
        extra = path.with_name(path.name.replace(f"{number}.", "9."))
        shutil.copy(path, extra)
        refused(f"{path.parent} has 6 {what} instead of 5: ")
        extra.unlink()
        small = path.read_bytes()
        Image.new("L", (30, 32)).save(path)
        refused("30 × 32" if what == "masks" else "32 × 32 pixels, but its frame has 30 × 32")
        path.write_text("no picture")
        refused(f"{path} can't be read")
        path.write_bytes(small)
    aside = sample.audio.rename(sample.audio.with_name("aside.tmp"))
    refused(f"{sample.audio} does not exist: ")
    aside.rename(sample.audio)
    assert read_dataset(root, None, "test") == before


def test_a_name_that_no_file_can_have(copies: dict[str, Path]) -> None:
    table = copies["avss"] / "metadata.csv"
    table.write_text(table.read_text().replace("test-0_0_5000", "x" * 300))
    with pytest.raises(DataError, match=r"the files of x+ can't be looked up \(File name too long\)"):
        read_dataset(copies["avss"], None, "test")
    problems: list[str] = []
    assert len(read_dataset(copies["avss"], None, "test", on_problem=problems.append)) == len(problems) == 1


def test_the_number_of_broken_videos_is_told(copies: dict[str, Path]) -> None:
    for sample in read_dataset(copies["avss"], None, "test"):
        sample.audio.unlink()
    with pytest.raises(DataError, match=r"audio\.wav does not exist; 1 more of 2 videos"):
        read_dataset(copies["avss"], None, "test")
    assert len(read_dataset(copies["avss"], None, "val")) == 2, "other splits are not looked at"


@pytest.mark.parametrize("layout", ["s4", "ms3", "avss"])
def test_bad_videos_are_reported_and_skipped_on_request(copies: dict[str, Path], layout: Layout) -> None:
    root = copies[layout]
    first, second = read_dataset(root, None, "test")
    mask = first.masks[2]
    assert mask is not None

    def skipped() -> list[str]:
        problems: list[str] = []
        assert read_dataset(root, None, "test", on_problem=problems.append) == [second]
        with pytest.raises(DataError, match=f"^{re.escape(problems[0])}: restore the files"):
            read_dataset(root, None, "test")
        return problems

    whole = mask.read_bytes()
    Image.new("L", (30, 32)).save(mask)
    assert skipped() == [f"{mask} has 30 × 32 pixels, but its frame has 32 × 32"]
    mask.unlink()
    assert len(found := skipped()) == 1 and found[0].startswith(f"{mask.parent} has 4 of 5 masks, ")
    mask.write_bytes(whole)
    assert read_dataset(root, None, "test", on_problem=pytest.fail) == [first, second]
    first.audio.unlink()
    assert skipped() == [f"{first.audio} does not exist"]
    second.audio.unlink()
    with pytest.raises(DataError, match=r"does not exist; 1 more of 2 videos"):
        read_dataset(root, None, "test", on_problem=pytest.fail)


def test_a_row_of_an_unknown_subset_is_skipped_on_request(copies: dict[str, Path]) -> None:
    table = copies["avss"] / "metadata.csv"
    table.write_text(table.read_text().replace(",test,v1m", ",test,v9", 1))
    problems: list[str] = []
    samples = read_dataset(copies["avss"], None, "test", on_problem=problems.append)
    assert [sample.uid for sample in samples] == ["test-1_0_5000"]
    assert problems == [f"{table}: test-0_0_5000 has the label 'v9', not v1s, v1m, v2"]


def test_training_videos_of_v1s_need_only_their_first_mask(copies: dict[str, Path]) -> None:
    root = copies["all subsets"] / "v1s"
    shutil.copy(root / "train-0_0_5000/labels_semantic/0.png", root / "train-0_0_5000/labels_semantic/3.png")
    sample = read_dataset(root.parent, None, "train", subsets=("v1s",))[0]
    assert sample.masks[0] is not None and sample.masks[1:] == (None,) * 4, "as AVSBench reads them"
    (root / "train-0_0_5000/labels_semantic/0.png").unlink()
    with pytest.raises(DataError, match="0 missing"):
        read_dataset(root.parent, None, "train", subsets=("v1s",))
    shutil.copy(root / "val-0_0_5000/labels_semantic/0.png", root / "train-0_0_5000/labels_semantic/0.png")
    for number in range(1, 5):
        (root / f"test-0_0_5000/labels_semantic/{number}.png").unlink()
    with pytest.raises(DataError, match="1 of 5 masks, 1, 2, 3, 4 missing"):
        read_dataset(root.parent, None, "test", subsets=("v1s",))


def test_pictures_that_are_broken_when_loaded(copies: dict[str, Path]) -> None:
    sample = read_dataset(copies["ms3"], None, "test")[0]
    mask = sample.masks[0]
    assert mask is not None
    for path in (sample.frames[0], mask):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=str(sample.frames[0])):
        load_frame(sample.frames[0])
    with pytest.raises(DataError, match=str(mask)):
        load_mask(mask, "ms3", "binary")
    sample.frames[0].unlink()
    with pytest.raises(InputNotFoundError):
        load_frame(sample.frames[0])


def test_index_masks_are_checked(tmp_path: Path, written: dict[str, Path]) -> None:
    path = tmp_path / "0.png"
    Image.fromarray(np.array([[0, 70, 71]], np.uint8)).save(path)
    for kind in ("semantic", "binary"):
        with pytest.raises(DataError, match=r"0\.png has the class 71"):
            load_mask(path, "avss", kind)  # type: ignore[arg-type]
    colour = next(written["avss"].rglob("labels_rgb/0.png"))
    with pytest.raises(DataError, match="not an index image but RGB"):
        load_mask(colour, "avss", "semantic")
    with pytest.raises(DataError, match="only avss has classes"):
        load_mask(path, "s4", "semantic")


def test_samples_are_validated_when_made() -> None:
    whole = {"uid": "a", "subset": "v1m", "split": "test", "frames": (Path("1.png"),), "masks": (Path("1.png"),)}
    VideoSample(**whole, audio=Path("a.wav"))  # type: ignore[arg-type]
    for change in ({"uid": ""}, {"subset": "v3"}, {"split": "dev"}, {"frames": ()}, {"masks": (None,)}):
        with pytest.raises(ValueError):
            VideoSample(**(whole | change), audio=Path("a.wav"))  # type: ignore[arg-type]


# --- the basis of other tests


def test_the_written_sets_are_what_they_claim(written: dict[str, Path]) -> None:
    assert {len(heard) for heard in PATTERN} == {0, 1, 2}
    assert things_of(0) == ("dog", "car") and set(SPLITS) == {"train", "val", "test"}
    train, test = (read_dataset(written["avss"], None, split) for split in ("train", "test"))
    for ours, theirs in zip(train, test, strict=True):
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(ours.frames, theirs.frames, strict=True))
        assert ours.audio.read_bytes() == theirs.audio.read_bytes()
    # Compare with VOC's palette, as AVSBench's color_dataloader builds it: 1 dark red, 2 dark green, 8 half red, 70.
    assert avss_colours()[[0, 1, 2, 3, 8, 70]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [64, 0, 0], [32, 128, 128],
    ]  # fmt: skip
