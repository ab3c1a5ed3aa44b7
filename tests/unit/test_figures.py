"""Figures as data: the choice of clips and frames, and what the columns of a figure show."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.bundle import Bundle, write_manifest
from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.evaluation.contact_sheet import draw_labels, fit_picture
from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.evaluation.datasets.pictures import load_frame
from teso_deploy.evaluation.datasets.reading import load_mask, read_dataset
from teso_deploy.evaluation.datasets.sounds import read_windows
from teso_deploy.evaluation.figure_rows import FigureMaker, choose_clips, choose_frame, find_clips
from teso_deploy.evaluation.figures import FIGURES, FigureColumn, FigureEntry, find_figure
from teso_deploy.media.heat_map import draw_heat_map
from teso_deploy.pipeline.pipeline import Pipeline, Stream
from teso_deploy.types import Framing, Segmentation
from tests.support.avs_layouts import write_avss, write_ms3


def make_clip(number: int, category: str = "", subset: str = "v1m") -> VideoSample:
    picture = Path("1.png")
    return VideoSample(f"{subset}-{number}", subset, "test", (picture,), (picture,), Path("a.wav"), category)


@pytest.fixture(scope="module")
def avss(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSample]:
    root = write_avss(tmp_path_factory.mktemp("data"), videos=3)
    return read_dataset(root, "avss", "test")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(threads=1)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 100])
def test_clips_are_spread_over_categories(count: int) -> None:
    clips = [make_clip(number, category) for number, category in enumerate("aaaaaabbcd")]
    chosen = choose_clips(clips, count)
    assert len(chosen) == min(count, 10) and len({clip.uid for clip in chosen}) == len(chosen)
    assert chosen == sorted(chosen, key=clips.index), "in the order of the table"
    assert len({clip.category for clip in chosen}) == min(count, 4)
    assert chosen == choose_clips(clips, count)


def test_subsets_give_as_many_clips_each() -> None:
    clips = [make_clip(n, f"{n}") for n in range(50)] + [make_clip(n, "a", "v1s") for n in range(8)]
    assert [clip.subset for clip in choose_clips(clips, 8)] == ["v1m"] * 4 + ["v1s"] * 4
    assert [clip.subset for clip in choose_clips(clips, 40)] == ["v1m"] * 32 + ["v1s"] * 8, "one has too few"


def test_clips_without_categories_are_spread_over_the_table() -> None:
    clips = [make_clip(number) for number in range(100)]
    assert [clips.index(clip) for clip in choose_clips(clips, 4)] == [0, 25, 50, 75]


def test_named_clips() -> None:
    clips = [make_clip(number) for number in range(4)]
    assert find_clips(clips, ["v1m-3", "v1m-0", "v1m-3"]) == [clips[3], clips[0]]
    with pytest.raises(DataError, match="unknown clip 'x' among 4: name one such as v1m-0, v1m-1, v1m-2"):
        find_clips(clips, ["v1m-1", "x"])


def test_the_frame_with_the_largest_mask(avss: list[VideoSample]) -> None:
    """In the third second both objects sound; in the fourth none does."""
    assert [choose_frame(clip, "avss") for clip in avss] == [2] * 3


def test_unknown_figures() -> None:
    with pytest.raises(InputNotFoundError, match="unknown figure '5': name one of 4, B6, B7, J8, J9"):
        find_figure("5")
    assert all(entry.columns and entry.clips > 0 and entry.name == name for name, entry in FIGURES.items())


def collect(maker: FigureMaker, row: int) -> dict[str, NDArray[np.uint8]]:
    return dict(maker.make_rows()[row].pictures)


def test_masks_are_drawn_with_classes(avss: list[VideoSample], pipeline: Pipeline) -> None:
    maker = FigureMaker(find_figure("B7"), avss, layout="avss")
    maker.add_truth()
    maker.add_bundle("ours", pipeline, "labels")
    picture, mask = load_frame(avss[0].frames[2]), avss[0].masks[2]
    assert mask is not None
    truth = load_mask(mask, "avss", "semantic")
    drawn = collect(maker, 0)
    assert list(drawn) == ["picture", "truth", "ours"]
    np.testing.assert_array_equal(drawn["picture"], fit_picture(picture))
    np.testing.assert_array_equal(drawn["truth"], fit_picture(draw_labels(picture, truth)))
    assert {"dog", "car", "piano"} <= {*maker.make_legend().values()}
    assert any("rooster" in note for note in maker.notes), "a class of the bundle that AVSS lacks"
    assert maker.make_rows()[0].title == "test-0_0_5000, frame 3  ·  labelled dog, car  ·  cues dog, car"


def test_heat_maps_differ_as_the_columns_say(avss: list[VideoSample], pipeline: Pipeline) -> None:
    maker = FigureMaker(find_figure("J9"), avss[:1], layout="avss")
    maker.add_bundle("ours", pipeline, "labels")
    drawn = collect(maker, 0)
    assert list(drawn) == ["ours: with sound", "ours: muted", "ours: no cues", "ours: no cues, muted"]
    picture = load_frame(avss[0].frames[2])
    silence = np.zeros(15_600, np.float32)
    for heading, words in (("ours: muted", ["dog", "car"]), ("ours: no cues, muted", None)):
        found = pipeline.open_stream().segment(picture, silence, words)
        expected = draw_heat_map(picture, found.sounding_probability, found.labels)
        np.testing.assert_array_equal(drawn[heading], fit_picture(expected))
    assert maker.make_legend() == {}


def test_a_clip_of_a_layout_without_words(tmp_path: Path, pipeline: Pipeline) -> None:
    clips = read_dataset(write_ms3(tmp_path, videos=1), "ms3", "test")
    maker = FigureMaker(find_figure("J8"), clips, layout="ms3")
    maker.add_bundle("ours", pipeline, "none")
    assert maker.make_rows()[0].title == "test-0_0, frame 3  ·  no cues"
    assert list(collect(maker, 0)) == ["ours: with sound", "ours: muted", "ours: noise 10 dBW"]
    with pytest.raises(DataError, match="binary masks"):
        FigureMaker(find_figure("B7"), clips, layout="ms3").add_truth()


@pytest.mark.parametrize("given", [None, "per_second", "contiguous"])
@pytest.mark.parametrize("framing", ["per_second", "contiguous"])
def test_the_sound_is_cut_as_in_the_bundle_s_training(
    framing: Framing, given: Framing | None, avss: list[VideoSample], tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = Bundle.open(tiny_bundle).manifest
    audio = manifest.audio.model_copy(update={"framing": framing})
    write_manifest(tmp_path / "bundle", manifest.model_copy(update={"audio": audio}))
    heard = []

    class Listening(Stream):
        def segment(self, frame: Any, sound: Any, cues: Any = None) -> Segmentation:
            heard.append((sound.start_seconds, sound.samples))
            return super().segment(frame, sound, cues)

    pipeline = Pipeline.load(tmp_path / "bundle", threads=1)
    pipeline.open_stream = lambda: Listening(pipeline)  # type: ignore[method-assign]
    FigureMaker(find_figure("4"), avss[:1], layout="avss", framing=given).add_bundle("ours", pipeline, "none")
    start, samples = heard[0]
    hop = {"per_second": 1.0, "contiguous": 0.96}[given or framing]
    assert start == 2 * hop
    np.testing.assert_array_equal(samples, read_windows(avss[0].audio, 3, hop)[2])


def test_a_figure_of_one_s_own(avss: list[VideoSample], pipeline: Pipeline) -> None:
    """Columns of heat maps and of masks can be mixed: a figure is only data."""
    entry = FigureEntry(name="x", title="", columns=(FigureColumn(), FigureColumn(heading="map", is_heat_map=True)))
    maker = FigureMaker(entry, avss[:1], layout="avss")
    maker.add_bundle("a", pipeline, "none")
    maker.add_bundle("b", pipeline, "none")
    assert [heading for heading, _ in maker.make_rows()[0].pictures] == ["a", "a: map", "b", "b: map"]
    assert maker.report()[0]["columns"] == ["a", "a: map", "b", "b: map"]
