"""A method that is not TeSO, with two stages and no text: bundle, masks, events, parity and audio control."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine, make_onnxruntime_factory
from teso_deploy.bundle import (
    KIND,
    REFERENCE,
    Bundle,
    BundleManifest,
    Postprocessing,
    Preprocessing,
    write_manifest,
)
from teso_deploy.errors import CueError
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.program import Program, Stage
from teso_deploy.sinks.delivery import Delivery, InputFacts
from teso_deploy.sinks.events import EventLog
from teso_deploy.sinks.mask_lines import make_mask_line
from teso_deploy.types import WINDOW_SAMPLES, Frame
from teso_deploy.verification.probes import ROWS, run_whole
from teso_deploy.verification.verify import verify_bundle
from tests.support.clips import make_clip
from tests.support.commands import names_in, refused, teso
from tests.support.made_up_graphs import describe_graph, list_loudness_nodes, save_graph

SIZE = (64, 96)
CLASSES = ("bright", "dark")
PROGRAM = Program(
    stages=(
        Stage(name="encoder", inputs=("image",), sized=True),
        Stage(name="decoder", inputs=("encoder", "audio_window"), sized=True),
    )
)


def write_encoder(path: Path) -> None:
    """Write a graph with the mean of 4 x 4 pixels and of the channels: (B, 3, 64, 96) → ``features`` (B, 1, 16, 24)."""
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("ReduceMean", ["pooled", "channel"], ["features"], keepdims=1),
    ]
    save_graph(path, nodes, {"image": ("B", 3, *SIZE)}, ["B", 1, 16, 24])


def write_decoder(path: Path) -> None:
    """Write a graph: the first class where the picture is bright, the second in the dark, none without sound."""
    nodes = [
        *list_loudness_nodes([1]),
        helper.make_node("Mul", ["features", "steepness"], ["logits"]),
        helper.make_node("Neg", ["logits"], ["opposite"]),
        helper.make_node("Concat", ["logits", "opposite"], ["both"], axis=1),
        helper.make_node("Sigmoid", ["both"], ["scores"]),
        helper.make_node("Mul", ["scores", "gain"], ["masks"]),
    ]
    inputs = {"features": ["B", 1, 16, 24], "waveform": ["B", WINDOW_SAMPLES]}
    save_graph(path, nodes, inputs, ["B", 2, 16, 24])


def write_reference(folder: Path) -> None:
    """Write noise and ONNX Runtime's outputs for it, with the sounds in the rows of every reference."""
    rng = np.random.default_rng(0)
    waveform = rng.uniform(-0.5, 0.5, (len(ROWS), WINDOW_SAMPLES)).astype(np.float32)
    waveform[1] = 0
    image = rng.standard_normal((1, 3, *SIZE)).astype(np.float32)
    engines = {name: OnnxRuntimeEngine(folder / f"{name}.onnx", threads=1) for name in PROGRAM.names}
    outputs = run_whole(PROGRAM, engines, {"image": image, "waveform": waveform})
    np.savez(folder / REFERENCE, allow_pickle=False, image=image, waveform=waveform, **outputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("method") / "bundle"
    with KIND.staging(out) as new:
        write_encoder(new / "encoder.onnx")
        write_decoder(new / "decoder.onnx")
        write_reference(new)
        manifest = BundleManifest(
            name="two-stages",
            trained=False,
            recipe={},
            program=PROGRAM,
            graphs={name: describe_graph(new / f"{name}.onnx") for name in PROGRAM.names},
            preprocessing=Preprocessing(sizes=(SIZE,), mean=(128, 128, 128), std=(128, 128, 128)),
            postprocessing=Postprocessing(threshold=0.5),
            classes=CLASSES,
            provenance={"weights": "none"},
            licence="none",
        )
        write_manifest(new, manifest)
    return out


@pytest.fixture
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder, threads=1)


def picture(level: int) -> NDArray[np.uint8]:
    return np.full((*SIZE, 3), level, np.uint8)


LOUD = np.full(WINDOW_SAMPLES, 0.5, np.float32)
SILENT = np.zeros(WINDOW_SAMPLES, np.float32)


def test_the_manifest_says_what_the_program_is(folder: Path) -> None:
    content = json.loads((folder / KIND.manifest).read_text(encoding="utf-8"))
    assert content["schema_version"] == 2 and content["cue"] is None
    assert content["program"]["stages"][1]["inputs"] == ["encoder", "audio_window"]
    assert Bundle.open(folder).program == PROGRAM


def test_masks_without_cues(pipeline: Pipeline) -> None:
    found = pipeline.segment(picture(255), LOUD)
    assert found.cues is None and found.cue_gate is None
    assert found.shown(CLASSES) == ("bright",) and pipeline.segment(picture(0), LOUD).shown(CLASSES) == ("dark",)
    assert pipeline.segment(picture(255), SILENT).is_blank
    assert list(found.stamps) == ["started", "encoded", "heard", "masked", "labelled"]
    assert "cues=None" in repr(found)


