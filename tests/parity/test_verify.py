"""``verify``: forms against PyTorch and each other, batches, the audio control, the first node that differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from teso_deploy.backends.onnxruntime import make_onnxruntime_factory
from teso_deploy.bundle import Bundle, write_manifest
from teso_deploy.conversion.divergence import find_first_difference
from teso_deploy.conversion.pytorch_engine import make_pytorch_engines
from teso_deploy.errors import BundleError
from teso_deploy.models.teso import build
from teso_deploy.recipe import Recipe
from teso_deploy.resources import find_shipped_path
from teso_deploy.verification import probes
from teso_deploy.verification.audio_control import SOUNDS, STORED, Heard, make_control_inputs
from teso_deploy.verification.parity import LIMITS, GraphParity, Thresholds, compare, compare_masks
from teso_deploy.verification.verify import CANONICAL, Check, VerifyReport, verify_bundle
from tests.support.commands import refused, teso


def report_of(bundle: Bundle, *forms: str, thorough: bool = True) -> VerifyReport:
    return verify_bundle(bundle, lambda form: make_onnxruntime_factory(1, form), forms=forms, is_thorough=thorough)


def changed(source: Path, out: Path, file: str, weight: str | None = None, factor: float = -1.0) -> Bundle:
    """Copy a bundle with one changed weight in one file (default: the largest). The hashes are right."""
    shutil.copytree(source, out)
    path = out / file
    model = onnx.load(path)
    named = {tensor.name: tensor for tensor in model.graph.initializer}
    tensor = named[weight] if weight else max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    path.unlink()
    onnx.save(model, path)
    manifest = json.loads((source / "bundle.json").read_text())
    for entry in (*manifest["graphs"].values(), *(e for form in manifest["forms"].values() for e in form.values())):
        if entry["file"] == file:
            entry["weights"] = None  # they are inside the file now
    write_manifest(out, Bundle.open(source).manifest.model_validate(manifest))
    return Bundle.open(out)


def test_every_form_passes_at_every_size(full_bundle: Path) -> None:
    bundle = Bundle.open(full_bundle)
    report = report_of(bundle)
    assert report.passed, report.failures
    assert report.forms == [CANONICAL, *(name for name in bundle.manifest.forms if name != "onnx-bf16")]
    assert list(report.not_run) == ["onnx-bf16"]
    for graph in ("decoder", "decoder@64x96", "frame", "frame@64x96"):
        against = report.parity(graph, "onnxruntime-fp32", "canonical")
        assert against is not None and against.max_abs_error < 1e-4
        assert against.mask_iou is not None and against.mask_iou >= 0.999
    for count in ("batch 2", "batch 3"):
        found = report.parity("frame@64x96", "onnxruntime-fp32", count)  # type: ignore[arg-type]
        assert found is not None and found.max_abs_error < 1e-3
    content = report.as_dict()
    assert json.loads(json.dumps(content)) == content
    entry = content["graphs"]["decoder"]["onnxruntime-fp32"]
    assert entry["passed"] and set(entry) == {
        "passed", "mask_iou", "pixel_agreement", "cosine", "max_abs_error", "canonical",
    }  # fmt: skip
    control = content["audio_control"]["onnxruntime-fp32"]
    assert set(control) == {"own", "other", "muted", "noise -40 dBFS", "noise -25 dBFS", "noise -10 dBFS"}
    assert not any(heard["must_be_blank"] for heard in control.values()), "an untrained model need not be blank"


def test_a_changed_weight_is_found_and_its_node_named(full_bundle: Path, tmp_path: Path) -> None:
    bundle = changed(full_bundle, tmp_path / "b", "decoder.onnxruntime-fp32.onnx")
    report = report_of(bundle, "onnxruntime-fp32", thorough=False)
    assert not report.passed and "onnxruntime-fp32" in report.failures[0]
    assert all("(canonical" not in failure for failure in report.failures)
    inputs = [tensor.name for tensor in bundle.manifest.graphs["decoder"].inputs]
    feeds = probes.take_inputs(probes.read_reference(bundle, (64, 64)), inputs)
    paths = bundle.graph_path("decoder"), bundle.graph_path("decoder", "onnxruntime-fp32")
    found = find_first_difference(*paths, feeds, tolerance=LIMITS["fp32"].node)
    assert found is not None and found.max_abs_error > 0 and found.op_type in str(found)
    honest = Bundle.open(full_bundle).graph_path("decoder", "onnxruntime-fp32")
    assert find_first_difference(paths[0], honest, feeds, tolerance=LIMITS["fp32"].node) is None


def test_the_first_of_the_differing_nodes_is_named(full_bundle: Path, tmp_path: Path) -> None:
    canonical = Bundle.open(full_bundle).graph_path("fusion")
    model = onnx.load(canonical)
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
    second = products[1]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == second.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    reference = probes.read_reference(Bundle.open(full_bundle), (64, 64))
    found = find_first_difference(canonical, tmp_path / "other.onnx", reference, tolerance=1e-4)
    assert found is not None and found.node == second.name


def test_a_form_that_ignores_the_sound_fails_the_control(tmp_path: Path) -> None:
    shipped = find_shipped_path("engines/bundles/teso-nano")
    bundle = changed(shipped, tmp_path / "deaf", "audio_encoder.onnxruntime-fp32.onnx", factor=0.0)
    report = report_of(bundle, "onnxruntime-fp32")
    reasons = [failure for failure in report.failures if failure.startswith("audio control (onnxruntime-fp32): own")]
    assert reasons and "reacts to sound in another way than the model" in reasons[0]
    assert not any("(canonical)" in failure for failure in report.failures)


def test_each_sound_of_the_control_goes_with_the_cues_of_its_own_row(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    reference = probes.read_reference(bundle, bundle.sizes[0])
    assert not np.array_equal(reference["cues"][0], reference["cues"][2]), "random weights: each row has other cues"
    given = make_control_inputs(reference)
    for sound, row in STORED.items():
        for name in ("waveform", "cues", "cue_valid"):
            np.testing.assert_array_equal(given[name][SOUNDS.index(sound)], reference[name][row])
    report = report_of(bundle, CANONICAL)
    assert report.passed, report.failures
    stored = [found for found in report.heard if found.sound in STORED]
    assert len(stored) == 3 and all(found.mask_iou == 1.0 for found in stored)


def heard(rate: float, model_rate: float | None = None, iou: float | None = None, blank: bool = False) -> Heard:
    limits = LIMITS["int8"]
    return Heard("f", (64, 64), True, "muted", rate, model_rate, iou, blank, limits.pixel_rate, limits.pytorch.mask_iou)


def test_the_audio_control_is_relative_to_the_model_and_absolute_for_a_trained_one() -> None:
    assert heard(0.5, 0.5, 1.0).failure is None
    assert "reacts to sound in another way" in str(heard(0.515, 0.5, 1.0).failure), "a point and a half"
    assert "another mask" in str(heard(0.5, 0.5, 0.5).failure)
    assert "none may be" in str(heard(0.01, 0.01, 1.0, blank=True).failure)
    assert heard(0.001, None, None, blank=True).failure is None
    assert "none may be" in str(heard(float("nan"), blank=True).failure)


def test_failures_come_in_order_of_severity() -> None:
    limits = Thresholds()
    assert GraphParity(1.0, 0.0, 1.0, 1.0).failure(limits) is None
    both = GraphParity(0.5, 9.0, 0.2, 0.3).failure(limits)
    assert both is not None and both.startswith("pixel agreement")
    broken = GraphParity(float("nan"), 0.0).failure(limits)
    assert broken is not None and broken.startswith("cosine nan")
    report = VerifyReport(
        [
            Check("a", "fusion", "pytorch", GraphParity(1.0, 9.0), limits),
            Check("a", "decoder", "pytorch", GraphParity(0.9, 0.0), limits),
            Check("a", "decoder", "canonical", GraphParity(1.0, 0.0, 0.5, 1.0), limits),
        ],
        [heard(0.5, 0.9, 1.0)],
    )
    kinds = ("mask IoU", "reacts to sound in another way", "cosine", "largest error")
    assert all(kind in failure for kind, failure in zip(kinds, report.failures, strict=True))


def test_compare() -> None:
    a = np.array([[1.0, 2.0]])
    cosine, error = compare(a, a * 2)
    assert cosine == pytest.approx(1.0) and error == 2.0
    assert compare(np.zeros(3), np.zeros(3)) == (1.0, 0.0)
    assert np.isnan(compare(np.zeros(3), np.zeros(4))[0])
    masks = np.zeros((1, 2, 4, 4), np.float32)
    masks[0, 0, :2] = 1
    iou, equal = compare_masks(masks, masks[:, ::-1], 0.5)
    assert iou == 0.0 and 0.4 < equal < 0.6, "another class is another mask"
    assert np.isnan(compare_masks(masks * np.nan, masks, 0.5)[0])


def test_pytorch_itself_can_be_asked(full_bundle: Path, tiny_recipe: Recipe) -> None:
    bundle = Bundle.open(full_bundle)
    sizes = [(64, 96)]
    model = make_pytorch_engines(build(tiny_recipe, 0))

    def asked(engines: probes.Engines) -> VerifyReport:
        return verify_bundle(
            bundle, lambda form: make_onnxruntime_factory(1, form), forms=(CANONICAL,), sizes=sizes, pytorch=engines
        )

    report = asked(model)
    assert report.passed, report.failures
    stale = report.parity("decoder@64x96", "reference.npz")
    assert stale is not None and stale.max_abs_error < 1e-5
    other = asked(make_pytorch_engines(build(tiny_recipe, 1)))
    assert not other.passed and any("reference.npz" in failure for failure in other.failures)


def test_the_command(full_bundle: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = teso(
        "verify", full_bundle, "--form", "onnxruntime-int8", "--size", "64x96", "--json", "-", "--threads", 1,
        "--contact-sheet", sheet, "--random-weights", 0,
    )  # fmt: skip
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert content["passed"] and set(content["graphs"]["decoder@64x96"]) == {
        "canonical", "onnxruntime-int8", "reference.npz",
    }  # fmt: skip
    with Image.open(sheet) as image:
        assert image.width > 4 * 200 and image.height >= 8 * 200
    refused("verify", full_bundle, "--form", "fp4", names="no form 'fp4'")
    asked = teso("verify", full_bundle, "--form", "onnx-bf16", "--size", "64", "--json", "-", "--threads", 1)
    assert asked.code == 1 and "onnx-bf16 was asked for and not run" in asked.err
    assert json.loads(asked.out)["passed"] is False and list(json.loads(asked.out)["not_run"]) == ["onnx-bf16"]
    refused("verify", full_bundle, "--size", "32", names="64x96")
    refused("verify", full_bundle, "--random-weights", 1, names="other weights")


def test_the_command_fails_with_1_and_says_where(full_bundle: Path, tmp_path: Path) -> None:
    changed(full_bundle, tmp_path / "b", "decoder.onnxruntime-fp32.onnx")
    done = teso("verify", tmp_path / "b", "--form", "onnxruntime-fp32", "--size", "64", "--threads", 1)
    assert done.code == 1 and "is the first that differs" in done.err


def test_a_reference_that_lacks_a_tensor(full_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(full_bundle, tmp_path / "b")
    arrays = dict(np.load(full_bundle / "reference.npz"))
    del arrays["masks@64x96"]
    np.savez(tmp_path / "b" / "reference.npz", allow_pickle=False, **arrays)
    write_manifest(tmp_path / "b", Bundle.open(full_bundle).manifest)
    with pytest.raises(BundleError, match="lacks masks@64x96; export the bundle again"):
        report_of(Bundle.open(tmp_path / "b"), CANONICAL)
