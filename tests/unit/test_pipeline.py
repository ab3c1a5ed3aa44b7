"""Which stages run again after a change, and their results. The engines only count their runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from teso_deploy.backends.engine import Tensor
from teso_deploy.bundle import Bundle, BundleManifest, make_sized_name
from teso_deploy.errors import CueError
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.program import TESO
from teso_deploy.recipe import Recipe
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Cues, Frame
from tests.support.segmentations import read_cues

DIM = 8


class FakeTensor:
    """An output in device memory, which can't be used as an array."""

    def __init__(self, content: NDArray[Any]) -> None:
        self.content = content.copy()

    def numpy(self) -> NDArray[Any]:
        return self.content


class FakeSlot:
    """Writes each run's outputs over the previous ones, as a real slot does."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.tensors: dict[str, FakeTensor] = {}

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, Tensor]:
        arrays = {name: feed if isinstance(feed, np.ndarray) else feed.numpy() for name, feed in feeds.items()}
        for name, content in self.engine.run(arrays).items():
            if name in self.tensors:
                self.tensors[name].content[:] = content
            else:
                self.tensors[name] = FakeTensor(content)
        return self.tensors


class FakeEngine:
    """The shapes of a real graph. Class 1 is where the picture is bright, if there is sound."""

    backend, precision, form, is_asynchronous = "fake", "fp32", None, False
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def slot(self) -> FakeSlot:
        return FakeSlot(self)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        match self.name.partition("@")[0]:
            case "visual_encoder":
                assert feeds["image"].dtype == np.float32
                assert feeds["image"].shape == (1, 3, *size_of(self.name))
                return {"mask_features": feeds["image"].mean(axis=1, keepdims=True)[:, :, ::4, ::4]}
            case "audio_encoder":
                assert feeds["waveform"].shape == (1, WINDOW_SAMPLES)
                return {"audio": np.abs(feeds["waveform"]).mean(axis=1, keepdims=True)}
            case "fusion":
                gate = feeds["cues"].sum(axis=2) + feeds["audio"]
                return {"queries": feeds["audio"][:, None] + gate[:, :, None], "cue_gate": gate}
            case _:
                loud = float(feeds["queries"].max() > 0.1)
                return {"masks": np.repeat((feeds["mask_features"] > 0.5) * np.float32(loud), 3, axis=1)}


def size_of(graph: str) -> tuple[int, int]:
    """Return the bucket in a graph's name."""
    height, _, width = (graph.partition("@")[2] or "64x64").partition("x")
    return int(height), int(width)


def bundle_of(
    recipe: Recipe, graphs: tuple[str, ...] = TESO.names, sizes: tuple[tuple[int, int], ...] = ((64, 64),)
) -> Bundle:
    graphs += tuple(make_sized_name(name, size) for size in sizes[1:] for name in ("visual_encoder", "decoder"))
    entry = {"inputs": [], "outputs": [], "parameters": 0, "multiply_adds": 0, "nodes": 0}
    manifest = BundleManifest.model_validate(
        {
            "name": "fake",
            "trained": False,
            "recipe": recipe.model_dump(mode="json", by_alias=True),
            "graphs": {name: {"file": f"{name}.onnx", **entry} for name in graphs},
            "preprocessing": {"sizes": sizes, "mean": [0, 0, 0], "std": [255, 255, 255]},
            "postprocessing": {"threshold": 0.5},
            "classes": recipe.head.classes,
            "cue": {"template": "{cue}", "max_cues": 4, "dim": DIM, "table": None},
            "provenance": {},
            "licence": "none",
        }
    )
    return Bundle(Path("nowhere"), manifest)


@pytest.fixture
def pipeline(tiny_recipe: Recipe) -> Pipeline:
    return Pipeline(bundle_of(tiny_recipe), lambda bundle, name: FakeEngine(name))


