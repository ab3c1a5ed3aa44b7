"""Composed scenes and their evaluation, with a library of shapes and tones."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.evaluation.contracts import Prediction, Score
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, Recording, get_word, read_library, read_recording
from teso_deploy.evaluation.metrics import compute_iou
from teso_deploy.evaluation.protocols.composed_scenes import SCENE_ROWS, ComposedScenes, SceneTrial, make_scene
from teso_deploy.evaluation.scenes import _reverberate, compose_picture, compose_sound, cut_audible_excerpt
from teso_deploy.evaluation.scoring import average_seeds, score_protocol
from teso_deploy.types import WINDOW_SAMPLES

WORDS = ("dog", "cow", "car")


@pytest.fixture(scope="module")
def library(shapes_and_tones: MediaLibrary) -> MediaLibrary:
    return shapes_and_tones


def test_words_of_labels() -> None:
    assert [get_word(label) for label in ("euphonium_tuba", "truck_bus", "drum_kit", "dog")] == [
        "tuba", "truck", "drum kit", "dog",
    ]  # fmt: skip


def test_the_same_generator_state_gives_the_same_scene(library: MediaLibrary) -> None:
    first, again = (compose_picture(np.random.default_rng(5), library, WORDS, size=(64, 96)) for _ in range(2))
    other = compose_picture(np.random.default_rng(6), library, WORDS, size=(64, 96))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.image, other.image)


def test_masks_are_what_is_visible(library: MediaLibrary) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        picture = compose_picture(rng, library, WORDS, size=(64, 64), degrade=False)
        assert picture.image.shape == (64, 64, 3) and picture.masks.shape == (3, 64, 64)
        # No pixel belongs completely to two objects.
        assert ((picture.masks > 200).sum(axis=0) <= 1).all()
    front = picture.mask_of([picture.words[-1]]) > 250
    colour = picture.image[front].mean(axis=0)
    assert front.any() and colour.argmax() == WORDS.index("car"), "the last word lies on top"


def test_a_word_twice_is_one_mask(library: MediaLibrary) -> None:
    picture = compose_picture(np.random.default_rng(1), library, ["dog", "dog"], size=(64, 64))
    assert np.array_equal(picture.mask_of(["dog"]), picture.masks.max(axis=0))
    assert not picture.mask_of(["cow"]).any()


def test_an_excerpt_is_heard_for_three_tenths_of_a_second() -> None:
    samples = np.zeros(5 * 16_000, np.float32)
    samples[40_000:46_400] = 1.0  # 0.4 s in 5 s of silence
    heard = samples[: len(samples) // 320 * 320].reshape(-1, 320).max(axis=1) > 0
    counts = [int(cut_audible_excerpt(np.random.default_rng(i), Recording(samples, heard)).sum()) for i in range(50)]
    assert min(counts) >= 0.3 * 16_000 and len(set(counts)) > 3, "offsets vary"


def test_a_short_recording_is_heard_whole() -> None:
    blip = Recording(np.ones(1600, np.float32), np.ones(5, bool))
    assert all(cut_audible_excerpt(np.random.default_rng(i), blip).sum() == 1600 for i in range(20))


def test_a_sound_is_mixed_from_its_words_and_noise(library: MediaLibrary) -> None:
    rng = np.random.default_rng(0)
    silence = compose_sound(rng, library, [])
    assert silence.shape == (WINDOW_SAMPLES,) and not silence.any()
    noise = compose_sound(rng, library, [], noise_snr_db=0)
    assert noise.std() > 0
    both = compose_sound(np.random.default_rng(3), library, ["dog", "cow"], vary=False)
    spectrum = np.abs(np.fft.rfft(both))
    peaks = {round(hz * WINDOW_SAMPLES / 16_000) for hz in (500, 1000)}  # the tones of dog and cow
    assert all(spectrum[peak - 2 : peak + 3].max() > 20 * np.median(spectrum) for peak in peaks)
    assert np.abs(both).max() <= 1


@pytest.mark.parametrize("row", list(SCENE_ROWS))
def test_scenes_of_a_row_come_from_seed_and_number(library: MediaLibrary, row: str) -> None:
    first, again = (make_scene(library, WORDS, row, seed=0, number=7, size=(48, 64)) for _ in range(2))
    assert len(first) == (2 if row == "swapped" else 1)
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(first, again, strict=True))
    other = make_scene(library, WORDS, row, seed=1, number=7, size=(48, 64))
    assert not np.array_equal(first[0].image, other[0].image)


def by_colour_and_tone(trial: SceneTrial) -> Prediction:
    """A segmenter that knows the library: an object is its colour, a sound its tone."""
    image, samples = trial.picture.image, trial.samples
    spectrum = np.abs(np.fft.rfft(samples))
    labels = np.zeros(image.shape[:2], np.uint8)
    for index, hz in enumerate((500, 1000, 2000)):
        peak = round(hz * WINDOW_SAMPLES / 16_000)
        if spectrum[peak - 3 : peak + 4].max() > 25 * (np.median(spectrum) + 1e-3):
            strongest = image.astype(int).argmax(axis=2) == index
            labels[strongest & (image[..., index] > 100) & (image.min(axis=2) < 60)] = index + 1
    return Prediction(labels)


def test_a_segmenter_that_listens_scores_well_in_every_row(library: MediaLibrary) -> None:
    found = score_protocol(ComposedScenes(library, WORDS, 12, size=(64, 64)), by_colour_and_tone)
    assert [score.group for score in found] == list(SCENE_ROWS) and all(score.samples == 12 for score in found)
    scores = {score.group: score.values for score in found}
    assert scores["one source"]["miou"] > 0.8 and scores["two sources"]["miou"] > 0.7  # type: ignore[operator]
    assert scores["swapped"]["follows_rate"] >= 0.9  # type: ignore[operator]
    assert all(scores[row]["blank_rate"] == 1.0 for row in ("muted", "white noise"))
    assert scores["muted"]["miou"] is None and "follows_rate" not in scores["muted"]


def test_a_deaf_segmenter_is_found_out(library: MediaLibrary) -> None:
    def deaf(trial: SceneTrial) -> Prediction:
        tone = np.sin(2 * np.pi * np.arange(WINDOW_SAMPLES) / 16_000 * np.array([[500], [1000], [2000]])).sum(axis=0)
        return by_colour_and_tone(replace(trial, samples=tone.astype(np.float32) / 3))

    composed = ComposedScenes(library, WORDS, 8, rows=("muted", "swapped"), size=(64, 64))
    muted, swapped = score_protocol(composed, deaf)
    assert muted.values["blank_rate"] == 0.0 and swapped.values["follows_rate"] == 0.0


def test_iou() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert compute_iou(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert compute_iou(a, b) == pytest.approx(4 / 12)


def test_a_folder_on_disk(media_folder: Path) -> None:
    library = read_library(media_folder, "train")
    assert set(library.pictures) == set(WORDS) and set(library.sounds) == {*WORDS, "speech"}
    assert all(image.mode == "RGBA" for images in library.pictures.values() for image in images)
    assert all(recording.heard.any() for recordings in library.sounds.values() for recording in recordings)
    held = read_library(media_folder, "train", hold_out=["audio/dog/0.wav"])
    assert len(held.sounds["dog"]) == len(library.sounds["dog"]) - 1


def test_bad_folders_are_refused(tmp_path: Path, media_folder: Path) -> None:
    with pytest.raises(InputNotFoundError, match="TESO_AVS_DATA"):
        read_library(tmp_path / "no", "train")
    with pytest.raises(DataError, match=r"split\.csv"):
        read_library(tmp_path, "train")
    (tmp_path / "split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns"):
        read_library(tmp_path, "train")
    (tmp_path / "split.csv").write_text("file,label,kind,split\nstamps/dog/x.png,dog,picture,train\n")
    with pytest.raises(DataError, match="not there"):
        read_library(tmp_path, "train")
    (tmp_path / "stamps/dog").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "stamps/dog/x.png")
    with pytest.raises(DataError, match="alpha"):
        read_library(tmp_path, "train")


def test_a_whole_photograph_keeps_its_surroundings(media_folder: Path, tmp_path: Path) -> None:
    """The mask is the alpha channel. Nothing outside of it may turn black."""
    shutil.copytree(media_folder, tmp_path / "media")
    (tmp_path / "media/photos/dog").mkdir(parents=True)
    photograph = Image.new("RGB", (400, 300), (90, 160, 200))
    mask = Image.new("L", photograph.size)
    for image, colour in ((photograph, (220, 20, 20)), (mask, 255)):
        ImageDraw.Draw(image).rectangle((100, 100, 300, 200), fill=colour)
    photograph.save(tmp_path / "media/photos/dog/a.jpg", quality=95)
    mask.save(tmp_path / "media/photos/dog/a_mask.png")
    with (tmp_path / "media/split.csv").open("a") as table:
        table.write("photos/dog/a.jpg,dog,picture,train\n")
    library = read_library(tmp_path / "media", "train")
    rng = np.random.default_rng(0)
    picture = compose_picture(rng, library, ["dog"], size=(64, 96), whole_rate=1.0, degrade=False)
    inside = picture.masks[0] > 250
    assert 0.1 < inside.mean() < 0.6
    np.testing.assert_allclose(picture.image[inside].mean(0), (220, 20, 20), atol=12)
    np.testing.assert_allclose(picture.image[picture.masks[0] < 5].mean(0), (90, 160, 200), atol=12)


def test_subjects_may_be_larger_than_the_frame(library: MediaLibrary) -> None:
    rng = np.random.default_rng(0)
    sizes = [
        (compose_picture(rng, library, ["dog"], size=(64, 64), scale=(1.2, 1.3)).masks[0] > 127).mean()
        for _ in range(12)
    ]
    assert min(sizes) > 0.5


def test_a_room_keeps_the_start_and_adds_a_tail() -> None:
    click = np.zeros(WINDOW_SAMPLES, np.float32)
    click[1000] = 1.0
    heard = _reverberate(np.random.default_rng(0), click)
    assert not np.abs(heard[:1000]).max() > 1e-6 and heard[1000] > 0.5
    tail = np.abs(heard[1001:]).reshape(-1)
    assert tail[:400].mean() > 10 * tail[7000:].mean() >= 0


def test_scores_over_seeds_are_means_with_their_spread() -> None:
    scores = [
        Score("one source", 10, {"miou": 0.5, "binary_miou": 0.6, "none": None}, {"miou": {"dog": 0.4}}, (3,)),
        Score("one source", 10, {"miou": 0.7, "binary_miou": 0.6}, {"miou": {"dog": 0.6, "cow": 0.8}}, (4,)),
    ]
    found = average_seeds(scores)
    assert found.values == {"miou": pytest.approx(0.6), "binary_miou": 0.6, "none": None} and found.seeds == (3, 4)
    assert found.spread["miou"] == pytest.approx(0.2 / 2**0.5) and "none" not in found.spread
    assert found.class_values == {"miou": {"cow": pytest.approx(0.8), "dog": pytest.approx(0.5)}}
    assert average_seeds(scores[:1]) == scores[0]


@pytest.mark.parametrize("broken", ["stamps/dog/0.png", "audio/cow/1.wav", "backgrounds/train.jpg"])
def test_a_broken_file_is_named(media_folder: Path, tmp_path: Path, broken: str) -> None:
    shutil.copytree(media_folder, tmp_path / "media")
    (tmp_path / "media" / broken).write_bytes(b"neither a picture nor a sound")
    with pytest.raises(DataError, match=broken):
        read_library(tmp_path / "media", "train")


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (b"file,label,kind,split\nstamps/dog/\xff.png,dog,picture,train\n", "is not UTF-8"),
        (b"file,label,kind,split\nstamps/dog/0\0.png,dog,picture,train\n", "stamps/dog/0 .png, which is not there"),
        (b"file,label,kind,split\n" + b"x" * 140_000 + b",dog,picture,train\n", "is not CSV"),
        (b"file,label,kind,split\nstamps/dog/0.png\n", "names no train pictures"),
        (b'file,label,kind,split\n"\x1b[31mx\nteso-deploy: ok",dog,picture,train\n', "names x teso-deploy: ok, which"),
    ],
    ids=["not UTF-8", "zero byte", "endless name", "short row", "escapes"],
)  # fmt: skip
def test_a_table_that_is_damaged_is_refused(media_folder: Path, tmp_path: Path, table: bytes, names: str) -> None:
    shutil.copytree(media_folder, tmp_path / "media")
    (tmp_path / "media/split.csv").write_bytes(table)
    with pytest.raises(DataError, match=names) as caught:
        read_library(tmp_path / "media", "train")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_a_picture_of_too_many_pixels_is_named(
    media_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(media_folder, tmp_path / "media")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(DataError, match=r"0\.png can't be read \(Image size \(3600 pixels\) exceeds limit"):
        read_library(tmp_path / "media", "train")


def test_samples_that_are_no_numbers_are_silence(tmp_path: Path) -> None:
    samples = np.full(16_000, 0.5, np.float32)
    samples[8000:] = np.nan
    data = samples.tobytes()
    head = (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    )
    (tmp_path / "x.wav").write_bytes(head + b"data" + struct.pack("<I", len(data)) + data)
    recording = read_recording(tmp_path / "x.wav")
    assert np.isfinite(recording.samples).all() and np.allclose(recording.samples[:8000], 1.0)
    assert recording.heard.tolist() == [True] * 25 + [False] * 25


@pytest.mark.parametrize(
    "index", ["[]", '{"images": 3}', '{"images": [{"image": "x.jpg"}]}', '{"images": [null]}', "["]
)
def test_an_index_of_natural_scenes_that_is_damaged_is_named(media_folder: Path, tmp_path: Path, index: str) -> None:
    shutil.copytree(media_folder, tmp_path / "media")
    (tmp_path / "media/coco_by").mkdir()
    (tmp_path / "media/coco_by/index.json").write_text(index)
    with pytest.raises(DataError, match=r"coco_by/index\.json"):
        read_library(tmp_path / "media", "train")


def test_some_training_sounds_are_left_for_calibration(calibration_folder: Path, media_folder: Path) -> None:
    train, calibration = (read_library(calibration_folder, split) for split in ("train", "calibration"))
    for word in WORDS:
        assert (len(train.sounds[word]), len(calibration.sounds[word])) == (5, 1)
        left = calibration.sounds[word][0].samples
        assert not any(np.array_equal(left, recording.samples) for recording in train.sounds[word])
        assert len(calibration.pictures[word]) == len(train.pictures[word])
    assert "speech" in train.sounds and "speech" not in calibration.sounds, "one sound is too few to leave one"
    with pytest.raises(DataError, match="no calibration"):
        read_library(media_folder, "calibration")


def test_natural_scenes_join_the_photographs(media_folder: Path, tmp_path: Path) -> None:
    """In COCO's panoptic masks, all segments of a word count together. Tiny and unknown objects do not count."""
    folder = tmp_path / "media"
    shutil.copytree(media_folder, folder)
    natural = folder / "coco_by"
    natural.mkdir()
    numbers = np.zeros((120, 200), np.int64)
    numbers[30:60, 20:50], numbers[30:60, 90:120], numbers[:3, :3], numbers[100:] = 70_000, 5, 9, 300
    bands = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=2).astype(np.uint8)
    Image.fromarray(bands).save(natural / "1_panoptic.png")
    photograph = np.full((120, 200, 3), 90, np.uint8)
    photograph[(numbers == 70_000) | (numbers == 5)] = 250
    Image.fromarray(photograph).save(natural / "1.png")
    segments = [
        {"id": 70_000, "cat": "dog"},
        {"id": 5, "cat": "dog"},
        {"id": 9, "cat": "cow"},
        {"id": 300, "cat": "sea"},
    ]
    index = {"images": [{"image": "1.png", "panoptic": "1_panoptic.png", "segments": segments}]}
    (natural / "index.json").write_text(json.dumps(index))
    library = read_library(folder, "train")
    assert set(library.whole) == {"dog"}
    (scene,) = library.whole["dog"]
    alpha, colours = np.asarray(scene.getchannel("A")), np.asarray(scene.convert("RGB"))
    assert (alpha > 0).sum() == 2 * 30 * 30
    assert np.array_equal(alpha > 0, colours[..., 0] == 250), "the picture outside of the mask is as it was"
    assert not read_library(folder, "test").whole
    assert compose_picture(np.random.default_rng(0), library, ["dog"], size=(64, 64), whole_rate=1).words == ("dog",)
