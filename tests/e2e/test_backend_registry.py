"""A new backend is one module and one entry of the registry: Python, the command line and ``doctor`` know it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from teso_deploy.backends.registry import (
    AUTO,
    BACKENDS,
    BackendEntry,
    list_automatic,
    list_backends,
    list_gpu_backends,
    list_targets,
)
from teso_deploy.backends.tensorrt.targets import TARGETS
from teso_deploy.bundle import Bundle
from teso_deploy.errors import BundleError, MissingExtraError
from teso_deploy.named_objects import load_object
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.pipeline.pipeline import Pipeline
from tests.support.commands import refused, teso
from tests.support.imports import ROOT, find_file

ENTRY = BackendEntry(
    name="made-up",
    summary="made up by a test",
    factory="tests.support.made_up_backend:load_made_up",
    precisions=("fp32",),
)
RUN = ("run", ROOT / "export/demo/clip.mp4", "--fps", 1, "--backend", "made-up", "--bundle")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> BackendEntry:
    monkeypatch.setitem(BACKENDS, ENTRY.name, ENTRY)
    return ENTRY


@pytest.mark.usefixtures("made_up")
def test_python_runs_it(tiny_bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    sound = np.random.default_rng(1).standard_normal(15_600).astype(np.float32) * 0.1
    loaded = Pipeline.load(tiny_bundle, backend="made-up", threads=1)
    plain = Pipeline.load(tiny_bundle, threads=1)
    assert loaded.backend == "made-up"
    np.testing.assert_array_equal(loaded.segment(image, sound).labels, plain.segment(image, sound).labels)
    with pytest.raises(BundleError, match="backend made-up runs fp32, not int8"):
        Pipeline.load(tiny_bundle, backend="made-up", precision="int8")
    with pytest.raises(ValueError, match="only backend tensorrt and tensorrt-rtx build engines"):
        Pipeline.load(tiny_bundle, backend="made-up", profile="live")


@pytest.mark.usefixtures("made_up")
def test_run_takes_it(tiny_bundle: Path, tmp_path: Path) -> None:
    done = teso(*RUN, tiny_bundle, "--json", tmp_path / "run.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["backend"] == "made-up"


@pytest.mark.usefixtures("made_up")
def test_verify_checks_it(tiny_bundle: Path, tmp_path: Path) -> None:
    done = teso("verify", tiny_bundle, "--backend", "made-up", "--threads", 1, "--json", tmp_path / "verify.json")
    assert done.code == 0, done.err
    assert "made-up-fp32" in done.err


@pytest.mark.usefixtures("made_up")
def test_doctor_lists_it() -> None:
    done = teso("doctor", "--json", "-")
    assert json.loads(done.out)["backends"]["made-up"] == {"ok": True, "detail": "made up by a test"}
    assert "made-up" in done.err


def test_an_entry_whose_extra_is_missing_is_refused_in_one_sentence(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = BackendEntry(
        name="made-up", summary="x", factory="no_such_module:load", extra="bench", modules=("no_such_module",)
    )
    monkeypatch.setitem(BACKENDS, "made-up", absent)
    refused(*RUN, tiny_bundle, "--json", "-", names="made-up is not installed: ")
    with pytest.raises(MissingExtraError, match=r"teso-deploy\[bench\]"):
        load_backend("made-up", Bundle.open(tiny_bundle))
    done = teso("doctor", "--json", "-")
    report = json.loads(done.out)
    assert report["backends"]["made-up"] == {"ok": False, "detail": "no_such_module is not installed"}
    monkeypatch.setitem(BACKENDS, "made-up", BackendEntry(name="made-up", summary="x", factory="", modules=("none_x",)))
    with pytest.raises(MissingExtraError, match="made-up is not installed: pip install none_x"):
        load_backend("made-up", Bundle.open(tiny_bundle))


@pytest.mark.parametrize("command", ["run", "eval"])
def test_a_backend_that_does_not_exist(command: str, tmp_path: Path) -> None:
    done = teso(command, tmp_path, "--backend", "tpu")
    output = " ".join(done.err.replace("│", " ").split())
    assert done.code == 2 and f"'tpu' is not one of {', '.join(map(repr, list_backends()))}" in output


def test_the_entries() -> None:
    assert list_backends() == [AUTO, *BACKENDS] and {"cpu", "cuda", "tensorrt", "tensorrt-rtx"} <= BACKENDS.keys()
    assert [entry.name for entry in list_automatic()] == ["tensorrt", "tensorrt-rtx", "cuda", "cpu"]
    assert {"cuda", "tensorrt", "tensorrt-rtx"} <= {*list_gpu_backends()} and list_targets() == list(TARGETS)
    for name, entry in BACKENDS.items():
        assert entry.name == name and callable(load_object(entry.probe))
        if "torch" in entry.modules and find_spec("torch") is None:  # the base install: only look the function up
            module, _, function = entry.factory.partition(":")
            source = find_file(module)
            assert source is not None and f"\ndef {function}(" in source.read_text(encoding="utf-8")
        else:
            assert callable(load_object(entry.factory))


def test_documents_name_every_backend() -> None:
    names = ("docs/design.md", "docs/explanation/gpu.md")
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in names)
    assert all(name in text for name in list_backends())
