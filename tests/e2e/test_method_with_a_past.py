"""A method that looks at past pictures and audio windows: its manifest, a file, a stream, parity and audio control."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine, make_onnxruntime_factory
from teso_deploy.bundle import KIND, REFERENCE, Bundle, BundleManifest, Postprocessing, Preprocessing, write_manifest
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.variants import VariantRunner
from teso_deploy.program import Program, Stage, repeat_past
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Frame
from teso_deploy.verification.probes import ROWS, run_whole
from teso_deploy.verification.verify import verify_bundle
from tests.support.clips import make_clip
from tests.support.commands import refused, teso
from tests.support.made_up_graphs import describe_graph, list_loudness_nodes, save_graph

SIZE = (64, 96)
PROGRAM = Program(
    stages=(
        Stage(name="encoder", inputs=("image",), sized=True),
        Stage(name="decoder", inputs=("encoder", "audio_window"), sized=True),
    ),
    past_frames=1,
    past_windows=2,
)


def write_encoder(path: Path) -> None:
    """Write a graph with the change of brightness: ``image`` (B, 2, 3, 64, 96) → ``change`` (B, 1, 16, 24)."""
    nodes = [
        helper.make_node("Gather", ["image", "first"], ["before"], axis=1),
        helper.make_node("Gather", ["image", "second"], ["now"], axis=1),
        helper.make_node("Sub", ["now", "before"], ["difference"]),
        helper.make_node("AveragePool", ["difference"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("ReduceMean", ["pooled", "channel"], ["change"], keepdims=1),
    ]
    save_graph(path, nodes, {"image": ("B", 2, 3, *SIZE)}, ["B", 1, 16, 24])


def write_decoder(path: Path) -> None:
    """Write a graph: the class where the picture became brighter, if one of the last three windows was loud."""
    nodes = [
        *list_loudness_nodes([1, 2]),
        helper.make_node("Mul", ["change", "steepness"], ["logits"]),
        helper.make_node("Tanh", ["logits"], ["scores"]),
        helper.make_node("Mul", ["scores", "gain"], ["masks"]),
    ]
    inputs = {"change": ["B", 1, 16, 24], "waveform": ["B", 3, WINDOW_SAMPLES]}
    save_graph(path, nodes, inputs, ["B", 1, 16, 24])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("method") / "bundle"
    rng = np.random.default_rng(0)
    waveform = rng.uniform(-0.5, 0.5, (len(ROWS), WINDOW_SAMPLES)).astype(np.float32)
    waveform[1] = 0
    inputs = repeat_past(PROGRAM, {"waveform": waveform})
    inputs["image"] = rng.standard_normal((1, 2, 3, *SIZE)).astype(np.float32)
    with KIND.staging(out) as new:
        write_encoder(new / "encoder.onnx")
        write_decoder(new / "decoder.onnx")
        engines = {name: OnnxRuntimeEngine(new / f"{name}.onnx", threads=1) for name in PROGRAM.names}
        np.savez(new / REFERENCE, allow_pickle=False, **inputs, **run_whole(PROGRAM, engines, inputs))
        manifest = BundleManifest(
            name="changes",
            trained=False,
            recipe={},
            program=PROGRAM,
            graphs={name: describe_graph(new / f"{name}.onnx") for name in PROGRAM.names},
            preprocessing=Preprocessing(sizes=(SIZE,), mean=(128, 128, 128), std=(128, 128, 128)),
            postprocessing=Postprocessing(threshold=0.5),
            classes=("brighter",),
            provenance={"weights": "none"},
            licence="none",
        )
        write_manifest(new, manifest)
    return out


@pytest.fixture
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder, threads=1)


def frame(level: int, seconds: float) -> Frame:
    return Frame(np.full((*SIZE, 3), level, np.uint8), pts_seconds=seconds)


def sound(level: float, seconds: float) -> AudioWindow:
    samples: NDArray[np.float32] = np.full(WINDOW_SAMPLES, level, np.float32)
    return AudioWindow(samples, start_seconds=seconds)


def test_the_manifest_has_the_past(folder: Path) -> None:
    content = json.loads((folder / KIND.manifest).read_text(encoding="utf-8"))
    assert content["program"]["past_frames"] == 1 and content["program"]["past_windows"] == 2
    assert Bundle.open(folder).program == PROGRAM


def test_a_frame_is_compared_with_the_one_before_it(pipeline: Pipeline) -> None:
    stream = pipeline.open_stream()
    levels = (0, 255, 255, 255, 0, 255)
    blank = [stream.segment(frame(level, i), sound(0.5, i)).is_blank for i, level in enumerate(levels)]
    assert blank == [True, False, True, True, True, False]
    # The fourth frame has the same past as the third.
    assert stream.runs["encoder"] == 5 and stream.encoder_skips == {"same": 1}


def test_a_second_look_at_a_frame_does_not_move_the_past(pipeline: Pipeline) -> None:
    stream = pipeline.open_stream()
    stream.segment(frame(0, 0), sound(0.5, 0))
    assert [stream.segment(frame(255, 1), sound(0.5, 1)).is_blank for _ in range(4)] == [False] * 4
    assert stream.runs == {"encoder": 2, "decoder": 2}


def test_a_loud_window_is_remembered_for_two_more(pipeline: Pipeline) -> None:
    stream = pipeline.open_stream()
    stream.segment(frame(0, 0), sound(0.5, 0))
    blank = [stream.segment(frame(255, 1), sound(0.0, i)).is_blank for i in range(1, 6)]
    assert blank == [False, False, True, True, True]
    np.testing.assert_array_equal(stream.heard(), np.zeros(WINDOW_SAMPLES))


def test_frames_that_are_encoded_ahead_keep_their_past(pipeline: Pipeline) -> None:
    stream = pipeline.open_stream()
    stream.encode(frame(0, 0))
    second, third = stream.encode(frame(255, 1)), stream.encode(frame(255, 2))
    assert not stream.decode(second, sound(0.5, 1)).is_blank
    assert stream.decode(third, sound(0.5, 2)).is_blank


def test_a_file_and_a_live_run(folder: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", seconds=1.0)
    done = teso("run", clip, "--bundle", folder, "--masks", tmp_path / "masks", "--json", "-", "--threads", 1)
    assert done.code == 0, done.err
    assert json.loads(done.out)["graph_runs"]["decoder"] > 1
    live = teso("live", clip, "--bundle", folder, "--masks", tmp_path / "masks.jsonl", "--threads", 1)
    assert live.code == 0, live.err
    assert (tmp_path / "masks.jsonl").read_text(encoding="utf-8").strip()


def test_parity_and_audio_control(folder: Path) -> None:
    report = verify_bundle(Bundle.open(folder), lambda form: make_onnxruntime_factory(1, form))
    assert report.passed, report.failures
    assert {heard.sound: heard.positive_pixel_rate for heard in report.heard}["muted"] == 0.0


@pytest.mark.parametrize(
    ("past", "says"),
    [
        ({"past_windows": 0}, "program.past_windows says B x 15600"),
        ({"past_frames": 0}, "preprocessing.sizes says B x 3 x 64 x 96"),
        ({"past_windows": 3}, "program.past_windows says B x 4 x 15600"),
        ({"past_frames": 2}, "program.past_frames says B x 3 x 3 x 64 x 96"),
        ({"past_frames": -1}, "past_frames"),
    ],
)
def test_a_past_that_the_graphs_do_not_have_is_refused(
    folder: Path, tmp_path: Path, past: dict[str, int], says: str
) -> None:
    other = tmp_path / "bundle"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    content = json.loads((other / KIND.manifest).read_text(encoding="utf-8"))
    content["program"] |= past
    (other / KIND.manifest).write_text(json.dumps(content), encoding="utf-8")
    clip = make_clip(tmp_path / "clip.mp4", seconds=0.5)
    refused("run", clip, "--bundle", other, "--out", tmp_path / "o.mp4", names=says)


def test_muted_variants_do_not_enter_the_past(pipeline: Pipeline) -> None:
    """A sound that ended counts for two more windows, and the silence of the muted variants is not one of them."""
    plain, stream = pipeline.open_stream(), pipeline.open_stream()
    runner = VariantRunner(stream)
    muted = []
    for i, (level, loudness) in enumerate([(0, 0.5), (255, 0.0), (0, 0.0), (255, 0.0), (0, 0.0), (255, 0.0)]):
        found, variants = runner.segment(frame(level, i), sound(loudness, i))
        expected = plain.segment(frame(level, i), sound(loudness, i))
        np.testing.assert_array_equal(found.scores, expected.scores)
        muted.append(variants["muted"].is_blank)
    assert all(muted) and plain.runs == stream.runs
