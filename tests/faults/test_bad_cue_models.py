"""Models that can't be exported as captioner or reasoner: one sentence, and an existing export stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teso_deploy.cues.model_bundle import CueModels
from tests.support.commands import names_in, refused, teso
from tests.support.language_models import save_llava, save_reasoner, save_vision_encoder_decoder


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reasoner"
    save_reasoner(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "captioner"
    save_vision_encoder_decoder(folder)
    return folder


def changed(folder: Path, source: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a model with a changed config."""
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_without_a_config(tmp_path: Path, reasoner: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for option in ("--reasoner", "--captioner"):
        refused("export-cues", option, empty, "--out", tmp_path / "out", names="no config.json")
        refused("export-cues", option, tmp_path / "none", "--out", tmp_path / "out", names="none")
    (empty / "config.json").write_text("{")
    refused("export-cues", "--reasoner", empty, "--out", tmp_path / "out", names="config.json is not JSON")
    (empty / "config.json").write_text("[" * 100_000)
    refused("export-cues", "--reasoner", empty, "--out", tmp_path / "out", names="config.json is not JSON")
    (empty / "config.json").write_text("[]")
    refused("export-cues", "--reasoner", empty, "--out", tmp_path / "out", names="model_type")
    assert names_in(tmp_path) == ["empty", "empty/config.json"]


def test_an_architecture_that_is_not_supported(tmp_path: Path, reasoner: Path, captioner: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    changed(strange, reasoner, lambda config: config.update(model_type="mamba"))
    sentence = refused("export-cues", "--reasoner", strange, "--out", tmp_path / "out", names="'mamba'")
    assert all(name in sentence for name in ("llama", "qwen2", "qwen3", "phi"))
    sentence = refused("export-cues", "--captioner", reasoner, "--out", tmp_path / "out", names="'llama'")
    assert all(name in sentence for name in ("vision-encoder-decoder", "pix2struct", "llava"))
    refused("export-cues", "--reasoner", captioner, "--out", tmp_path / "out", names="'vision-encoder-decoder'")


def test_files_that_are_missing_or_damaged(tmp_path: Path, reasoner: Path, captioner: Path) -> None:
    for number, (option, source, file) in enumerate(
        [
            ("--reasoner", reasoner, "model.safetensors"),
            ("--reasoner", reasoner, "tokenizer.json"),
            ("--captioner", captioner, "model.safetensors"),
            ("--captioner", captioner, "preprocessor_config.json"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        changed(folder, source, lambda config: None)
        (folder / file).write_bytes((folder / file).read_bytes()[:100])
        damaged = "is truncated" if file.endswith("safetensors") else "can't be read"
        refused("export-cues", option, folder, "--out", tmp_path / "out", names=damaged)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
def test_a_file_that_is_no_gguf(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"GGUF and then nothing that makes sense" * 10)
    refused("export-cues", "--reasoner", path, "--out", tmp_path / "out", names=name)
    assert names_in(tmp_path) == [name]


def test_nothing_to_export(tmp_path: Path) -> None:
    refused("export-cues", "--out", tmp_path / "out", names="--captioner")


def test_without_the_extra(tmp_path: Path, reasoner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    refused("export-cues", "--reasoner", reasoner, "--out", tmp_path / "out", names="teso-deploy[cues]")


def test_what_was_there_before_stays(tmp_path: Path, reasoner: Path) -> None:
    out = tmp_path / "out"
    code, _, err = teso("export-cues", "--reasoner", reasoner, "--out", out, "--precision", "int4")
    assert code == 0, err
    before = CueModels.open(out).manifest
    broken = tmp_path / "broken"
    broken.mkdir()
    changed(broken, reasoner, lambda config: None)
    (broken / "model.safetensors").write_bytes(b"x")
    refused("export-cues", "--reasoner", broken, "--out", out, names="model.safetensors is text, not weights")
    assert CueModels.open(out).manifest == before
    assert {name.split("/")[0] for name in names_in(tmp_path)} == {"out", "broken"}
    other = tmp_path / "broken"
    refused("export-cues", "--reasoner", reasoner, "--out", other, names="is not a bundle")
    code, _, err = teso("export-cues", "--reasoner", reasoner, "--out", out)
    assert code == 0 and CueModels.open(out).manifest.reasoner.precision == "fp32", err  # type: ignore[union-attr]


def test_a_llava_for_both_is_written_once(tmp_path: Path) -> None:
    save_llava(tmp_path / "llava")
    out = tmp_path / "out"
    code, said, err = teso(
        "export-cues", "--captioner", tmp_path / "llava", "--reasoner", tmp_path / "llava", "--out", out, "--json", "-"
    )
    assert code == 0, err
    manifest = CueModels.open(out).manifest
    assert manifest.captioner == manifest.reasoner and manifest.reasoner is not None
    assert {name.split("/")[0] for name in manifest.files} == {manifest.reasoner.folder}
    assert json.loads(said)["models"]["captioner"]["architecture"] == "llava-llama"


def test_what_an_exporter_says_of_a_model_it_can_not_take(tmp_path: Path) -> None:
    save_vision_encoder_decoder(tmp_path / "bert", "bert")
    sentence = refused("export-cues", "--captioner", tmp_path / "bert", "--out", tmp_path / "out", names="bert")
    assert "can't be exported" in sentence and not (tmp_path / "out").exists()


def test_what_was_exported_is_tried_out(tmp_path: Path, reasoner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that can't be run is reported at the export, not at the first request."""

    def broken(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("Got invalid dimensions for past_key_values.0.value")

    monkeypatch.setattr("teso_deploy.cues.language.decoder.Decoder.step", broken)
    sentence = refused("export-cues", "--reasoner", reasoner, "--out", tmp_path / "out", names="does not run")
    assert "invalid dimensions" in sentence and not (tmp_path / "out").exists()
