"""The exported graphs equal the model in ONNX Runtime, at every batch size and with every guard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.bundle import Bundle
from teso_deploy.conversion import bundle_export as exporting
from teso_deploy.conversion.bundle_export import export_bundle
from teso_deploy.conversion.reference import make_example_arguments
from teso_deploy.errors import CheckFailedError, CheckpointError, OutputError
from teso_deploy.models import build, checkpoints
from teso_deploy.models.graphs import list_graph_specs, make_graph_modules
from teso_deploy.recipe import Recipe


@pytest.fixture(scope="module")
def engines(tiny_bundle: Path) -> dict[str, OnnxRuntimeEngine]:
    bundle = Bundle.open(tiny_bundle)
    return {name: OnnxRuntimeEngine(bundle.graph_path(name), threads=1) for name in bundle.manifest.graphs}


def test_tensor_names_and_shapes_are_those_of_the_contract(tiny_bundle: Path, tiny_recipe: Recipe) -> None:
    graphs = Bundle.open(tiny_bundle).manifest.graphs
    for name, spec in list_graph_specs(tiny_recipe).items():
        assert tuple(t.name for t in graphs[name].inputs) == spec.inputs
        assert tuple(t.name for t in graphs[name].outputs) == spec.outputs
        assert all(t.shape[0] == "B" for t in (*graphs[name].inputs, *graphs[name].outputs))
        assert all(isinstance(d, int) for t in (*graphs[name].inputs, *graphs[name].outputs) for d in t.shape[1:])
    assert graphs["decoder"].outputs[0].shape == ("B", 3, 16, 16)
    assert graphs["audio_encoder"].inputs[0].shape == ("B", 15_600)


def test_graphs_are_canonical(tiny_bundle: Path, tiny_recipe: Recipe) -> None:
    for name in list_graph_specs(tiny_recipe):
        model = onnx.load(tiny_bundle / f"{name}.onnx")
        assert {node.domain for node in model.graph.node} <= {"", "teso_deploy"}, "standard operators only"
        assert {function.name for function in model.functions} <= {"MSDA"}
        assert all(node.domain == "" for function in model.functions for node in function.node)
        assert {opset.domain: opset.version for opset in model.opset_import}[""] == 20
        said = {entry.key: entry.value for entry in model.metadata_props}
        assert said["recipe"] == "tiny" and len(said["weights_sha256"]) == 64
        assert b"site-packages" not in model.SerializeToString(), "no path of the exporting machine"


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_every_graph_at_every_batch(engines: dict[str, OnnxRuntimeEngine], tiny_recipe: Recipe, batch: int) -> None:
    modules, specs = make_graph_modules(build(tiny_recipe, 0)), list_graph_specs(tiny_recipe)
    generator = torch.Generator().manual_seed(batch)
    given = {
        "image": torch.randn(batch, 3, 64, 64, generator=generator),
        "waveform": torch.randn(batch, 15_600, generator=generator) * 0.1,
        "cues": torch.randn(batch, 4, 384, generator=generator),
        "cue_valid": torch.rand(batch, 4, generator=generator) > 0.3,
    }
    for name, spec in specs.items():
        with torch.no_grad():
            outputs = modules[name](*(given[tensor] for tensor in spec.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        expected = dict(zip(spec.outputs, outputs, strict=True))
        ours = engines[name].run({tensor: given[tensor].numpy() for tensor in spec.inputs})
        for tensor, value in expected.items():
            np.testing.assert_allclose(ours[tensor], value.numpy(), atol=2e-4, err_msg=f"{name}/{tensor}")
        given |= expected


@pytest.mark.parametrize(
    "valid", [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]], ids=["none", "first", "third", "four"]
)
@pytest.mark.parametrize("sound", ["silence", "noise"])
def test_guards_hold_in_the_engine(
    engines: dict[str, OnnxRuntimeEngine], tiny_recipe: Recipe, valid: list[int], sound: str
) -> None:
    rng = np.random.default_rng(0)
    waveform = np.zeros((1, 15_600), np.float32)
    if sound == "noise":
        waveform += rng.standard_normal((1, 15_600)).astype(np.float32)
    cues = rng.standard_normal((1, 4, 384)).astype(np.float32)
    cue_valid = np.array([valid], np.bool_)
    model = build(tiny_recipe, 0)
    with torch.no_grad():
        audio = model.audio_encoder(torch.from_numpy(waveform))
        expected, gate = model.fusion(audio, torch.from_numpy(cues), torch.from_numpy(cue_valid))
    ours = engines["fusion"].run({"audio": audio.numpy(), "cues": cues, "cue_valid": cue_valid})
    assert np.isfinite(ours["queries"]).all()
    np.testing.assert_allclose(ours["queries"], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours["cue_gate"], gate.numpy(), atol=1e-5)


@pytest.mark.parametrize(("sign", "alive"), [(-1.0, 0), (1.0, 4)])
def test_all_cues_rejected_and_four_alive_in_the_engine(
    tiny_recipe: Recipe, tmp_path: Path, sign: float, alive: int
) -> None:
    from teso_deploy.conversion.graphs import export_graph

    model = build(tiny_recipe, 0)
    last = model.fusion.sedam.attentions[-1]
    with torch.no_grad():
        last.query.weight.zero_()
        last.key.weight.zero_()
        last.query.bias.fill_(1.0)
        last.key.bias.fill_(sign)
    arguments = make_example_arguments(model, (64, 64))["fusion"]
    module, spec = make_graph_modules(model)["fusion"], list_graph_specs(tiny_recipe)["fusion"]
    export_graph(module, spec, arguments, path=tmp_path / "fusion.onnx", metadata={})
    feeds = {name: value.numpy() for name, value in zip(spec.inputs, arguments, strict=True)}
    ours = OnnxRuntimeEngine(tmp_path / "fusion.onnx").run(feeds)
    with torch.no_grad():
        expected, _ = module(*arguments)
    assert (ours["cue_gate"] > 0).sum(axis=1).tolist() == [alive, alive]
    np.testing.assert_allclose(ours["queries"], expected.numpy(), atol=1e-5)
    untouched = np.array_equal(ours["queries"][0], model.fusion.queries.detach().numpy())
    assert untouched == (alive == 0)


def test_the_bundle_says_what_it_is_of(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert not bundle.manifest.trained and bundle.manifest.provenance["reference"] == "seeded noise"
    assert set(bundle.manifest.measured["parity"]) == {*bundle.manifest.graphs, "frame"}
    assert bundle.manifest.measured["parity"]["decoder"]["canonical"]["pixel_agreement"] == 1.0
    assert len(bundle.arrays("cues.npz")["names"]) >= 500


def test_weights_are_needed(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--random-weights"):
        export_bundle(tiny_recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_not_replaced(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(OutputError):
        export_bundle(tiny_recipe, tmp_path, random_weights_seed=0)
    assert (tmp_path / "thesis.txt").read_text() == "important"


def test_a_failed_export_leaves_what_was_there(
    tiny_recipe: Recipe, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    out = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, out)
    before = (out / "bundle.json").read_bytes()

    def broken(*args: object, **kwargs: object) -> object:
        raise CheckFailedError("parity")

    monkeypatch.setattr(exporting, "export_graph", broken)
    with pytest.raises(CheckFailedError):
        export_bundle(tiny_recipe, out, random_weights_seed=1)
    assert (out / "bundle.json").read_bytes() == before and Bundle.open(out)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_checkpoint_of_a_part_is_not_enough(tiny_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoints.save(build(tiny_recipe).audio_encoder, path)
    with pytest.raises(CheckpointError, match="no checkpoint gives recipe tiny"):
        export_bundle(tiny_recipe, tmp_path / "out", checkpoints=path)
