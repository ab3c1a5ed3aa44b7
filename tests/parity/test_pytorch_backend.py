"""The backend `pytorch`: a bundle's modules with weights that are read back from its graphs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from teso_deploy.bundle import Bundle, write_manifest
from teso_deploy.conversion.bundle_export import export_bundle
from teso_deploy.conversion.pytorch_backend import PyTorchStage, wrap_model
from teso_deploy.conversion.restoring import restore_model
from teso_deploy.errors import BundleError
from teso_deploy.models.methods import build_model
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.recipe import Recipe
from teso_deploy.resources import find_shipped_path
from teso_deploy.types import Segmentation
from teso_deploy.verification.parity import LIMITS, compare_masks
from tests.parity.test_segpref import segpref_recipe
from tests.support.commands import refused, teso
from tests.support.foundations import SHALLOW, randomise
from tests.support.sharing import exported_once

CLIP = find_shipped_path("export/demo/clip.mp4")
FP32 = LIMITS["fp32"].pytorch


def segment_clip(pipeline: Pipeline, cues: str | None = None) -> list[Segmentation]:
    return list(pipeline.stream(CLIP, cues, fps=0.5))


def stack_scores(segmentations: list[Segmentation]) -> NDArray[np.float32]:
    scores = [one.scores for one in segmentations]
    return np.stack([one for one in scores if one is not None])


def test_the_shipped_bundle_gives_the_masks_of_onnx_runtime() -> None:
    bundle = Bundle.open()
    plain, loaded = (Pipeline.load(bundle, backend=name, threads=1) for name in ("cpu", "pytorch"))
    assert loaded.backend == "pytorch" and loaded.precision == "fp32" and loaded.form is None
    expected, found = segment_clip(plain, "dog,cow"), segment_clip(loaded, "dog,cow")
    ours, others = stack_scores(found), stack_scores(expected)
    iou, equal = compare_masks(ours, others, bundle.manifest.postprocessing.threshold)
    assert iou >= FP32.mask_iou and equal >= FP32.pixel_agreement
    assert np.abs(ours - others).max() < 1e-3
    assert any(one.labels.any() for one in found)


def test_weights_of_a_small_model_are_those_that_were_exported(tiny_bundle: Path, tiny_recipe: Recipe) -> None:
    restored = restore_model(Bundle.open(tiny_bundle)).state_dict()
    exported = build_model(tiny_recipe, 0).state_dict()
    # The tiny decoder has two layers, so its graph does not have the embedding of the third level.
    unused = "visual_encoder.memory.level_embedding"
    differing = {name for name, value in exported.items() if not torch.allclose(restored[name], value, atol=1e-5)}
    assert differing <= {unused}
    torch.testing.assert_close(restored[unused][:2], exported[unused][:2])


def test_weights_of_every_size_are_read_back(full_bundle: Path) -> None:
    done = teso("verify", full_bundle, "--backend", "pytorch", "--threads", 1, "--json", "-")
    assert done.code == 0, done.err
    assert {"decoder", "decoder@64x96"} <= json.loads(done.out)["graphs"].keys()


def test_weights_of_segpref_are_read_back(shared: Path) -> None:
    recipe = segpref_recipe(**SHALLOW)

    def export(out: Path) -> None:
        export_bundle(recipe, out, random_weights_seed=3)

    bundle = Bundle.open(exported_once(shared / "segpref-random", (recipe.model_dump(mode="json"), 3), export))
    restored = restore_model(bundle)
    fusion = build_model(recipe, 3).get_submodule("fusion").state_dict()
    for name, value in restored.get_submodule("fusion").state_dict().items():
        torch.testing.assert_close(value, fusion[name])


def test_modules_run_with_cudnn() -> None:
    class Recorder:
        inputs, outputs = ("image",), ("mask",)

        def run(self, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"mask": torch.tensor(float(torch.backends.cudnn.enabled))}

    stage = PyTorchStage("encoder", Recorder(), torch.device("cpu"))  # type: ignore[arg-type]
    assert stage.run({"image": np.zeros(1, np.float32)})["mask"] == 1


def test_another_model_s_modules_are_not_the_bundle_s(tiny_bundle: Path, tiny_recipe: Recipe) -> None:
    """The masks come from the modules, so other weights give other scores."""
    bundle = Bundle.open(tiny_bundle)
    other = build_model(tiny_recipe, 1)
    randomise(other)
    ours = segment_clip(Pipeline(bundle, wrap_model(other, device=torch.device("cpu"))))
    theirs = segment_clip(Pipeline.load(bundle, backend="pytorch", threads=1))
    assert np.abs(stack_scores(ours) - stack_scores(theirs)).max() > 0.01


def test_weights_that_do_not_give_the_reference_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    model = onnx.load(folder / "fusion.onnx")
    tensor = next(one for one in model.graph.initializer if one.name == "fusion.fallback_cue")
    tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, folder / "fusion.onnx")
    manifest = Bundle.open(tiny_bundle).manifest
    entry = manifest.graphs["fusion"].model_copy(update={"weights": None})
    write_manifest(folder, manifest.model_copy(update={"graphs": {**manifest.graphs, "fusion": entry}}))
    with pytest.raises(BundleError, match="fusion with the weights of its graph differs from the reference"):
        restore_model(Bundle.open(folder))
    options = ("--bundle", folder, "--backend", "pytorch", "--json", tmp_path / "run.json")
    refused("run", CLIP, *options, names="fusion with the weights of its graph differs from the reference")


def test_a_weight_that_is_missing_is_named(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    deeper = {**bundle.manifest.recipe, "fusion": {**bundle.manifest.recipe["fusion"], "sedam_layers": 3}}
    manifest = bundle.manifest.model_copy(update={"recipe": deeper})
    with pytest.raises(BundleError, match=r"can't be read back from fusion \(fusion\.sedam.* is missing\)"):
        restore_model(Bundle(bundle.folder, manifest))


def test_precisions_other_than_fp32_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="backend pytorch runs fp32, not int8"):
        Pipeline.load(tiny_bundle, backend="pytorch", precision="int8")
