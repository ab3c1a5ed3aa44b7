"""``teso-deploy run --heatmaps``: pictures and arrays, their folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_source import VideoSource
from tests.support.clips import make_clip
from tests.support.commands import names_in, refused, teso

VARIANTS = ["cues-sound", "cues-muted", "no-cues-sound", "no-cues-muted"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=0.5)


def test_pictures_and_arrays(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "heat", tmp_path / "report.json"
    done = teso(
        "run", clip, "--bundle", tiny_bundle, "--cues", "dog", "--heatmaps", out, "--json", report, "--threads", 1
    )  # fmt: skip
    assert done.code == 0, done.err
    names = [f"{index:06d}{ending}" for index in range(6) for ending in (".npz", *(f"-{v}.png" for v in VARIANTS))]
    assert names_in(out) == sorted([*names, "heatmaps.json"])
    marker = json.loads((out / "heatmaps.json").read_text())
    assert marker["input"] == str(clip) and marker["bundle"] and set(VARIANTS) < set(marker["variants"])
    runs = json.loads(report.read_text())["graph_runs"]
    assert runs["visual_encoder"] == 6 and runs["decoder"] == 24, "the encoder runs once a frame"
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    with VideoSource(clip) as source:
        moment = list(source)[5]
    for name, words in (("cues-sound", ["dog"]), ("no-cues-sound", None)):
        found = pipeline.segment(moment.frame, moment.sound, words)
        with np.load(out / "000005.npz") as arrays:
            assert list(arrays) == VARIANTS and arrays[name].dtype == np.float16
            np.testing.assert_allclose(arrays[name], found.probabilities.max(axis=0), atol=1e-3)
    with Image.open(out / "000005-cues-sound.png") as picture:
        height, width = moment.frame.image.shape[:2]
        assert picture.width == width and picture.height > height, "the scale is below the frame"


def test_a_folder_of_heat_maps_is_replaced_and_another_one_is_refused(
    clip: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    heat, mine = tmp_path / "heat", tmp_path / "mine"
    command = ("run", clip, "--bundle", tiny_bundle, "--threads", 1, "--heatmaps")
    assert teso(*command, heat, "--fps", 12, "--cues", "dog").code == 0
    assert teso(*command, heat, "--fps", 2).code == 0
    assert names_in(heat) == ["000000-no-cues-muted.png", "000000-no-cues-sound.png", "000000.npz", "heatmaps.json"]
    mine.mkdir()
    (mine / "000000.png").write_text("mine")
    refused(*command, mine, names="which is not one of the heat maps")
    (heat / "notes.txt").write_text("mine")
    refused(*command, heat, names="notes.txt")
    assert (mine / "000000.png").read_text() == "mine" and len(names_in(heat)) == 5


def test_several_inputs_get_a_folder_each(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    other = make_clip(tmp_path / "other.mp4", seconds=0.25, has_audio=False)
    done = teso("run", clip, other, "--bundle", tiny_bundle, "--heatmaps", tmp_path / "heat", "--threads", 1)
    assert done.code == 0, done.err
    assert "other/000000-no-cues-muted.png" in names_in(tmp_path / "heat")
    assert "other/000000-no-cues-sound.png" not in names_in(tmp_path / "heat"), "a video without sound has no such map"
    assert "clip/000000-no-cues-sound.png" in names_in(tmp_path / "heat")


def test_streams_have_no_heat_maps(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for arguments, reason in (
        (("run", clip, "--mode", "live"), "--heatmaps is for files: omit it"),
        (("live", clip), "--heatmaps"),
    ):
        done = teso(*arguments, "--bundle", tiny_bundle, "--heatmaps", tmp_path / "heat")
        assert done.code == 2 and reason in done.err, done.err
    assert not names_in(tmp_path)


def test_outputs_are_apart(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    heat = tmp_path / "heat"
    heat.mkdir()
    refused("run", clip, "--heatmaps", tiny_bundle / "heat", "--bundle", tiny_bundle, names="is inside")
    refused("run", clip, "--heatmaps", heat, "--masks", heat, names="same output")
    assert not names_in(heat)
