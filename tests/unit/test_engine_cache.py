"""Engines come from the cache, the bundle or a build: when a build is allowed, and which engines are accepted."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from teso_deploy.backends import shared_libraries
from teso_deploy.backends.contracts import Backend, BackendRequest
from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.tensorrt import cache, factory, loading
from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary, adopt
from teso_deploy.backends.tensorrt.cache import EngineCache
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.factory import make_cache_path, make_engine_factory
from teso_deploy.backends.tensorrt.making import find_source
from teso_deploy.backends.tensorrt.profiles import BuildProfile, load_profile
from teso_deploy.backends.tensorrt.sidecar import check_fits, get_sidecar_path, read_engine, read_sidecar, write_engine
from teso_deploy.backends.tensorrt.targets import Target, runs_portable
from teso_deploy.bundle import Bundle, write_manifest
from teso_deploy.conversion.engines import EngineRequest, _choose_device, build_engines, verify_engines
from teso_deploy.errors import CheckFailedError, EngineError, InputNotFoundError, OutputError
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.pipeline.operators import HostOperators
from teso_deploy.program import TESO
from teso_deploy.verification.engine_check import check_against_onnxruntime
from tests.support.fake_gpu import FakeDevice
from tests.support.fake_tensorrt import Fake, fake_tensorrt

PROFILE = load_profile()
AMPERE_PLUS = PROFILE.model_copy(update={"hardware_compatibility": "ampere-plus"})


class Machine:
    """A GPU, a library, a cache."""

    def __init__(self, folder: Path, target: Target = "tensorrt") -> None:
        self.gpu = FakeDevice()
        self.state = Fake(self.gpu, target == "tensorrt-rtx")
        self.target, self.cache = target, EngineCache(folder)

    @property
    def device(self) -> Device:
        return cast(Device, self.gpu)

    @property
    def library(self) -> TensorRTLibrary:
        return adopt(self.target, fake_tensorrt(self.state))

    def engine(self, bundle: Bundle, graph: str = "fusion", **options: Any) -> TensorRTEngine:
        options = {"check_of": check_against_onnxruntime, "cache": self.cache, **options}
        return cast(TensorRTEngine, make_engine_factory(self.library, self.device, **options)(bundle, graph))

    def path(self, bundle: Bundle, settings: BuildProfile = PROFILE) -> Path:
        return make_cache_path(
            self.cache, self.library, find_source(bundle, "fusion", "fp32"), settings=settings, device=self.device
        )

    def ship(self, folder: Path, *, settings: BuildProfile = PROFILE, device: Device | None = None) -> Bundle:
        """Add engines to the bundle in a folder."""
        bundle = Bundle.open(folder)
        engines = build_engines(bundle, [EngineRequest(self.library, (), ("fp32",), settings, device)])
        write_manifest(folder, bundle.manifest.model_copy(update={"engines": engines}))
        self.state.builds = 0
        return Bundle.open(folder)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return Machine(tmp_path / "home/teso-deploy/engines")


@pytest.fixture
def rtx(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "cache", "tensorrt-rtx")


# ------------------------------------------------------------------------------------------- builds


def test_who_may_not_build_wants_the_engines_of_all_graphs(machine: Machine, bundle: Bundle) -> None:
    for graph in TESO.names[1:]:
        machine.engine(bundle, graph)
    built = machine.state.builds
    with pytest.raises(EngineError, match=r"no tensorrt engine of visual_encoder in fp32 for Fake 4090: --b"):
        machine.engine(bundle, may_build=False)
    machine.engine(bundle, "visual_encoder")
    assert machine.engine(bundle, may_build=False).name == "fusion" and machine.state.builds == built + 1
    get_sidecar_path(machine.path(bundle)).write_text("{")
    with pytest.raises(EngineError, match="is damaged, so the engine can't be checked"):
        machine.engine(bundle, "decoder", may_build=False)


def test_auto_builds_nothing_and_loads_nothing_twice(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_module(name: str) -> bool:
        return name == "tensorrt"

    def load_cuda(request: BackendRequest) -> Backend:
        raise EngineError("it is made up")

    monkeypatch.setattr(shared_libraries, "has_module", has_module)
    monkeypatch.setattr(loading, "load_device_operators", lambda device: HostOperators)
    monkeypatch.setattr("teso_deploy.backends.tensorrt.bindings.load_library", lambda target: machine.library)
    monkeypatch.setattr("teso_deploy.backends.cuda.opening.open_device", lambda: machine.device)
    monkeypatch.setattr("teso_deploy.backends.onnxruntime_cuda.load_cuda", load_cuda)
    notes: list[str] = []
    assert load_backend("auto", bundle, on_note=notes.append).engines(bundle, "fusion").backend == "cpu"
    assert machine.state.builds == 0 and notes[0].startswith(
        "not tensorrt: there is no tensorrt engine of visual_encoder"
    )
    assert notes[1] == "not cuda: it is made up" and notes[2:] == ["backend cpu"]
    ours = load_backend("tensorrt", bundle)
    for graph in TESO.names:
        ours.engines(bundle, graph)
    machine.state.builds = 0
    machine.state.deserialized.clear()
    notes.clear()
    chosen = load_backend("auto", bundle, on_note=notes.append)
    engines = [chosen.engines(bundle, graph) for graph in (*TESO.names, "fusion")]
    assert {engine.backend for engine in engines} == {"tensorrt"} and notes == ["backend tensorrt"]
    assert machine.state.builds == 0 and len(machine.state.deserialized) == 5
    assert engines[2] is not engines[4], "handed out once"


def test_options_of_engines_are_refused_where_none_are_built(bundle: Bundle) -> None:
    for options in ({"profile": "live"}, {"rebuild_engines": True}):
        with pytest.raises(ValueError, match="backend 'cpu' builds no engines"):
            load_backend("cpu", bundle, **cast(Any, options))


def test_what_was_built_again_is_taken_from_then_on(rtx: Machine, bundle: Bundle) -> None:
    bundle = rtx.ship(bundle.folder)
    rtx.state.version = "1.8.0.1"
    with pytest.raises(
        EngineError, match=r"was built by tensorrt-rtx 1.7.1.116, but 1.8.0.1 is installed.*--rebuild-engines"
    ):
        rtx.engine(bundle)
    factory = make_engine_factory(rtx.library, rtx.device, cache=rtx.cache, rebuild=True)
    for _ in range(2):  # once, however often it is requested
        factory(bundle, "fusion")
    assert rtx.state.builds == 1
    assert rtx.engine(bundle).sidecar.library_version == "1.8.0.1" and rtx.state.builds == 1
    with pytest.raises(EngineError, match=r"by tensorrt-rtx 1\.7\.1"):
        rtx.engine(bundle, "decoder")
    get_sidecar_path(rtx.path(bundle)).write_text("{")
    rtx.state.version = "1.7.1.116"
    assert rtx.engine(bundle).sidecar.architecture == "portable", "the bundle's fits again"


def test_an_engine_that_fails_its_first_check_is_told_apart(rtx: Machine, bundle: Bundle) -> None:
    bundle = rtx.ship(bundle.folder)
    rtx.state.bends = 0.01
    with pytest.raises(CheckFailedError, match=r"and is not used: take") as raised:
        rtx.engine(bundle)
    assert "not kept" not in str(raised.value)


def test_export_looks_at_the_engines_that_ship(
    rtx: Machine, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = rtx.ship(bundle.folder)
    rtx.state.version = "1.8.0.1"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for graph in TESO.names:  # fitting engines in the user's own cache must not count
        rtx.engine(bundle, graph, settings=PROFILE, cache=EngineCache())
    with pytest.raises(EngineError, match=r"was built by tensorrt-rtx 1\.7\.1"):
        verify_engines(bundle, [EngineRequest(rtx.library, (), ("fp32",), PROFILE, rtx.device)])
    assert rtx.state.builds == len(TESO.names)


# ------------------------------------------------------------------------------------------- matching the GPU


def test_where_portable_engines_run() -> None:
    assert all(map(runs_portable, [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1), (13, 0)]))
    assert not any(map(runs_portable, [(7, 5), (8, 7), (9, 0), (10, 0), (11, 0)]))


def test_portable_engines_are_left_alone_on_turing(rtx: Machine, bundle: Bundle) -> None:
    bundle = rtx.ship(bundle.folder)
    sidecar = read_sidecar(bundle.path(bundle.manifest.engines[0].file))
    with pytest.raises(EngineError, match=r"is portable, for compute capability 8.0, .* T4 has 7.5: build it again"):
        check_fits(sidecar, rtx.library, capability=(7, 5), gpu="T4", graph_sha256=None)
    rtx.gpu.compute_capability = (7, 5)
    request = EngineRequest(rtx.library, (), ("fp32",), PROFILE, rtx.device)
    assert _choose_device(request, None) is None and _choose_device(request, "sm75") is rtx.device
    with pytest.raises(
        EngineError, match=r"has no engines for Fake 4090 \(compute capability 7.5\): it builds for sm86"
    ):
        rtx.engine(bundle)
    assert rtx.state.builds == 0
    library = rtx.library
    library.trt.ComputeCapability = SimpleNamespace(SM75="SM75", SM86="SM86")
    factory = make_engine_factory(library, rtx.device, cache=rtx.cache)
    assert cast(TensorRTEngine, factory(bundle, "fusion")).sidecar.architecture == "sm75" and rtx.state.builds == 1


def test_engines_for_many_gpus_are_found_on_them(machine: Machine, bundle: Bundle) -> None:
    stages: list[str] = []
    machine.engine(bundle, settings=AMPERE_PLUS)
    machine.gpu.name, machine.gpu.compute_capability = "Fake H200", (9, 0)
    assert machine.engine(bundle, settings=AMPERE_PLUS, on_progress=stages.append).sidecar.gpu == "Fake 4090"
    assert machine.state.builds == 1 and stages == ["fusion: first run on Fake H200, checking it"]
    machine.engine(bundle)  # with the default profile, only for this GPU
    assert machine.state.builds == 2
    same = PROFILE.model_copy(update={"hardware_compatibility": "same-compute-capability"})
    paths = {machine.path(bundle, same)}
    machine.gpu.name = "Fake H100"
    assert paths == {machine.path(bundle, same)}
    machine.gpu.compute_capability = (8, 9)
    assert paths != {machine.path(bundle, same)}


def test_a_bundle_brings_engines_for_many_gpus(machine: Machine, bundle: Bundle) -> None:
    bundle = machine.ship(bundle.folder, settings=AMPERE_PLUS, device=machine.device)
    assert {entry.architecture for entry in bundle.manifest.engines} == {"ampere-plus"}
    machine.gpu.name, machine.gpu.compute_capability = "Fake H200", (9, 0)
    assert machine.engine(bundle).sidecar.architecture == "ampere-plus" and machine.state.builds == 0
    machine.gpu.name, machine.gpu.compute_capability = "Fake T4", (7, 5)
    machine.engine(bundle)
    assert machine.state.builds == 1


# ------------------------------------------------------------------------------------------- sidecars


def test_the_manifest_vouches_for_an_engine_when_it_is_loaded(rtx: Machine, bundle: Bundle) -> None:
    bundle = rtx.ship(bundle.folder)
    entry = next(entry for entry in bundle.manifest.engines if entry.graph == "fusion")
    content, sidecar = read_engine(bundle.path(entry.file))
    content += b" "
    digest = hashlib.sha256(content).hexdigest()
    write_engine(bundle.path(entry.file), content, sidecar.model_copy(update={"sha256": digest}))
    read_engine(bundle.path(entry.file))  # the sidecar alone is not enough
    with pytest.raises(EngineError, match="differs from the engine that was built"):
        rtx.engine(bundle)
    assert not rtx.state.deserialized


def test_another_way_to_build_is_another_engine(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.path(bundle)
    monkeypatch.setattr(factory, "BUILD_REVISION", factory.BUILD_REVISION + 1)
    assert machine.path(bundle) != before


# ------------------------------------------------------------------------------------------- the folder


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    EngineCache(tmp_path / "a/engines")
    write_vouched(tmp_path / "b/kernels/x", b"")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a/engines", "b/kernels")] == [0o700, 0o700]


def denied(*arguments: Any, **named: Any) -> Any:
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_can_only_be_read_is_enough_for_what_is_in_it(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.engine(bundle)
    for name in ("mkdir", "open", "write_bytes", "write_text", "unlink", "touch"):  # tests may run as root
        monkeypatch.setattr(Path, name, denied)
    monkeypatch.setattr(os, "utime", denied)
    store = EngineCache(machine.cache.folder)
    monkeypatch.setattr(Path, "read_bytes", lambda path: os.read(os.open(path, os.O_RDONLY), 1 << 24))
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: path.read_bytes().decode(encoding))
    assert machine.engine(bundle, cache=store).name == "fusion"
    with pytest.raises(OutputError, match=r"can't be stored in .* \(Permission denied\): name another folder with XDG"):
        machine.engine(bundle, "decoder", cache=store)
    assert machine.state.builds == 1


def test_a_folder_that_is_none_is_told_by_who_builds(machine: Machine, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/engines"):
        with pytest.raises(OutputError, match="Not a directory"):
            machine.engine(bundle, cache=EngineCache(folder))


def test_files_that_can_not_be_read_are_a_sentence(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.engine(bundle)
    mine = tmp_path / "mine.toml"
    mine.write_text('summary = "x"')
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", denied)
        with pytest.raises(EngineError, match=r"\.json can't be read \(Permission denied\)"):
            machine.engine(bundle, settings=PROFILE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(InputNotFoundError, match=r"mine.toml can't be read \(Permission denied\): name"):
            load_profile(str(mine))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        with pytest.raises(EngineError, match=r"\.engine can't be read \(Permission denied\)"):
            machine.engine(bundle, settings=PROFILE)


def test_a_pipe_in_place_of_a_sidecar(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"x")
    os.mkfifo(tmp_path / "x.engine.json")
    with pytest.raises(EngineError, match=r"x\.engine\.json is not a file"):
        read_sidecar(tmp_path / "x.engine")


def test_an_unused_engine_is_dropped(machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, long_ago = machine.cache.folder, time.time() - cache.UNUSED_SECONDS - 60
    machine.engine(bundle)
    machine.engine(bundle, "audio_encoder")
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    machine.engine(bundle)  # used
    machine.engine(bundle, "decoder")  # a build
    left = {path.name.partition("-")[0] for path in folder.glob("*.engine*")}
    assert left == {"fusion", "decoder"} and len(list(folder.glob("*.engine*"))) == 4
    assert len(list(folder.glob("*.lock"))) == 3
    monkeypatch.setattr(cache, "MOST_BYTES", 1)
    now = time.time() + 1
    os.utime(next(folder.glob("fusion*.engine")), (now, now))
    machine.cache.prune()
    assert not list(folder.glob("*.engine*")), "nothing fits into a byte"


def test_export_keeps_timings_for_the_next_build(machine: Machine, bundle: Bundle) -> None:
    machine.ship(bundle.folder, device=machine.device)
    assert read_vouched(machine.cache.timing_cache_path("11.4.0.5", "Fake 4090")) == b"timings"
    assert not list(machine.cache.folder.glob("*.engine"))
