"""`export --target tensorrt-rtx` with the real library: TensorRT-RTX builds engines without a GPU."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from teso_deploy.backends.cuda import opening
from teso_deploy.backends.tensorrt.bindings import load_library
from teso_deploy.backends.tensorrt.sidecar import read_engine
from teso_deploy.bundle import MANIFEST, Bundle, write_manifest
from teso_deploy.cli.reports import list_shown
from teso_deploy.errors import BundleError, DeviceError
from tests.support.commands import refused, teso

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed (extra tensorrt-rtx)"
)


@pytest.fixture(scope="module")
def exported(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """Export the tiny bundle with engines in both precisions, for one generation."""
    out = tmp_path_factory.mktemp("engines") / "tiny"
    report = out.with_suffix(".json")
    asked = ["--target", "tensorrt-rtx", "--arch", "sm89", "--precision", "fp32", "--precision", "fp16"]
    asked += ["--profile", "fast-build"]
    done = teso("export", tiny_bundle, "--out", out, *asked, "--json", report)
    assert done.code == 0, done.err
    return out, json.loads(report.read_text())


def test_every_graph_is_built_and_said_to_be(exported: tuple[Path, dict[str, object]]) -> None:
    out, report = exported
    rows = [row for row in report["engines"] if row["target"] == "tensorrt-rtx"]  # type: ignore[attr-defined]
    graphs = ("visual_encoder", "audio_encoder", "fusion", "decoder")
    assert {(row["graph"], row["precision"], row["arch"]) for row in rows} == {
        (graph, precision, "sm89") for graph in graphs for precision in ("fp32", "fp16")
    }
    for row in rows:
        is_half = row["precision"] == "fp16"
        assert row["half_share"] > 0.5 if is_half else row["half_share"] == 0
        assert row["shares_from"] == "network" and row["parity"] is None and row["build_seconds"] > 0
        assert row["msda"] == ("function" if row["graph"] == "visual_encoder" else None)
        content, sidecar = read_engine(out / row["path"])
        assert len(content) == row["bytes"] == sidecar.bytes and sidecar.settings.name == "fast-build"
        assert sidecar.library_version == load_library("tensorrt-rtx").version
    bundle = Bundle.open(out)
    assert len(bundle.manifest.engines) == len(rows) == 8
    assert {"onnx-fp32", "onnx-fp16", "onnxruntime-fp32"} <= bundle.manifest.forms.keys()


def test_an_engine_of_a_bundle_that_was_changed_is_found(
    exported: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported[0], copy)
    engine = copy / Bundle.open(copy).manifest.engines[0].file
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        Bundle.open(copy)
    done = teso("run", "export/demo/clip.mp4", "--json", "-", "--bundle", copy)
    assert done.code == 2 and "is not the file that was exported" in done.err


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--target", "tensorrt-rtx", "--arch", "sm90"], "can't build for sm90: choose from sm75, sm80"),
        (["--target", "tensorrt"], "tensorrt is not installed: pip install 'teso-deploy[tensorrt]'"),
        (["--target", "openvino"], "is not a target: choose from onnx, tensorrt, tensorrt-rtx"),
        (["--arch", "sm89"], "needs --target tensorrt-rtx"),
        (["--target", "tensorrt-rtx", "--profile", "fastest"], "one of fast-build, live, throughput"),
        (["--calibrate-on", "export/demo/clip.mp4"], "--calibrate-on sets the ranges of int8: add --precision int8"),
        (["--profile", "live"], "needs --target tensorrt or --target tensorrt-rtx"),
    ],
)
def test_what_can_not_be_built_is_said_before_anything_is(
    tiny_bundle: Path, tmp_path: Path, asked: list[str], says: str
) -> None:
    done = teso("export", tiny_bundle, "--out", tmp_path / "out", *asked)
    assert done.code == 2 and says in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_engines_are_not_run(exported: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    bundle = exported[0]
    out = tmp_path / "out.json"
    done = teso("run", "export/demo/clip.mp4", "--json", out, "--bundle", bundle, "--backend", "tensorrt-rtx")
    if done.code == 0:
        pytest.skip("there is a GPU")
    assert done.code == 2 and done.err.count("\n") <= 2 and "NVIDIA" in done.err and not out.exists()
    assert (bundle / MANIFEST).is_file()


@pytest.mark.parametrize("option", [("--profile", "live"), ("--rebuild-engines",)], ids=lambda option: option[0])
@pytest.mark.parametrize(
    "command",
    [
        ("run", "export/demo/clip.mp4", "--json", "-"),
        ("run", "export/demo/clip.mp4", "--json", "-", "--backend", "auto"),
        ("run", "export/demo/clip.mp4", "--json", "-", "--backend", "cuda"),
        ("eval", "nowhere"),
        ("verify",),
        ("verify", "--backend", "cuda"),
    ],
    ids=" ".join,
)
def test_options_of_engines_where_none_are_built(command: tuple[str, ...], option: tuple[str, ...]) -> None:
    done = teso(*command, *option)
    assert done.code == 2 and "only --backend tensorrt and tensorrt-rtx build engines" in " ".join(done.err.split())
    assert option[0] in done.err and "Traceback" not in done.err


def test_cues_are_checked_before_engines_are_built(tiny_bundle: Path, tmp_path: Path) -> None:
    common = ("run", "export/demo/clip.mp4", "--json", "-", "--backend", "tensorrt-rtx", "--bundle")
    refused(*common, tiny_bundle, "--cues", "dgo", names="'dgo'")
    without = tmp_path / "without"
    shutil.copytree(tiny_bundle, without)
    write_manifest(without, Bundle.open(without).manifest.model_copy(update={"tagger": None}))
    refused(*common, without, "--cues", "auto", names="has no tagger")
    scenes = ("eval", "export/demo", "--protocol", "composed-scenes")
    refused(*scenes, "--bundle", without, "--backend", "tensorrt-rtx", "--cues", "auto", names="no tagger")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise DeviceError("no NVIDIA driver: install [this] one")

    monkeypatch.setattr(opening, "open_device", refuse)


@pytest.mark.usefixtures("no_gpu")
def test_what_auto_says_stays_on_the_screen_with_its_brackets(tiny_bundle: Path) -> None:
    done = teso("run", "export/demo/clip.mp4", "--fps", 1, "--json", "-", "--bundle", tiny_bundle, "--backend", "auto")
    assert done.code == 0, done.err
    assert "not tensorrt-rtx: no NVIDIA driver: install [this] one\n" in done.err
    assert done.err.count("\nbackend ") == 1 and json.loads(done.out)["backend"] in done.err


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("command", ["verify", "eval"])
def test_what_the_advice_names_is_an_option(command: str, tiny_bundle: Path, media_folder: Path) -> None:
    arguments = (tiny_bundle,) if command == "verify" else (media_folder, "--bundle", tiny_bundle)
    refused(command, *arguments, "--backend", "tensorrt-rtx", "--rebuild-engines", names="no NVIDIA driver")


def test_a_note_that_is_shown_is_no_markup() -> None:
    console = Console(record=True, force_terminal=True, file=io.StringIO())
    with console.status("") as status:
        list_shown(status)("pip install 'teso-deploy[tensorrt]' [/]")
        console.print(status.renderable)
    assert "teso-deploy[tensorrt]' [/]" in console.export_text()