def test_a_new_sound_does_not_run_the_encoder(pipeline: Pipeline) -> None:
    stream = pipeline.open_stream()
    for sound in (LOUD, SILENT, LOUD):
        stream.segment(picture(255), sound)
    assert stream.runs == {"encoder": 1, "decoder": 3} and stream.encoder_skips == {"same": 2}
    stream.segment(picture(255), LOUD)
    assert stream.runs == {"encoder": 1, "decoder": 3}, "nothing is new"
    stream.segment(picture(0), LOUD)
    assert stream.runs == {"encoder": 2, "decoder": 4}
    np.testing.assert_array_equal(stream.heard(), LOUD)


def test_pictures_are_encoded_ahead(pipeline: Pipeline) -> None:
    stream = pipeline.open_stream()
    first, second = stream.encode(picture(255)), stream.encode(picture(0))
    assert stream.decode(first, LOUD).shown(CLASSES) == ("bright",)
    assert stream.decode(second, LOUD).shown(CLASSES) == ("dark",)


def test_cues_are_refused(pipeline: Pipeline, folder: Path, tmp_path: Path) -> None:
    for cues in (["dog"], "dog", "auto"):
        with pytest.raises(CueError, match=r"takes no cues|has no tagger"):
            pipeline.segment(picture(255), LOUD, cues)
    assert not pipeline.segment(picture(255), LOUD, []).is_blank
    clip = make_clip(tmp_path / "clip.mp4", seconds=1.0)
    refused("run", clip, "--bundle", folder, "--cues", "dog", "--out", tmp_path / "out.mp4", names="takes no cues")


def test_a_file_is_run(folder: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", seconds=1.0)
    out, events = tmp_path / "out.mp4", tmp_path / "events.jsonl"
    done = teso(
        "run", clip, "--bundle", folder, "--out", out, "--masks", tmp_path / "masks", "--events", events,
        "--json", "-", "--threads", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert set(report["graph_runs"]) == {"encoder", "decoder"} and report["cues"]["names"] == []
    assert out.stat().st_size and events.is_file() and len(list((tmp_path / "masks").iterdir())) == report["frames"] + 1


def test_other_forms_are_derived(folder: Path, tmp_path: Path) -> None:
    clip, out = make_clip(tmp_path / "clip.mp4", seconds=1.0), tmp_path / "int8"
    done = teso("export", folder, "--precision", "int8", "--calibrate-on", clip, "--out", out)
    assert done.code == 0, done.err
    forms = Bundle.open(out).manifest.forms
    assert set(forms["onnxruntime-int8"]) == {"encoder", "decoder"}


def test_lines_and_events(pipeline: Pipeline) -> None:
    log = EventLog(CLASSES)
    events = []
    for index, sound in enumerate((LOUD, SILENT, SILENT)):
        frame = Frame(picture(255), pts_seconds=float(index), index=index)
        delivery = Delivery(
            stream=0,
            input=InputFacts(name="a clip"),
            frame=frame,
            segmentation=pipeline.segment(frame, sound),
            cause="frame",
            shown_at_seconds=frame.pts_seconds,
            staleness_seconds=0.0,
            audio_end_seconds=None,
            stamps={},
        )
        line = make_mask_line(delivery, CLASSES)
        assert line["cues"] is None and len(line["objects"]) == (sound is LOUD)
        events += list(log.add(delivery.segmentation, delivery.at_seconds))
    assert [event.name for event in (*events, *log.finish())] == ["bright"]


def test_parity_and_audio_control(folder: Path) -> None:
    report = verify_bundle(Bundle.open(folder), lambda form: make_onnxruntime_factory(1, form))
    assert report.passed, report.failures
    assert {check.graph for check in report.checks} == {"encoder", "decoder", "frame"}
    rates = {heard.sound: heard.positive_pixel_rate for heard in report.heard}
    assert rates["own"] == 1.0 and rates["muted"] == 0.0 and rates["noise -40 dBFS"] == 0.0


def test_a_stage_that_no_graph_serves(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "bundle"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    content = json.loads((other / KIND.manifest).read_text(encoding="utf-8"))
    content["program"]["stages"][0]["name"] = "eye"
    content["program"]["stages"][1]["inputs"][0] = "eye"
    (other / KIND.manifest).write_text(json.dumps(content), encoding="utf-8")
    clip = make_clip(tmp_path / "clip.mp4", seconds=1.0)
    refused("run", clip, "--bundle", other, "--out", tmp_path / "o.mp4", names="serves the stage eye")


def test_heat_maps_have_no_variants_with_cues(folder: Path, tmp_path: Path) -> None:
    clip, heat = make_clip(tmp_path / "clip.mp4", seconds=2.0, fps=1), tmp_path / "heat"
    done = teso("run", clip, "--bundle", folder, "--heatmaps", heat, "--noise-dbfs", -10, "--threads", 1)
    assert done.code == 0, done.err
    endings = ("-muted.png", "-sound.png", ".npz")
    assert names_in(heat) == [*(f"00000{i}{ending}" for i in range(2) for ending in endings), "heatmaps.json"]
    with np.load(heat / "000001.npz") as arrays:
        assert arrays["sound"].max() > 0.5 and not arrays["muted"].any()