def picture(seed: int, size: tuple[int, int] = (72, 96)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def sound(level: float) -> NDArray[np.float32]:
    return np.full(WINDOW_SAMPLES, level, np.float32)


def cues_of(count: int) -> Cues:
    embeddings = np.zeros((4, DIM), np.float32)
    embeddings[:count] = np.arange(1, count + 1)[:, None]
    return Cues(tuple(f"cue {i}" for i in range(count)), embeddings, np.arange(4) < count)


def ran(pipeline: Pipeline) -> tuple[int, ...]:
    return tuple(pipeline.runs[name] for name in TESO.names)


def test_only_what_changed_runs_again(pipeline: Pipeline) -> None:
    frame = Frame(picture(0), 0.0)
    pipeline.segment(frame, sound(0.2), cues_of(1))
    assert ran(pipeline) == (1, 1, 1, 1)
    pipeline.segment(frame, sound(0.2), cues_of(1))
    assert ran(pipeline) == (1, 1, 1, 1), "nothing changed"
    pipeline.segment(frame, sound(0.3), cues_of(1))
    assert ran(pipeline) == (1, 2, 2, 2), "a new sound"
    pipeline.segment(frame, sound(0.3), cues_of(2))
    assert ran(pipeline) == (1, 2, 3, 3), "new cues"
    pipeline.segment(Frame(picture(1), 0.04), sound(0.3), cues_of(2))
    assert ran(pipeline) == (2, 2, 3, 4), "a new picture"


def test_a_buffer_that_is_used_again_is_a_new_picture_and_a_new_sound(pipeline: Pipeline) -> None:
    buffer, samples = picture(0), sound(0.2)
    before = pipeline.segment(buffer, samples)
    buffer[:] = 255
    samples[:] = 0.3
    after = pipeline.segment(buffer, samples)
    assert ran(pipeline) == (2, 2, 2, 2)
    assert after.positive_pixel_rate == 1 > before.positive_pixel_rate


def test_what_is_kept_gives_the_same_as_what_is_computed(tiny_recipe: Recipe, pipeline: Pipeline) -> None:
    order = [(0, 0.2, 1), (0, 0.0, 1), (0, 0.2, 1), (1, 0.2, 2), (0, 0.2, 0), (1, 0.0, 0)]
    for seed, level, count in order:
        fresh = Pipeline(bundle_of(tiny_recipe), lambda bundle, name: FakeEngine(name))
        expected = fresh.segment(picture(seed), sound(level), cues_of(count))
        found = pipeline.segment(picture(seed), sound(level), cues_of(count))
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.cue_gate, expected.cue_gate)


def test_labels_have_the_frame_s_size_and_the_stamps_are_in_order(pipeline: Pipeline) -> None:
    window = AudioWindow(sound(0.2), start_seconds=1.5)
    found = pipeline.segment(Frame(picture(0, (90, 50)), pts_seconds=2.0, index=48), window, cues_of(1))
    assert found.labels.shape == (90, 50)
    assert (found.pts_seconds, found.index, found.audio_start_seconds) == (2.0, 48, 1.5)
    assert list(found.stamps) == ["started", "encoded", "heard", "fused", "masked", "labelled"]
    assert list(found.stamps.values()) == sorted(found.stamps.values())
    assert found.cue_gate is not None
    assert found.class_scores.shape == (3,) and found.cue_gate.shape == (4,)


def test_without_a_cue_the_output_says_fallback(pipeline: Pipeline) -> None:
    assert read_cues(pipeline.segment(picture(0), sound(0.2))).source == "fallback"
    assert read_cues(pipeline.segment(picture(0), sound(0.2), [])).source == "fallback"
    assert read_cues(pipeline.segment(picture(0), sound(0.2), cues_of(1))).source == "manual"


def test_silence_is_noted(pipeline: Pipeline) -> None:
    assert pipeline.segment(picture(0), sound(0.0)).audio_is_silent
    assert not pipeline.segment(picture(0), sound(0.2)).audio_is_silent


def test_wrong_inputs_are_named(pipeline: Pipeline, tiny_recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="15600 samples"):
        pipeline.segment(picture(0), np.zeros(16_000, np.float32))
    with pytest.raises(ValueError, match="uint8 RGB"):
        pipeline.segment(np.zeros((3, 64, 64), np.uint8), sound(0.2))
    with pytest.raises(CueError, match="look them up"):
        pipeline.segment(picture(0), sound(0.2), Cues((), np.zeros((4, 3), np.float32), np.zeros(4, np.bool_)))
    with pytest.raises(ValidationError, match="no graph serves the stage fusion"):
        bundle_of(tiny_recipe, ("visual_encoder", "audio_encoder", "decoder"))
    with pytest.raises(ValueError, match="unknown backend"):
        Pipeline.load(backend="tpu")  # type: ignore[arg-type]


def test_a_real_bundle_runs_what_changed_only(tiny_bundle: Path) -> None:
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    words = pipeline.cue_table.names[:2]
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(WINDOW_SAMPLES).astype(np.float32) * 0.1
    first = pipeline.segment(picture(0), noise, words)
    pipeline.segment(picture(0), noise * 0.5, words)
    pipeline.segment(picture(0), noise * 0.5, words[:1])
    assert ran(pipeline) == (1, 2, 3, 3)
    again = pipeline.segment(picture(0), noise, words)
    np.testing.assert_allclose(again.class_scores, first.class_scores, atol=1e-6)
    assert first.labels.shape == (72, 96)
