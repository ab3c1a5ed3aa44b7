"""``teso-deploy bench``, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from teso_deploy.comparison import harness
from teso_deploy.comparison.turns import take_turns
from teso_deploy.conversion.bundle_export import export_bundle
from tests.support.commands import names_in, refused, teso
from tests.support.foundations import SHALLOW, small_recipe


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that Hugging Face's library can build."""
    out = tmp_path_factory.mktemp("bench") / "small"
    export_bundle(small_recipe(**SHALLOW), out, random_weights_seed=0)
    return out


def test_a_bundle_against_hugging_face(small_bundle: Path, tmp_path: Path) -> None:
    done = teso(
        "bench", small_bundle, "--against", "hf-eager", "--seconds", 0, "--threads", 1, "--json", "-",
        "--report", tmp_path / "report",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert names_in(tmp_path / "report") == ["bench.json", "bench.md", "bench.png"]
    assert json.loads((tmp_path / "report/bench.json").read_text()) == report
    rows = {(row["name"], row["stage"]): row for row in report["rows"]}
    for stage in ("frame", "new-sound", "new-cues", "visual_encoder", "audio_encoder", "fusion", "decoder"):
        row = rows["ours-fp32", stage]
        assert row["precision"] == "fp32" and row["batch"] == 1
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
    frame, theirs = rows["ours-fp32", "frame"], rows["hf-eager", "frame"]
    assert frame["mask_iou"] > 0.99 and theirs["mask_iou"] == 1.0
    assert frame["peak_rss_mb"] < theirs["peak_rss_mb"], "no torch in ours"
    assert report["ratios"]["hf-eager/ours-fp32"] == pytest.approx(theirs["p50_ms"] / frame["p50_ms"], rel=1e-2)
    assert 0 < report["shares"]["new-sound/frame, ours-fp32"] < 2
    assert report["failures"] == {} and report["rounds"] >= 10
    assert report["environment"]["threads"] == 1 and report["environment"]["bundle"] == "small"
    assert report["environment"]["transformers"]


def test_what_cannot_be_measured_is_refused_early(small_bundle: Path, tmp_path: Path) -> None:
    refused("bench", small_bundle, "--against", "nobody", names="hf-eager")
    refused("bench", small_bundle, "--precision", "int8", names="no int8 form")
    refused("bench", small_bundle, "--size", "32", names="64x64")
    refused("bench", small_bundle, "--clip", tmp_path / "none.mp4", names="none.mp4")
    refused("bench", small_bundle, "--report", tmp_path / "a" / "b", names="no folder")


def test_a_bundle_is_given_another_precision_and_timed_in_it(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused("export", small_bundle, "--size", "32", "--out", tmp_path / "no", names="has its weights and sizes")
    done = teso("export", small_bundle, "--precision", "int8", "--out", tmp_path / "int8", "--json", "-")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert {"onnxruntime-fp32", "onnx-int8", "onnxruntime-int8"} == {engine["form"] for engine in report["engines"]}
    assert report["trained"] is False and report["graphs"]["decoder"]["weights_bytes"] > 0
    # The test above runs ten rounds. One round is enough to show who takes part.
    monkeypatch.setattr(harness, "take_turns", lambda *who, **how: take_turns(*who, **{**how, "least_rounds": 1}))
    done = teso("bench", tmp_path / "int8", "--seconds", 0, "--threads", 1, "--json", "-")
    assert done.code == 0, done.err
    assert set(json.loads(done.out)["ratios"]) == {"ours-fp32/ours-int8"}
