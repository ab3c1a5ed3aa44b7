"""Composed data sets on disk: readable in their layouts, true to their sounds, the same from the same seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.composed_clips import read_natural_scenes
from benchmarks.composed_data import AVSS_CLASS_OF_WORD, find_avss_class, find_category, main
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.datasets.contracts import FRAMES
from teso_deploy.evaluation.datasets.media_folder import read_library
from teso_deploy.evaluation.datasets.pictures import load_frame
from teso_deploy.evaluation.datasets.reading import load_mask, read_dataset
from teso_deploy.evaluation.datasets.registry import Layout
from teso_deploy.evaluation.datasets.sounds import read_windows
from teso_deploy.evaluation.datasets.words import list_class_words

#: The words of the test media: colour of the object, tone of the sound in Hz, category of s4.
THINGS = {"dog": (0, 500, "dog_barking"), "cow": (1, 1000, "cow"), "car": (2, 2000, "race_car")}
CLIPS = 12


@pytest.fixture(scope="module")
def media_with_scenes(media_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Add natural scenes to the media: a red dog beside a green cow. One is for training."""
    root = shutil.copytree(media_folder, tmp_path_factory.mktemp("scenes") / "media")
    folder = root / "coco_scenes"
    folder.mkdir()
    pixels, segments = np.full((60, 80, 3), 110, np.uint8), np.zeros((60, 80, 3), np.uint8)
    for number, (colour, columns) in enumerate((((220, 20, 20), slice(5, 35)), ((20, 220, 20), slice(45, 75)))):
        pixels[10:50, columns] = colour
        segments[10:50, columns, 0] = number + 1
    entries = []
    for split in ("train", "test"):
        Image.fromarray(pixels).save(folder / f"{split}.png")
        Image.fromarray(segments).save(folder / f"{split}_panoptic.png")
        names = [{"id": number + 1, "cat": word} for number, word in enumerate(("dog", "cow"))]
        entries.append(
            {"image": f"{split}.png", "panoptic": f"{split}_panoptic.png", "split": split, "segments": names}
        )
    (folder / "index.json").write_text(json.dumps({"images": entries}))
    return root


@pytest.fixture(scope="module")
def composed(media_with_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composed") / "out"
    assert main(["--data", str(media_with_scenes), "--out", str(out), "--clips", str(CLIPS), "--seed", "3"]) == 0
    return out


def list_heard(window: np.ndarray) -> set[str]:
    """Return the words whose tone a window has."""
    level = np.abs(np.fft.rfft(window)) / len(window)
    near = {word: round(hertz * len(window) / 16_000) for word, (_, hertz, _) in THINGS.items()}
    return {word for word, place in near.items() if level[place - 3 : place + 4].max() > 1e-3}


@pytest.mark.parametrize("layout", ["avss", "s4", "ms3"])
def test_masks_are_where_something_is_heard(composed: Path, layout: Layout) -> None:
    samples = read_dataset(composed / layout, layout, "test")
    assert len(samples) == CLIPS
    seconds, several = 0, 0
    for sample in samples:
        windows = read_windows(sample.audio, len(sample.frames))
        assert len(sample.frames) == FRAMES[sample.subset]
        heard_words = set()
        for frame, mask, window in zip(sample.frames, sample.masks, windows, strict=True):
            assert mask is not None
            image, labels = load_frame(frame), load_mask(mask, layout, "binary")
            assert labels.shape == image.shape[:2] == ((360, 480) if layout == "avss" else (224, 224))
            heard = list_heard(window)
            assert bool(labels.any()) == bool(heard)
            # The objects are red, green and blue, the background is grey. Pixels at edges may be mixed.
            pixels = image[labels > 0].astype(int)
            strongest = pixels.argmax(axis=1)[np.ptp(pixels, axis=1) > 40] if len(pixels) else np.zeros(0, int)
            shares = np.bincount(strongest, minlength=3) / max(1, len(pixels))
            assert {colour for colour in range(3) if shares[colour] > 0.03} == {THINGS[word][0] for word in heard}
            heard_words |= heard
            seconds, several = seconds + 1, several + (len(heard) > 1)
        if layout == "avss":
            assert set(list_class_words(sample, layout)) == heard_words
        elif layout == "s4":
            assert {sample.category} == {THINGS[word][2] for word in heard_words}
            assert set(list_class_words(sample, layout)) == heard_words
    assert (several > 0) == (layout != "s4") and several < seconds


def test_index_masks_have_the_classes_that_are_heard(composed: Path) -> None:
    classes = list_avss_classes()
    for sample in read_dataset(composed / "avss", "avss", "test"):
        windows = read_windows(sample.audio, len(sample.frames))
        for mask, window in zip(sample.masks, windows, strict=True):
            assert mask is not None
            values = set(np.unique(load_mask(mask, "avss", "semantic")).tolist()) - {0}
            assert {classes[value - 1] for value in values} == list_heard(window)


def test_subsets_of_avss_have_a_third_each(composed: Path) -> None:
    samples = read_dataset(composed / "avss", "avss", "test")
    assert [sample.subset for sample in samples] == ["v1s"] * 4 + ["v1m"] * 4 + ["v2"] * 4


def test_only_test_scenes_with_a_sound_are_used(media_with_scenes: Path) -> None:
    scenes = read_natural_scenes(media_with_scenes, read_library(media_with_scenes, "test"))
    assert [scene.words for scene in scenes] == [("cow", "dog")]
    assert scenes[0].image.shape == (60, 80, 3) and scenes[0].masks.shape == (2, 60, 80)


def test_the_same_seed_gives_the_same_bytes(composed: Path, media_with_scenes: Path, tmp_path: Path) -> None:
    common = ["--data", str(media_with_scenes), "--clips", str(CLIPS), "--layout", "ms3"]
    assert main([*common, "--out", str(tmp_path / "again"), "--seed", "3"]) == 0
    assert main([*common, "--out", str(tmp_path / "other"), "--seed", "4"]) == 0
    names = [path.relative_to(composed) for path in (composed / "ms3").rglob("*") if path.is_file()]
    assert len(names) == CLIPS * 11 + 1
    same = [(composed / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names]
    other = [(composed / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in names]
    assert all(same) and sum(other) < len(names) / 2
    assert not (tmp_path / "again" / "s4").exists()


def test_a_folder_that_exists_is_not_replaced(composed: Path, media_with_scenes: Path) -> None:
    with pytest.raises(Exception, match=r"avss exists: remove it, or name another folder by --out"):
        main(["--data", str(media_with_scenes), "--out", str(composed)])


def test_words_of_media_as_classes_and_categories() -> None:
    assert set(AVSS_CLASS_OF_WORD.values()) <= set(list_avss_classes())
    assert find_avss_class("piano") == "piano" and find_avss_class("cow") is None
    assert find_category("electric guitar") == "electric_guitar" and find_category("chicken") == "chicken"
    assert find_category("person") == "male_speech"
