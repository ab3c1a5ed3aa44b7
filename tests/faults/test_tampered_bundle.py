"""A bundle that was changed after its export is refused when it is opened, with the reason."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teso_deploy import staging
from teso_deploy.bundle import KIND, MANIFEST, SCHEMA_VERSION, Bundle, BundleManifest, write_manifest
from teso_deploy.cues.table import CueTable
from teso_deploy.errors import BundleError
from teso_deploy.recipe import Recipe
from tests.support.graph_files import empty_graph


@pytest.fixture
def folder(tmp_path: Path, tiny_recipe: Recipe) -> Path:
    out = tmp_path / "bundle"
    image = {"name": "image", "dtype": "float", "shape": ["B", 3, 64, 64]}
    masks = {"name": "masks", "dtype": "float", "shape": ["B", 1, 16, 16]}
    counts = {"parameters": 0, "multiply_adds": 0, "nodes": 0}
    graph = {"file": "decoder.onnx", "inputs": [image], "outputs": [masks], **counts}
    manifest = BundleManifest.model_validate(
        {
            "name": "tiny",
            "trained": False,
            "recipe": tiny_recipe.model_dump(mode="json", by_alias=True),
            "program": {"stages": [{"name": "decoder", "inputs": ["image"]}]},
            "graphs": {"decoder": graph},
            "preprocessing": {"sizes": [[64, 64]], "mean": [0, 0, 0], "std": [1, 1, 1]},
            "postprocessing": {"threshold": 0.5},
            "classes": ["dog"],
            "cue": {"template": "{cue}", "max_cues": 4, "dim": 2, "table": "cues.npz"},
            "provenance": {},
            "licence": "none",
        }
    )
    with KIND.staging(out) as new:
        (new / "decoder.onnx").write_bytes(empty_graph("weights " * 100))
        np.savez(new / "reference.npz", masks=np.zeros(3))
        np.savez(new / "cues.npz", names=np.array(["dog"]), embeddings=np.ones((1, 2), np.float32))
        write_manifest(new, manifest)
    Bundle.open(out)
    return out


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as JSON."""
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def list_file(folder: Path, name: str, of: Path) -> None:
    """Add a file with its right hash to the manifest, under ``name``."""
    entry = KIND.hash_files(of.parent)[of.name].model_dump()
    edit(folder, lambda content: content["files"].update({name: entry}))


@pytest.mark.parametrize("name", ["decoder.onnx", "reference.npz", "cues.npz"])
def test_one_changed_byte(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", [MANIFEST, "decoder.onnx", "cues.npz"])
def test_a_clone_without_its_large_files(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3\n")
    with pytest.raises(BundleError, match=f"{name} is a pointer of Git LFS, not the file: run `git lfs pull`"):
        Bundle.open(folder)


def test_a_manifest_that_is_a_web_page(folder: Path) -> None:
    (folder / MANIFEST).write_text("<html>login</html>")
    with pytest.raises(BundleError) as refused:
        Bundle.open(folder)
    assert "is not JSON" in str(refused.value) and str(refused.value).endswith(": export the bundle again")


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="is not the file that was exported"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["decoder.onnx", "reference.npz", "cues.npz"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["decoder.onnx", "reference.npz", "cues.npz"])
def test_a_file_that_nothing_vouches_for(folder: Path, name: str) -> None:
    edit(folder, lambda content: content["files"].pop(name))
    with pytest.raises(BundleError, match=f"no hash of {name}"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["../outside", "sub/../../outside", "..\\outside", "{outside}", "decoder\0.onnx", "C:outside"]
)
def test_a_path_outside(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"not ours")
    list_file(folder, name.format(outside=outside), outside)
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.open(folder)


def test_a_link_is_the_file_that_it_leads_to(folder: Path) -> None:
    outside = folder.parent / "blobs" / "0123"
    outside.parent.mkdir()
    (folder / "decoder.onnx").rename(outside)
    (folder / "decoder.onnx").symlink_to(outside)
    Bundle.open(folder)
    outside.write_bytes(empty_graph("another"))
    with pytest.raises(BundleError, match=r"decoder\.onnx is not the file that was exported"):
        Bundle.open(folder)
    outside.unlink()
    with pytest.raises(BundleError, match=r"decoder\.onnx is missing"):
        Bundle.open(folder)


def test_a_graph_of_a_file_outside(folder: Path) -> None:
    edit(folder, lambda content: content["graphs"]["decoder"].update(file="../outside"))
    with pytest.raises(BundleError, match="no hash of"):
        Bundle.open(folder)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None])
