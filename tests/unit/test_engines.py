"""Engines on disk: built once, checked by hash, refused where they do not fit. The library is a fake."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.registry import check_installed
from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary, adopt
from teso_deploy.backends.tensorrt.builder import build_engine, compute_shares
from teso_deploy.backends.tensorrt.cache import EngineCache, compute_content_key
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.factory import make_cache_path, make_engine_factory
from teso_deploy.backends.tensorrt.inspection import read_shares
from teso_deploy.backends.tensorrt.making import check_architectures, find_source, make_engine
from teso_deploy.backends.tensorrt.profiles import load_profile
from teso_deploy.backends.tensorrt.sidecar import check_fits, get_sidecar_path, read_engine, read_sidecar
from teso_deploy.backends.tensorrt.targets import Target
from teso_deploy.bundle import Bundle, write_manifest
from teso_deploy.conversion.engines import EngineRequest, build_engines, verify_engines
from teso_deploy.errors import (
    BundleError,
    CheckFailedError,
    DeviceMemoryError,
    EngineError,
    InputNotFoundError,
    MissingExtraError,
)
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.verification.engine_check import check_against_onnxruntime
from tests.support.fake_gpu import FakeDevice
from tests.support.fake_tensorrt import Fake, fake_tensorrt

PROFILE = load_profile()


@pytest.fixture
def bundle(full_bundle: Path) -> Bundle:
    return Bundle.open(full_bundle)


class Machine:
    """A GPU, a library, a cache, and factories of engines for them."""

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

    def engine(self, bundle: Bundle, graph: str = "fusion", precision: Any = "fp32", **options: Any) -> TensorRTEngine:
        factory = make_engine_factory(
            self.library, self.device, precision, check_of=check_against_onnxruntime, cache=self.cache, **options
        )
        return cast(TensorRTEngine, factory(bundle, graph))

    def path(self, bundle: Bundle, graph: str = "fusion") -> Path:
        return make_cache_path(
            self.cache, self.library, find_source(bundle, graph, "fp32"), settings=PROFILE, device=self.device
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "cache")


def test_an_engine_is_built_once_and_vouched_for(machine: Machine, bundle: Bundle) -> None:
    stages: list[str] = []
    machine.engine(bundle, on_progress=stages.append)
    assert stages == ["fusion: building engine 1/2", "fusion: building engine 2/2", "fusion: check"]
    engine = machine.engine(bundle)
    assert machine.state.builds == 1
    said = engine.sidecar
    assert (said.graph, said.target, said.library_version) == ("fusion", "tensorrt", "11.4.0.5")
    assert (said.architecture, said.gpu, said.precision, said.msda) == ("sm89", "Fake 4090", "fp32", None)
    assert said.shares == {"fp32": 1.0} and said.shares_from == "engine" and said.settings == PROFILE
    assert said.parity is not None and said.parity["gpu"] == "Fake 4090" and said.parity["max_abs_error"] < 1e-5
    assert get_sidecar_path(machine.path(bundle)).is_file()


def test_what_an_engine_depends_on_is_its_name(machine: Machine, bundle: Bundle) -> None:
    paths = {machine.path(bundle), machine.path(bundle, "decoder")}
    machine.gpu.compute_capability = (9, 0)
    paths.add(machine.path(bundle))
    machine.state.version = "11.5.0.1"
    paths.add(machine.path(bundle))
    source = find_source(bundle, "fusion", "fp16")
    paths.add(make_cache_path(machine.cache, machine.library, source, settings=PROFILE, device=machine.device))
    other = PROFILE.model_copy(update={"workspace_mib": 64})
    paths.add(make_cache_path(machine.cache, machine.library, source, settings=other, device=machine.device))
    assert len(paths) == 6
    assert compute_content_key({"a": 1, "b": 2}) == compute_content_key({"b": 2, "a": 1})


def test_types_are_read_back_from_the_engine(machine: Machine, bundle: Bundle) -> None:
    assert machine.engine(bundle, precision="fp16").sidecar.shares == {"fp16": 0.5, "fp32": 0.5}
    machine.state.half_as = "Float"  # half was requested, and another type was built
    with pytest.raises(EngineError, match=r"should be fp16, but is 100% fp32: nothing was written"):
        machine.engine(bundle, "decoder", "fp16")
    assert len(list(machine.cache.folder.glob("decoder*.engine*"))) == 0


def test_a_graph_that_is_not_in_what_was_asked_for_is_not_built(machine: Machine, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="should be fp16, but is 100% fp32"):
        build_engine(machine.library, bundle.graph_path("fusion"), "fusion", settings=PROFILE, precision="fp16")
    assert machine.state.builds == 0


def test_inspected_types_in_both_wordings() -> None:
    def layer(name: str) -> dict[str, Any]:
        return {"Outputs": [{"Name": "x", "Format/Datatype": name}]}

    words = ["Half", "Row major linear FP16 format", "Two wide channel vectorized row major FP16 format", "Float"]
    text = json.dumps({"Layers": [*map(layer, words), layer("Int64"), "a name alone"], "Bindings": ["x"]})
    assert read_shares(text) == {"fp16": 0.75, "fp32": 0.25}
    assert read_shares('{"Layers": ["a", "b"]}') == {} == compute_shares(["int64"])


def test_an_engine_that_computes_something_else_is_not_kept(machine: Machine, bundle: Bundle) -> None:
    machine.state.bends = 0.01
    with pytest.raises(CheckFailedError, match=r"fusion \(tensorrt, fp32\) differs from ONNX Runtime on Fake 4090"):
        machine.engine(bundle)
    assert not list(machine.cache.folder.glob("*.engine*"))
    machine.state.bends = float("nan")
    with pytest.raises(CheckFailedError, match="nan"):
        machine.engine(bundle, "decoder", "fp16")


# ------------------------------------------------------------------------------------------------ refusals


def change(path: Path, **fields: Any) -> None:
    beside = get_sidecar_path(path)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **fields}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (flip, "differs from the engine that was built"),
        (truncate, "differs from the engine that was built"),
        (lambda path: change(path, sha256="0" * 64), "differs from the engine that was built"),
        (
            lambda path: change(path, library_version="11.1.0.1"),
            "was built by tensorrt 11.1.0.1, but 11.4.0.5 is installed",
        ),
        (lambda path: change(path, target="tensorrt-rtx"), "is for tensorrt-rtx, but tensorrt was requested"),
        (lambda path: change(path, platform="windows-amd64"), "was built on windows-amd64, but this machine is linux"),
        (lambda path: change(path, architecture="sm90"), "is for sm90, but Fake 4090 is sm89"),
        (lambda path: change(path, gpu="Fake 4080"), "was built on Fake 4080, but this GPU is Fake 4090"),
        (lambda path: change(path, graph_sha256="0" * 64), "was built from another graph than the bundle's"),
        (lambda path: change(path, schema_version=2), "has schema version 2, this package reads 1"),
        (lambda path: change(path, unknown=1), "is damaged, so the engine can't be checked"),
        (lambda path: get_sidecar_path(path).write_text("{"), "is damaged, so the engine can't be checked"),
        (lambda path: get_sidecar_path(path).write_text("[1]"), "has schema version None"),
    ],
)
def test_what_does_not_fit_is_refused_and_built_again_on_request(
    machine: Machine, bundle: Bundle, spoil: Callable[[Path], Any], says: str
) -> None:
    machine.engine(bundle)
    spoil(machine.path(bundle))
    machine.state.deserialized.clear()
    with pytest.raises(EngineError, match=says) as raised:
        machine.engine(bundle)
    assert "--rebuild-engines" in str(raised.value) and "\n" not in str(raised.value)
    assert not machine.state.deserialized, "nothing of it reached the library"
    machine.engine(bundle, rebuild=True)
    machine.engine(bundle)
    assert machine.state.builds == 2


def test_an_engine_without_its_sidecar_is_half_a_write(machine: Machine, bundle: Bundle) -> None:
    machine.engine(bundle)
    path = machine.path(bundle)
    get_sidecar_path(path).unlink()
    with pytest.raises(EngineError, match="has no sidecar"):
        read_engine(path)
    machine.engine(bundle)  # in the cache it counts as absent
    assert machine.state.builds == 2
    path.unlink()
    with pytest.raises(InputNotFoundError, match="no engine"):
        read_sidecar(path)


def test_compatible_gpus(machine: Machine, bundle: Bundle) -> None:
    machine.engine(bundle)
    sidecar = read_sidecar(machine.path(bundle))
    library = machine.library

    def fits(compatibility: Any, capability: tuple[int, int], gpu: str) -> bool:
        settings = PROFILE.model_copy(update={"hardware_compatibility": compatibility})
        try:
            check_fits(
                sidecar.model_copy(update={"settings": settings}),
                library,
                capability=capability,
                gpu=gpu,
                graph_sha256=None,
            )
        except EngineError:
            return False
        return True

    assert fits("none", (8, 9), "Fake 4090") and not fits("none", (8, 9), "L4") and not fits("none", (9, 0), "H200")
    assert fits("same-compute-capability", (8, 9), "L4") and not fits("same-compute-capability", (9, 0), "H200")
    assert fits("ampere-plus", (9, 0), "H200") and not fits("ampere-plus", (7, 5), "T4")


def test_a_failed_build_leaves_what_was_there(machine: Machine, bundle: Bundle) -> None:
    machine.engine(bundle)
    before = {path: path.read_bytes() for path in machine.cache.folder.glob("*.engine*")}
    machine.state.fails = "[defaultAllocator.cpp::allocate::57] Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(DeviceMemoryError, match=r"2048 MiB of workspace and batches of up to 4 .*fp16"):
        machine.engine(bundle, rebuild=True)
    machine.state.fails = "Error Code 4: no implementation for node x"
    with pytest.raises(EngineError, match=r"can't build fusion .*no implementation for node x"):
        machine.engine(bundle, rebuild=True)

    def interrupt(stage: str) -> None:
        raise KeyboardInterrupt

    machine.state.fails = None
    with pytest.raises(KeyboardInterrupt):
        machine.engine(bundle, rebuild=True, on_progress=interrupt)
    assert {path: path.read_bytes() for path in machine.cache.folder.glob("*.engine*")} == before


def test_memory_that_does_not_suffice_says_what_would_fit(machine: Machine, bundle: Bundle) -> None:
    engine = machine.engine(bundle)  # a megabyte of activations in batches of up to 4
    held = [machine.gpu.allocate(1000)]
    machine.gpu.total_bytes = machine.gpu.used_bytes + 600_000
    with pytest.raises(DeviceMemoryError, match=r"needs 1 MB .*up to 4.*1 MB free: a profile with batches of up to 2"):
        engine.slot()
    machine.gpu.total_bytes = machine.gpu.used_bytes + 1000
    with pytest.raises(DeviceMemoryError, match="not even one picture fits"):
        engine.slot()
    machine.gpu.total_bytes, machine.state.full = 8 << 30, True
    with pytest.raises(DeviceMemoryError, match=r"fusion can't be loaded: it has \d+ MB and .* are free"):
        machine.engine(bundle)
    del held


def test_two_processes_build_an_engine_once(machine: Machine, bundle: Bundle) -> None:
    path, waited = machine.path(bundle), threading.Event()
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process would

        def note_stage(stage: str) -> None:
            if "another process" in stage:
                waited.set()

        thread = threading.Thread(target=lambda: machine.engine(bundle, on_progress=note_stage))
        thread.start()
        assert waited.wait(120) and machine.state.builds == 0
        fcntl.flock(file, fcntl.LOCK_UN)
        thread.join(120)
    assert machine.state.builds == 1


def test_timings_are_kept_for_the_next_build(machine: Machine, bundle: Bundle) -> None:
    machine.engine(bundle)
    timings = machine.cache.timing_cache_path("11.4.0.5", "Fake 4090")
    assert read_vouched(timings) == b"timings"
    timings.write_bytes(b"something else")  # not the written content: it is ignored
    assert read_vouched(timings) is None
    machine.engine(bundle, "decoder")
    assert read_vouched(timings) == b"timings"
    write_vouched(Path("/proc/none/x"), b"")  # it saves time or does nothing


# ------------------------------------------------------------------------------------------- TensorRT-RTX


def test_engines_that_came_with_the_bundle_are_taken(tmp_path: Path, bundle: Bundle) -> None:
    machine = Machine(tmp_path / "cache", "tensorrt-rtx")
    sidecar = make_engine(
        machine.library,
        find_source(bundle, "fusion", "fp32"),
        PROFILE,
        path=tmp_path / "portable.engine",
        architecture=None,
    )
    assert (sidecar.architecture, sidecar.gpu, sidecar.parity, sidecar.shares_from) == (
        "portable", None, None, "network",
    )  # fmt: skip
    make_engine(
        machine.library,
        find_source(bundle, "fusion", "fp32"),
        PROFILE,
        path=tmp_path / "sm86.engine",
        architecture="sm86",
    )
    assert json.loads((tmp_path / "sm86.engine").read_text())["capabilities"] == ["SM86"]
    assert machine.state.builds == 2
    engine = machine.engine(bundle)  # the bundle has none, so it is built for this GPU
    assert engine.sidecar.architecture == "sm89" and engine.backend == "tensorrt-rtx"
    assert list(machine.cache.folder.glob("*.lock"))


@pytest.fixture
def travelled(tmp_path: Path, full_bundle: Path) -> Callable[[Machine], Bundle]:
    """Return a bundle with portable engines of every graph, as a machine without a GPU writes it."""

    def made(machine: Machine) -> Bundle:
        shutil.copytree(full_bundle, tmp_path / "bundle")
        bundle = Bundle.open(tmp_path / "bundle")
        request = EngineRequest(machine.library, (), ("fp32",), PROFILE, None)
        engines = build_engines(bundle, [request])
        write_manifest(bundle.folder, bundle.manifest.model_copy(update={"engines": engines}))
        machine.state.builds = 0
        return Bundle.open(bundle.folder)

    return made


def test_engines_from_elsewhere_are_checked_at_their_first_run(
    tmp_path: Path, travelled: Callable[[Machine], Bundle]
) -> None:
    machine = Machine(tmp_path / "cache", "tensorrt-rtx")
    bundle, stages = travelled(machine), list[str]()
    assert {entry.architecture for entry in bundle.manifest.engines} == {"portable"}
    machine.state.bends = 0.01
    with pytest.raises(CheckFailedError, match="differs from ONNX Runtime"):
        machine.engine(bundle, "decoder")
    machine.state.bends = 0.0
    assert machine.engine(bundle, "decoder", on_progress=stages.append).sidecar.architecture == "portable"
    machine.engine(bundle, "decoder", on_progress=stages.append)
    assert stages == ["decoder: first run on Fake 4090, checking it"] and machine.state.builds == 0
    machine.engine(bundle, "decoder", settings=load_profile("throughput"))  # requested, so it is built for this GPU
    assert machine.state.builds == 1


def test_engines_that_hear_nothing_do_not_ship(tmp_path: Path, travelled: Callable[[Machine], Bundle]) -> None:
    machine = Machine(tmp_path / "cache", "tensorrt-rtx")
    bundle = travelled(machine)
    request = EngineRequest(machine.library, (), ("fp32",), PROFILE, machine.device)
    verify_engines(bundle, [request])
    verify_engines(bundle, [EngineRequest(machine.library, (), ("fp32",), PROFILE, None)])  # no GPU to run on
    machine.state.bends = 0.2  # as by a miscompiled kernel, after the check of each graph
    with pytest.raises(CheckFailedError, match=r"not the model, nothing was written \(.*tensorrt-rtx-fp32"):
        verify_engines(bundle, [request])


def test_generations_are_checked_before_anything_is_built(tmp_path: Path) -> None:
    rtx, plain = Machine(tmp_path, "tensorrt-rtx").library, Machine(tmp_path).library
    assert rtx.architectures() == ("sm86", "sm89", "sm120") and plain.architectures() == ()
    check_architectures(rtx, ["sm86", "sm120"])
    with pytest.raises(EngineError, match="can't build for sm90: choose from sm86, sm89, sm120"):
        check_architectures(rtx, ["sm90"])
    with pytest.raises(EngineError, match="builds only for the GPU in this machine"):
        check_architectures(plain, ["sm90"])


# ------------------------------------------------------------------------------------------- libraries, profiles


def test_versions_of_another_api_are_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for version in ("10.12.0.36", "12.0.0.1", "9.3"):
        machine.state.version = version
        with pytest.raises(EngineError, match=rf"tensorrt {version} is here, this package works with 10.13 up to 12.0"):
            _ = machine.library
    for version in ("10.13.0.35", "11.4.0.5"):
        machine.state.version = version
        assert machine.library.version == version


def test_a_library_that_is_absent_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tensorrt is not installed: pip install 'teso-deploy\[tensorrt\]'"):
        check_installed("tensorrt")


def test_the_plugin_is_taken_where_it_is_registered_and_missed_where_it_is_not(
    machine: Machine, bundle: Bundle
) -> None:
    assert machine.engine(bundle, "visual_encoder", "fp16").sidecar.msda == "function"
    machine.state.plugins = [("MultiscaleDeformableAttnPlugin_TRT", "2")]
    engine = machine.engine(bundle, "visual_encoder", "fp16", rebuild=True)
    assert engine.sidecar.msda == "plugin"
    machine.state.plugins = [("MultiscaleDeformableAttnPlugin_TRT", "1")]
    with pytest.raises(EngineError, match="needs TensorRT's plugin library"):
        machine.engine(bundle, "visual_encoder", "fp16")


def test_a_precision_without_graphs(machine: Machine, tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has no fp16 form for onnx .*: teso-deploy export"):
        machine.engine(Bundle.open(tiny_bundle), precision="fp16")


def test_a_batch_that_the_engine_was_not_built_for(machine: Machine, bundle: Bundle) -> None:
    engine = machine.engine(bundle)
    entry = bundle.manifest.graphs["fusion"]
    feeds = {
        spec.name: np.zeros((5, *map(int, spec.shape[1:])), bool if spec.dtype == "bool" else np.float32)
        for spec in entry.inputs
    }
    with pytest.raises(EngineError, match="takes batches of 1 to 4, not 5"):
        engine.slot().run(feeds)
