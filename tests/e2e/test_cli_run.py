"""``teso-deploy run`` on a generated clip: every option, and its outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import teso_deploy
from teso_deploy.bundle import Bundle, write_manifest
from teso_deploy.media.audio import read_audio
from teso_deploy.media.overlay import make_palette
from tests.support.clips import make_clip
from tests.support.commands import teso


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=2.0)


@pytest.fixture(scope="session")
def silent_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "no sound.mp4", has_audio=False)


def report_of(*arguments: object) -> dict[str, Any]:
    code, out, err = teso("run", *arguments, "--threads", 1, "--json", "-")
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


def streams(path: Path) -> dict[str, float]:
    """Return kind → seconds of each stream of a file."""
    with av.open(str(path)) as container:
        return {s.type: float(s.duration * s.time_base) for s in container.streams if s.duration and s.time_base}


def test_everything_at_once(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out, masks, events, report = (tmp_path / name for name in ("out.mp4", "masks", "events.jsonl", "report.json"))
    code, stdout, stderr = teso(
        "run", clip, "--bundle", tiny_bundle, "--cues", "dog, cows", "--out", out, "--masks", masks, "--events", events,
        "--json", report, "--threads", 1,
    )  # fmt: skip
    assert code == 0, stderr
    assert stdout == "", "results for machines only"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "masks", "out.mp4", "report.json"]
    found = json.loads(report.read_text())
    assert found["frames"] == 24 and found["mode"] == "file"
    assert found["cues"]["names"] == ["dog", "cow"] and found["cues"]["source"] == "manual"
    assert found["audio"] == {
        "source": "own", "window": "centred", "gap_seconds": 0, "silent": False,
        "note": None, "invalid_samples": 0, "clipped_samples": 0, "damaged_packets": 0,
    }  # fmt: skip
    assert found["backend"] == "cpu" and found["bundle"]["trained"] is False
    assert found["drops"] == {} and found["corrupt_frames"] == 0
    assert list(found["latency_ms"]) == [
        "decoded",
        "encoded",
        "heard",
        "fused",
        "masked",
        "labelled",
        "delivered",
        "frame",
    ]
    assert all(list(stage) == ["p50", "p90", "p95", "p99"] for stage in found["latency_ms"].values())
    assert found["fps"] > 0 and 0 <= found["positive_pixel_rate"] <= 1
    assert found["graph_runs"]["visual_encoder"] <= 24
    assert found["graph_runs"]["audio_encoder"] <= 10, "frames within a hop share their window"
    assert len(events.read_text().splitlines()) == found["events"]
    lengths = streams(out)
    assert lengths["video"] == pytest.approx(2.0, abs=0.1) and lengths["audio"] == pytest.approx(2.0, abs=0.1)
    marker = json.loads((masks / "masks.json").read_text())
    assert marker["input"] == str(clip) and marker["bundle"] == "tiny" and marker["schema_version"] == 1
    assert [(entry["id"], entry["name"]) for entry in marker["classes"]] == [(1, "dog"), (2, "cow"), (3, "car")]
    pictures = sorted(masks.glob("*.png"))
    assert [path.name for path in pictures] == [f"{i:06d}.png" for i in range(24)]
    with Image.open(pictures[5]) as mask:
        assert mask.mode == "P" and mask.size == (96, 72)
        assert np.asarray(mask).max() <= 3
        colours = mask.getpalette()
        assert colours is not None and colours[:30] == make_palette().ravel()[:30].tolist()


def test_masks_are_those_of_the_library(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    report = report_of(clip, "--bundle", tiny_bundle, "--masks", tmp_path / "masks")
    found = list(teso_deploy.load(str(tiny_bundle), threads=1).stream(clip))
    assert len(found) == report["frames"]
    for segmentation in found:
        with Image.open(tmp_path / "masks" / f"{segmentation.index:06d}.png") as mask:
            np.testing.assert_array_equal(np.asarray(mask), segmentation.labels)
    assert report["masks_nonblank"] == sum(not s.is_blank for s in found)
    assert report["cues"] == {"names": [], "source": "fallback", "offered_rate": {}, "accepted_rate": {}}


def test_masks_of_files_as_lines(clip: Path, silent_clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder, lines = tmp_path / "masks", tmp_path / "masks.jsonl"
    for masks in (folder, lines):
        code, _, err = teso("run", clip, "--bundle", tiny_bundle, "--threads", 1, "--masks", masks)
        assert code == 0, err
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["index"] for line in found] == list(range(24)) and {line["cause"] for line in found} == {"frame"}
    names = [entry["name"] for entry in json.loads((folder / "masks.json").read_text())["classes"]]
    for line in found:
        labels = np.zeros((48, 64), np.uint8)
        for thing in line["objects"]:
            height, width = thing["segmentation"]["size"]
            counts = thing["segmentation"]["counts"]
            mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T
            labels = np.zeros((height, width), np.uint8) if labels.shape != mask.shape else labels
            labels[mask > 0] = names.index(thing["name"]) + 1
        expected = np.asarray(Image.open(folder / f"{line['index']:06d}.png"))
        np.testing.assert_array_equal(labels if line["objects"] else np.zeros_like(expected), expected)
    code, _, err = teso("run", clip, silent_clip, "--bundle", tiny_bundle, "--threads", 1, "--masks", lines)
    assert code == 0, err
    assert [json.loads(line)["stream"] for line in lines.read_text().splitlines()][:25] == [0] * 24 + [1]
    assert json.loads(lines.read_text().splitlines()[-1])["audio_end_seconds"] is None, "it has no sound"
    assert teso("run", lines, "--masks", lines).code == 2, "an input is not written"


def test_masks_of_an_earlier_run_are_replaced(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    report_of(clip, "--bundle", tiny_bundle, "--masks", masks)
    report_of(clip, "--bundle", tiny_bundle, "--masks", masks, "--fps", 2)
    assert len(list(masks.iterdir())) < 11


def test_paper_mode_takes_one_frame_a_second(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out, masks = tmp_path / "out.mp4", tmp_path / "masks"
    report = report_of(clip, "--bundle", tiny_bundle, "--mode", "paper", "--out", out, "--masks", masks)
    assert report["frames"] == 2 and report["audio"]["window"] == "second"
    assert sorted(path.name for path in masks.iterdir()) == ["000011.png", "000023.png", "masks.json"]
    assert streams(out)["video"] == pytest.approx(2.0, abs=0.1)


def test_contiguous_windows_begin_at_multiples_of_096(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    lines = tmp_path / "masks.jsonl"
    paper = ("--bundle", tiny_bundle, "--mode", "paper", "--masks", lines)
    ends = []
    for framing, window in (((), "second"), (("--framing", "contiguous"), "contiguous")):
        assert report_of(clip, *paper, *framing)["audio"]["window"] == window
        ends.append([json.loads(line)["audio_end_seconds"] for line in lines.read_text().splitlines()])
    assert ends == [pytest.approx([0.975, 1.975]), pytest.approx([0.975, 1.935])]
    refused = teso("run", clip, "--bundle", tiny_bundle, "--framing", "contiguous", "--masks", lines)
    assert refused.code == 2 and "--framing is for --mode paper" in refused.err
    assert teso("run", clip, "--mode", "live", "--framing", "contiguous", "--masks", lines).code == 2


def test_fps_looks_at_fewer_frames(clip: Path, tiny_bundle: Path) -> None:
    assert report_of(clip, "--bundle", tiny_bundle, "--fps", 4)["frames"] == 8


def test_size_form_and_still_pictures_are_in_the_report(clip: Path, tiny_bundle: Path) -> None:
    report = report_of(clip, "--bundle", tiny_bundle, "--size", "64", "--still-threshold", 255)
    assert report["bundle"]["size"] == [64, 64] and report["bundle"]["precision"] == "fp32"
    assert report["bundle"]["form"] == "onnxruntime-fp32"
    skips = report["encoder_skips"]
    assert report["graph_runs"]["visual_encoder"] == 1 and skips["same"] + skips["still"] == 23
    for words, sentence in (
        (("--size", "32x64"), "64x64"),
        (("--size", "big"), "288x512"),
        (("--precision", "int8"), "no int8 form"),
    ):
        code, _, stderr = teso("run", clip, "--bundle", tiny_bundle, "--json", "-", *words)
        assert code == 2 and sentence in stderr


def test_mute_replaces_the_sound(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    report = report_of(clip, "--bundle", tiny_bundle, "--mute", "--out", out)
    assert report["audio"]["source"] == "mute" and report["audio"]["silent"] is True
    assert report["graph_runs"]["audio_encoder"] == 1, "all windows are equal"
    assert np.abs(read_audio(out).samples).max() < 1e-3


def test_noise_replaces_the_sound(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    report = report_of(clip, "--bundle", tiny_bundle, "--noise-dbfs", -20, "--out", out)
    assert report["audio"]["source"] == "noise" and report["audio"]["silent"] is False
    level = 20 * np.log10(read_audio(out).samples[4000:28_000].std())
    assert level == pytest.approx(-20, abs=2)


def test_another_file_s_sound(clip: Path, silent_clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    report = report_of(silent_clip, "--bundle", tiny_bundle, "--sound-from", clip, "--out", out)
    assert report["audio"]["source"] == "other file" and report["audio"]["silent"] is False
    assert streams(out)["audio"] == pytest.approx(1.0, abs=0.15), "no longer than the video"


def test_a_clip_without_sound_is_run_as_silence(silent_clip: Path, tiny_bundle: Path) -> None:
    code, out, err = teso("run", silent_clip, "--bundle", tiny_bundle, "--json", "-")
    assert code == 0
    assert "no sound.mp4 has no sound: it is run as silence" in " ".join(err.split())
    assert json.loads(out)["audio"]["source"] == "none" and json.loads(out)["audio"]["silent"] is True


def test_cues_of_the_bundle_s_own_tagger(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """An untrained tagger names nothing. With a low threshold, it names words."""
    assert report_of(clip, "--bundle", tiny_bundle, "--cues", "auto", "--events", tmp_path / "e")["cues"] == {
        "names": [], "source": "fallback", "offered_rate": {}, "accepted_rate": {},
    }  # fmt: skip
    bold = tmp_path / "bold"
    shutil.copytree(tiny_bundle, bold)
    manifest = Bundle.open(bold).manifest
    assert manifest.tagger is not None
    tagger = manifest.tagger.model_copy(update={"threshold": 0.01})
    write_manifest(bold, manifest.model_copy(update={"tagger": tagger}))
    found = report_of(clip, "--bundle", bold, "--cues", "auto", "--events", tmp_path / "e")["cues"]
    assert found["source"] == "tagger" and set(found["names"]) == {"car", "cow", "dog"}
    assert found["offered_rate"] == dict.fromkeys(found["names"], 1.0)


def test_cues_from_a_file(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    words = tmp_path / "cues.txt"
    words.write_text("# what is to be seen\ndog, cow\n\ncar\n")
    report = report_of(clip, "--bundle", tiny_bundle, "--cues-file", words, "--fps", 2)
    assert report["cues"]["names"] == ["dog", "cow", "car"]
    assert set(report["cues"]["accepted_rate"]) == {"dog", "cow", "car"}


def test_several_inputs_go_to_a_folder(clip: Path, silent_clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out, masks, events = tmp_path / "videos", tmp_path / "masks", tmp_path / "events.jsonl"
    report = report_of(
        clip, silent_clip, "--bundle", tiny_bundle, "--out", out, "--masks", masks, "--events", events, "--fps", 4
    )
    assert [Path(run["input"]).name for run in report["runs"]] == ["clip.mp4", "no sound.mp4"]
    assert sorted(path.name for path in out.iterdir()) == ["clip.mp4", "no sound.mp4"]
    assert len(list((masks / "clip").glob("*.png"))) == 8 and len(list((masks / "no sound").glob("*.png"))) == 4


def test_the_installed_command_says_its_version_and_its_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "teso_deploy", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"teso-deploy {teso_deploy.__version__}"
    done = subprocess.run([sys.executable, "-m", "teso_deploy", "--help"], capture_output=True, text=True, check=True)
    for command in ("doctor", "demo", "export", "verify", "run", "eval", "train"):
        assert command in done.stdout


def test_doctor_reports() -> None:
    code, out, _ = teso("doctor", "--json", "-")
    report = json.loads(out)
    assert code == (0 if report["can_run"] else 1)
    assert "CPUExecutionProvider" in report["providers"]
