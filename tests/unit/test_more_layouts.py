"""The layouts of AVS-V3, of AVSBench-Robust and of folders of clips, on small data sets that are made up."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.evaluation.datasets.pictures import load_frame
from teso_deploy.evaluation.datasets.reading import detect_layout, load_mask, read_dataset
from teso_deploy.evaluation.datasets.registry import LAYOUTS, Layout, find_layout, load_layout
from teso_deploy.evaluation.datasets.sounds import read_sample_windows, read_windows
from teso_deploy.evaluation.datasets.words import list_class_words
from tests.support.avs_layouts import THINGS, write_ms3, write_s4, write_v3, write_wav
from tests.support.clips import make_clip
from tests.support.imports import ROOT

HEAD = "vid,uid,s_min,s_sec,a_obj,split,label"


def test_every_layout_has_its_name_and_an_entry() -> None:
    assert [load_layout(name).name for name in LAYOUTS] == list(LAYOUTS)
    assert find_layout("v3-1-shot") == "v3-1-shot"
    with pytest.raises(DataError, match="unknown layout 'v3-2-shot': name one of s4, ms3"):
        find_layout("v3-2-shot")
    assert [name for name in LAYOUTS if load_layout(name).is_detected] == ["s4", "ms3", "avss", "clips"]


def test_every_layout_is_documented() -> None:
    page = (ROOT / "docs/reference/inputs.md").read_text(encoding="utf-8")
    assert [name for name in LAYOUTS if f"`{name}`" not in page] == []


# --- AVS-V3


@pytest.fixture
def few_shot_folder(tmp_path: Path) -> Path:
    """Write an avss data set and the tables of v3: of the test clips, one is a shot and one is tested."""
    return write_v3(tmp_path / "avss")


def list_uids(samples: Sequence[VideoSample]) -> list[str]:
    return [sample.uid for sample in samples]


def test_shots_choose_training_and_test_clips(few_shot_folder: Path) -> None:
    root = few_shot_folder
    assert detect_layout(root) == "avss"
    seen = read_dataset(root, "v3-0-shot", "train")
    assert list_uids(seen) == ["train-0_0_5000", "train-1_0_10000"]
    assert [(sample.subset, len(sample.frames), sample.split) for sample in seen] == [
        ("v1m", 5, "train"), ("v2", 10, "train"),
    ]  # fmt: skip
    assert list_uids(read_dataset(root, "v3-0-shot", "test")) == [
        "test-0_0_5000", "test-1_0_5000", "test-0_0_10000", "test-1_0_10000",
    ]  # fmt: skip
    shots, tested = (read_dataset(root, "v3-1-shot", split) for split in ("train", "test"))
    assert list_uids(shots) == ["test-0_0_5000"] and shots[0].split == "train"
    assert list_uids(tested) == ["test-1_0_5000", "test-0_0_10000", "test-1_0_10000"]
    assert list_uids(read_dataset(root, "v3-1-shot", "test", subsets=("v1m",))) == ["test-1_0_5000"]
    assert read_dataset(root, "v3-0-shot", "val") == read_dataset(root, "v3-1-shot", "val")


def test_objects_of_shots_come_from_the_table_of_unseen_clips(few_shot_folder: Path) -> None:
    (shot,) = read_dataset(few_shot_folder, "v3-1-shot", "train")
    assert shot.category == "dog_car" and list_class_words(shot, "v3-1-shot") == ("dog", "car")
    mask = shot.masks[2]
    assert mask is not None and set(np.unique(load_mask(mask, "v3-1-shot", "semantic"))) == {0, 11, 17}
    assert set(np.unique(load_mask(mask, "v3-1-shot", "binary"))) == {0, 1}


def test_shots_without_their_table(few_shot_folder: Path) -> None:
    with pytest.raises(DataError, match=r"v3_3_shot/train\.csv does not exist: unpack v3\.zip"):
        read_dataset(few_shot_folder, "v3-3-shot", "train")
    shutil.rmtree(few_shot_folder / "v3")
    with pytest.raises(DataError, match=r"does not have the layout v3-1-shot: it should have v3/meta_v3_unseen\.csv"):
        read_dataset(few_shot_folder, "v3-1-shot", "train")


# --- AVSBench-Robust


def write_negatives(home: Path, *, originals: Path) -> Path:
    """Write the sounds as AVSBench-Robust does: a piano for every clip, a different tone as noise."""
    home.mkdir(exist_ok=True)
    write_wav(home / "silent.wav", [()] * 5)
    for audio in sorted(originals.rglob("audio_wav/**/*.wav")):
        inside = audio.relative_to(originals)
        data, name = Path(*inside.parts[:2]), Path(*inside.parts[3:])
        write_wav(home / data / "audio_wav_misaligned" / name, [("piano",)] * 5)
        write_wav(home / data / "audio_wav_noise" / name, [("dog", "car", "piano")] * 5)
    return home


@pytest.fixture
def robust_folder(tmp_path: Path) -> Path:
    root = tmp_path / "both"
    write_s4(root, size=16)
    write_ms3(root, size=16)
    return write_negatives(root, originals=root)


@pytest.mark.parametrize(("layout", "words"), [
    ("robust-silence", ()), ("robust-noise", ("dog", "car", "piano")), ("robust-off-screen", ("piano",)),
])  # fmt: skip
def test_negatives_have_another_sound_and_a_blank_truth(
    robust_folder: Path, layout: Layout, words: tuple[str, ...]
) -> None:
    samples = read_dataset(robust_folder, layout, "test")
    originals = read_dataset(robust_folder, "s4", "test") + read_dataset(robust_folder, "ms3", "test")
    assert [sample.subset for sample in samples] == ["v1s", "v1s", "v1m", "v1m"]
    for sample, original in zip(samples, originals, strict=True):
        assert (sample.uid, sample.frames, sample.masks) == (original.uid, original.frames, original.masks)
        assert list_class_words(sample, layout) == list_class_words(original, "s4" if sample.subset == "v1s" else "ms3")
        for mask in sample.masks:
            assert mask is not None
            blank = load_mask(mask, layout, "binary")
            assert blank.shape == (16, 16) and not blank.any()
        window = read_windows(sample.audio, 1)[0]
        level = np.abs(np.fft.rfft(window)) / len(window)
        near = {word: level[round(hertz * len(window) / 16_000)] for word, (_, hertz) in THINGS.items()}
        assert tuple(word for word in THINGS if near[word] > 0.01) == words
    assert list_uids(read_dataset(robust_folder, layout, "test", subsets=("v1m",))) == ["test-0_0", "test-1_0"]


def test_negatives_may_be_in_a_folder_of_their_own(tmp_path: Path) -> None:
    originals = write_ms3(tmp_path / "avsbench_data", size=16)
    write_negatives(tmp_path / "avsbench_neg_data", originals=originals)
    samples = read_dataset(tmp_path, "robust-off-screen", "val")
    assert list_uids(samples) == ["val-0_0", "val-1_0"]
    assert "avsbench_neg_data" in samples[0].audio.parts and "avsbench_data" in samples[0].frames[0].parts
    assert read_dataset(tmp_path, "robust-silence", "val")[0].audio.name == "silent.wav"


def test_negatives_that_are_not_there(robust_folder: Path) -> None:
    gone = robust_folder / "Multi-sources/ms3_data/audio_wav_noise/test/test-1_0.wav"
    gone.unlink()
    with pytest.raises(DataError, match=r"audio_wav_noise/test/test-1_0\.wav does not exist"):
        read_dataset(robust_folder, "robust-noise", "test")
    (robust_folder / "silent.wav").unlink()
    with pytest.raises(
        DataError, match=r"not have the layout robust-silence: it should have s4 or ms3 with silent\.wav"
    ):
        read_dataset(robust_folder, "robust-silence", "test")


# --- folders of clips


def write_folder_clip(home: Path, *, frames: Sequence[str], masks: Sequence[str], size: int = 16) -> Path:
    """Write a clip with a frame of each name, and a mask of each name whose left half sounds."""
    for folder, names in (("frames", frames), ("masks", masks)):
        (home / folder).mkdir(parents=True)
        for number, name in enumerate(names):
            pixels = np.full((size, size), 20 * number, np.uint8)
            if folder == "masks":
                pixels[:], pixels[:, : size // 2] = 0, 255
            Image.fromarray(pixels).save(home / folder / name)
    write_wav(home / "audio.wav", [("dog",), ("car",), ("piano",)])
    return home


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for split in ("train", "test"):
        write_folder_clip(
            root / split / f"{split}-1",
            frames=[f"{number}.jpg" for number in range(9, 12)],
            masks=[f"{number}.png" for number in range(9, 12)],
        )
    return root


def test_a_folder_of_clips_is_read_without_a_table(clip_folder: Path) -> None:
    assert detect_layout(clip_folder) == "clips"
    (sample,) = read_dataset(clip_folder, None, "test")
    assert (sample.uid, sample.subset, sample.split, sample.times) == ("test-1", "clips", "test", ())
    assert [path.name for path in sample.frames] == ["9.jpg", "10.jpg", "11.jpg"], "in the order of their numbers"
    assert sample.masks[0] is not None and load_mask(sample.masks[0], "clips", "binary").sum() == 16 * 8
    assert list_class_words(sample, "clips") == ()
    assert np.array_equal(read_sample_windows(sample), read_windows(sample.audio, 3))
    with pytest.raises(DataError, match=r"no video in the split val; it has test \(1\), train \(1\)"):
        read_dataset(clip_folder, None, "val")
    assert list_uids(read_dataset(clip_folder / "train", None, "test")) == ["train-1"], "no folders of splits"


def test_frames_may_lack_a_mask(tmp_path: Path) -> None:
    write_folder_clip(tmp_path / "a", frames=["x_1.png", "x_2.png", "x_10.png"], masks=["mask-2.png"])
    (sample,) = read_dataset(tmp_path, None, "test")
    assert [mask and mask.name for mask in sample.masks] == [None, "mask-2.png", None]


def test_settings_give_times_and_words(clip_folder: Path) -> None:
    (clip_folder / "clips.toml").write_text(
        'frames_per_second = 2\n[clips.test-1]\nwords = ["dog", "electric guitar"]\ntimes = [0.9375, 2.9375, 1.4375]\n'
    )
    (train,), (test,) = (read_dataset(clip_folder, None, split) for split in ("train", "test"))
    assert train.times == (0.0, 0.5, 1.0) and train.category == ""
    assert test.times == (0.9375, 2.9375, 1.4375) and list_class_words(test, "clips") == ("dog", "electric guitar")
    seconds = read_windows(test.audio, 3)
    windows = read_sample_windows(test, hop_seconds=0.96)
    assert np.array_equal(windows[0], seconds[0]) and np.array_equal(windows[1], seconds[2])
    early = read_sample_windows(train)[0]
    assert not early[: 15_000 - 1].any() and early[15_000:].any(), "before the start it is silent"


@pytest.mark.parametrize(("text", "match"), [
    ("fps = 5", "the file has the unknown key fps: it may have clips, frames_per_second"),
    ("frames_per_second = 0", "frames_per_second of the file must be a number above 0"),
    ("[clips.test-1]\ntimes = [0.5]", r"clips\.toml has 1 times for the 3 pictures of test-1"),
    ("[clips.test-1]\ntimes = 3", "times of clip test-1 must be a list of seconds"),
    ("[clips.test-1]\ntimes = [0.5, nan, 1]", "times of clip test-1 must be a list of seconds, none below 0"),
    ("[clips.test-1]\ntimes = [0.5, -1, 1]", "times of clip test-1 must be a list of seconds, none below 0"),
    ("frames_per_second = inf", "frames_per_second of the file must be a number above 0"),
    ('[clips.test-1]\nwords = "dog"', "words of clip test-1 must be a list of words"),
    ("[clips.test-2]\nwords = []", "names the clip 'test-2', which is not there"),
    ("clips = 3", r"under \[clips\.NAME\]"),
    ("[clips", "is not TOML"),
])  # fmt: skip
def test_settings_that_are_wrong(clip_folder: Path, text: str, match: str) -> None:
    (clip_folder / "clips.toml").write_text(text)
    with pytest.raises(DataError, match=match):
        read_dataset(clip_folder, None, "test")


def test_clips_that_are_not_whole(clip_folder: Path) -> None:
    home = clip_folder / "test/test-1"

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match):
            read_dataset(clip_folder, None, "test")

    Image.new("L", (8, 16)).save(home / "masks/10.png")
    refused(r"10\.png has 8 × 16 pixels, but its frame has 16 × 16")
    (home / "masks/10.png").rename(home / "masks/12.png")
    refused(r"masks/12\.png has no frame of the same name or number")
    (home / "masks/12.png").rename(home / "masks/x09.png")
    refused(r"x09\.png and .*/9\.png belong to the same frame")
    (home / "masks/x09.png").unlink()
    shutil.copy(home / "audio.wav", home / "audio.ogg")
    refused(r"test-1 has 2 sound files: keep one, or call one of them audio")
    (home / "audio.ogg").unlink()
    (home / "audio.wav").rename(home / "sound.wav")
    assert read_dataset(clip_folder, None, "test")[0].audio.name == "sound.wav"
    (home / "sound.wav").unlink()
    refused("test-1 has no sound file")
    shutil.rmtree(home / "masks")
    refused("masks has no masks")
    for path in (home / "frames").iterdir():
        path.unlink()
    refused("frames has no pictures")


def test_index_masks_of_clips(tmp_path: Path) -> None:
    write_folder_clip(tmp_path / "a", frames=["0.png"], masks=["0.png"])
    path = tmp_path / "a/masks/0.png"
    with pytest.raises(DataError, match="has the class 255"):
        load_mask(path, "clips", "semantic")
    Image.fromarray(np.array([[0, 17]], np.uint8)).save(path)
    assert load_mask(path, "clips", "semantic").tolist() == [[0, 17]]
    assert load_mask(path, "clips", "binary").tolist() == [[0, 1]]


# --- videos with masks


@pytest.fixture
def video_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a clip of 3 s at 12 frames per second, whose square moves by a pixel per frame, with two masks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "videos"
    (root / "a.masks").mkdir(parents=True)
    make_clip(root / "a.mp4", seconds=3)
    for number in (0, 2):
        Image.fromarray(np.full((72, 96), 255, np.uint8)).save(root / "a.masks" / f"{number}.png")
    return root


def find_left_edge(path: Path) -> int:
    image = load_frame(path).astype(int)
    return int(np.flatnonzero(image[35, :, 0] - image[35, :, 1] > 60)[0])


def test_a_video_is_shown_at_the_times_of_its_masks(video_folder: Path) -> None:
    assert detect_layout(video_folder) == "clips"
    (sample,) = read_dataset(video_folder, None, "test")
    assert sample.audio == video_folder / "a.mp4" and sample.times == (0.9375, 2.9375)
    # The n-th frame begins at n / 12 s, and has the square at 4 + n. Colours have half the resolution.
    assert [find_left_edge(path) - 4 for path in sample.frames] == [10, 34]
    assert np.array_equal(read_sample_windows(sample), read_windows(sample.audio, 3)[[0, 2]])
    before = sample.frames[0].stat().st_mtime_ns
    assert read_dataset(video_folder, None, "test")[0].frames[0].stat().st_mtime_ns == before, "from the cache"
    for path in list((video_folder / "a.masks").iterdir()):
        path.rename(path.with_stem(f"mask_{int(path.stem) + 1}"))
    assert read_dataset(video_folder, None, "test")[0].times == (0.9375, 2.9375), "numbered from 1"
    (video_folder / "clips.toml").write_text("[clips.a]\ntimes = [2.01, 0.0]\n")
    assert [find_left_edge(path) - 4 for path in read_dataset(video_folder, None, "test")[0].frames] == [24, 0]


def test_videos_that_can_not_be_used(video_folder: Path) -> None:
    video = video_folder / "a.mp4"

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match):
            read_dataset(video_folder, None, "test")
        assert not list((video_folder.parent / "cache").rglob("*.png"))

    (video_folder / "clips.toml").write_text("[clips.a]\ntimes = [0.5, 9]\n")
    refused(r"a\.mp4 ends at 3\.\d\d s, before the picture at 9\.00 s")
    (video_folder / "clips.toml").unlink()
    make_clip(video, seconds=3, has_audio=False)
    refused(r"a\.mp4 has no sound")
    video.write_bytes(b"no video")
    refused(r"a\.mp4")
    shutil.rmtree(video_folder / "a.masks")
    with pytest.raises(DataError, match="has no known layout"):
        detect_layout(video_folder)
    with pytest.raises(DataError, match="does not have the layout clips"):
        read_dataset(video_folder, "clips", "test")