def test_an_unknown_schema_version(folder: Path, version: object) -> None:
    edit(folder, lambda content: content.update(schema_version=version))
    with pytest.raises(BundleError, match=f"this package reads 1 to {SCHEMA_VERSION}.*export the bundle again"):
        Bundle.open(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_manifest(folder: Path, share: float) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: int(len(text) * share)])
    with pytest.raises(BundleError, match=r"is not JSON .*: export the bundle again$"):
        Bundle.open(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"null"])
def test_a_manifest_that_is_something_else(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match="export the bundle again"):
        Bundle.open(folder)


def test_a_field_that_is_missing_or_unknown_is_named(folder: Path) -> None:
    edit(folder, lambda content: content["cue"].pop("dim"))
    with pytest.raises(BundleError, match=r"cue\.dim"):
        Bundle.open(folder)
    edit(folder, lambda content: content["cue"].update(dim=2, trick=1))
    with pytest.raises(BundleError, match=r"cue\.trick"):
        Bundle.open(folder)


def test_a_recipe_that_is_damaged(folder: Path) -> None:
    edit(folder, lambda content: content["recipe"].update(swin="none"))
    with pytest.raises(BundleError, match="recipe is damaged"):
        _ = Bundle.open(folder).recipe


def test_pickled_objects_are_not_loaded(folder: Path) -> None:
    np.savez(folder / "cues.npz", names=np.array([{"a": 1}], object), embeddings=np.ones((1, 2), np.float32))
    list_file(folder, "cues.npz", folder / "cues.npz")
    with pytest.raises(BundleError, match="no plain arrays"):
        CueTable.open(Bundle.open(folder))


def test_a_cue_table_of_another_width(folder: Path) -> None:
    np.savez(folder / "cues.npz", names=np.array(["dog"]), embeddings=np.ones((1, 3), np.float32))
    list_file(folder, "cues.npz", folder / "cues.npz")
    with pytest.raises(BundleError, match="expected is any number of x 2 floating-point"):
        CueTable.open(Bundle.open(folder))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_half_written_export_leaves_the_old_bundle(folder: Path, error: type[BaseException]) -> None:
    before = snapshot(folder)
    with pytest.raises(error), KIND.staging(folder) as new:
        (new / "decoder.onnx").write_bytes(b"half a gr")
        raise error
    assert snapshot(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    Bundle.open(folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_swap_that_fails_brings_the_old_bundle_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before, rename, failures = snapshot(folder), os.rename, [error]

    def refuse_exchange(one: Path, other: Path) -> None:
        raise OSError(errno.ENOSYS, "as on a system that can't exchange names")

    def fail_once(source: Path, target: Path) -> None:
        if Path(target) == folder and failures:
            raise failures.pop()
        rename(source, target)

    monkeypatch.setattr(staging, "exchange", refuse_exchange)
    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(type(error)), KIND.staging(folder) as new:
        (new / "decoder.onnx").write_bytes(b"new")
    monkeypatch.undo()
    assert snapshot(folder) == before and not failures
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


WRITE_AND_WAIT = """
import signal, sys, time
from pathlib import Path
from unittest import mock
from teso_deploy import cli
from teso_deploy.bundle import KIND

def write(**options):
    with KIND.staging(Path(sys.argv[1])) as new:
        (new / "decoder.onnx").write_bytes(b"half a gr")
        print("writing", flush=True)
        time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with mock.patch.object(cli, "app", write):
    cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_an_export_that_is_ended_by_a_signal_leaves_the_old_bundle(folder: Path, number: signal.Signals) -> None:
    before = snapshot(folder)
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        process.send_signal(number)
        assert process.wait(120) == (-number if number == signal.SIGKILL else 128 + number)
    assert snapshot(folder) == before
    Bundle.open(folder)
    if number == signal.SIGKILL:  # the next export removes what this one left
        assert len(list(folder.parent.iterdir())) == 2
        with pytest.raises(SystemExit), KIND.staging(folder):
            raise SystemExit
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
