"""Slots of engines: alternating shapes, full memory, buffers in use, arrays of other libraries; inspector, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from teso_deploy.backends.cuda.arrays import DeviceArray
from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.cuda.tensors import HostInput
from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.backends.tensorrt.bindings import adopt
from teso_deploy.backends.tensorrt.cache import EngineCache
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.factory import make_engine_factory
from teso_deploy.backends.tensorrt.inspection import read_shares
from teso_deploy.backends.tensorrt.slot import MOST_SHAPES
from teso_deploy.backends.tensorrt.targets import Target
from teso_deploy.bundle import Bundle
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError
from tests.support.fake_gpu import FakeDevice, FakeStream
from tests.support.fake_tensorrt import Diagnostics, Fake, fake_tensorrt


class Machine:
    """Engines of the fusion, for batches of 1 to 4, on a GPU that works as late as possible."""

    def __init__(self, bundle: Bundle, folder: Path, target: Target = "tensorrt") -> None:
        self.bundle, self.gpu = bundle, FakeDevice()
        self.device = cast(Device, self.gpu)
        self.state = Fake(self.gpu, target == "tensorrt-rtx")
        library = adopt(target, fake_tensorrt(self.state))
        self.factory = make_engine_factory(library, self.device, cache=EngineCache(folder))
        self.onnxruntime = OnnxRuntimeEngine(bundle.graph_path("fusion"))

    def engine(self) -> TensorRTEngine:
        return cast(TensorRTEngine, self.factory(self.bundle, "fusion"))

    def feeds(self, batch: int = 1, seed: int = 0) -> dict[str, Any]:
        rng, feeds = np.random.default_rng(seed), {}
        for spec in self.bundle.manifest.graphs["fusion"].inputs:
            values = rng.standard_normal((batch, *map(int, spec.shape[1:]))).astype(np.float32)
            feeds[spec.name] = values > 0 if spec.dtype == "bool" else values
        return feeds

    def check(self, outputs: Any, feeds: dict[str, Any]) -> None:
        for name, want in self.onnxruntime.run(feeds).items():
            np.testing.assert_allclose(outputs[name].numpy(), want, atol=1e-5)


@pytest.fixture
def machine(full_bundle: Path, tmp_path: Path) -> Machine:
    return Machine(Bundle.open(full_bundle), tmp_path)


@pytest.fixture
def rtx(full_bundle: Path, tmp_path: Path) -> Machine:
    return Machine(Bundle.open(full_bundle), tmp_path, "tensorrt-rtx")


# ------------------------------------------------------------------------------------------------ shapes, memory


def test_memory_that_ends_at_a_larger_batch_leaves_the_slot_as_it_was(machine: Machine) -> None:
    slot = machine.engine().slot()
    one, four = machine.feeds(), machine.feeds(4, seed=1)
    machine.check(slot.run(one), one)
    machine.gpu.total_bytes = machine.gpu.used_bytes + 2000  # the first output of four rows fits, but not the next one
    for _ in range(2):
        with pytest.raises(DeviceMemoryError):
            slot.run(four)
    machine.check(slot.run(one), one)
    machine.gpu.total_bytes = 8 << 30
    machine.check(slot.run(four), four)
    with pytest.raises(EngineError, match="takes batches of 1 to 4, not 5"):
        slot.run({**one, "cues": np.repeat(one["cues"], 5, 0)})
    machine.check(slot.run(one), one)


def test_other_shapes_make_room(machine: Machine) -> None:
    slot = machine.engine().slot()
    for batch in (1, 2, 3):
        slot.run(machine.feeds(batch))
    used = machine.gpu.used_bytes
    machine.gpu.total_bytes = used  # no memory is left except what the others hold
    four = machine.feeds(4)
    machine.check(slot.run(four), four)
    assert machine.gpu.used_bytes < used


def test_shapes_that_alternate_keep_their_graphs_and_outputs(machine: Machine) -> None:
    slot = machine.engine().slot()
    pointers: dict[int, int] = {}
    for seed, batch in enumerate((4, 4, 3, 4, 3, 4, 3)):
        feeds = machine.feeds(batch, seed)
        outputs = slot.run(feeds)
        assert pointers.setdefault(batch, outputs["queries"].pointer) == outputs["queries"].pointer
        machine.check(outputs, feeds)
    assert machine.gpu.graph_launches == 5, "only the first run of each shape is without"


def test_no_more_shapes_are_kept_than_was_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teso_deploy.backends.tensorrt.slot.MOST_SHAPES", 2)
    slot = machine.engine().slot()
    for batch in (1, 2, 1, 3, 1, 2):  # 3 replaces 2, and 2 then replaces 3
        feeds = machine.feeds(batch, seed=batch)
        machine.check(slot.run(feeds), feeds)
    assert len(slot._kept) == 2 and machine.gpu.graph_launches == 2 and MOST_SHAPES == 4


def test_a_graph_holds_for_one_set_of_addresses(machine: Machine) -> None:
    slot, feeds = machine.engine().slot(), machine.feeds()
    held = [
        HostInput(machine.device, feeds["audio"].shape, np.float32, stream=cast(Any, machine.gpu.stream()))
        for _ in "ab"
    ]
    for seed in range(6):
        given = machine.feeds(seed=seed)
        outputs = slot.run({**given, "audio": held[seed % 2].fill(given["audio"])})
        machine.check(outputs, given)
    assert machine.gpu.graph_launches == 4 and len(slot._graphs) == 2


def test_no_rows_and_rows_that_differ(machine: Machine) -> None:
    engine = machine.engine()
    found, want = engine.run(machine.feeds(0)), machine.onnxruntime.run(machine.feeds())
    assert {name: array.shape for name, array in found.items()} == {n: (0, *a.shape[1:]) for n, a in want.items()}
    assert all(found[name].dtype == array.dtype for name, array in want.items())
    with pytest.raises(EngineError, match=r"was given 2 of audio and 1 of cues: give the same number of rows"):
        engine.run({**machine.feeds(2), "cues": machine.feeds()["cues"]})


def test_memory_is_only_short_where_it_is(machine: Machine) -> None:
    engine, state = machine.engine(), machine.state
    slot = engine.slot()
    state.refuses_context = "Error Code 3: the plugin has no stream"
    with pytest.raises(EngineError, match=r"can't be given an execution context .*the plugin has no stream"):
        slot.run(machine.feeds())
    state.refuses_context = "[x.cpp::y::1] Error Code 2: OutOfMemory (no further information)"
    with pytest.raises(DeviceMemoryError, match=r"fusion can't be given an execution context: .* are free"):
        slot.run(machine.feeds())
    state.refuses_context, state.refuses_run = None, "Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(DeviceMemoryError, match=r"fusion did not run: .* are free"):
        slot.run(machine.feeds())
    state.refuses_run = "Error Code 1: Myelin (no kernel)"
    with pytest.raises(DeviceError, match=r"did not run .*no kernel") as raised:
        slot.run(machine.feeds())
    assert not isinstance(raised.value, DeviceMemoryError)
    state.refuses_run, machine.gpu.total_bytes = None, machine.gpu.used_bytes + 999_999
    with pytest.raises(DeviceMemoryError, match="a profile with batches of up to 3 would fit"):
        engine.slot()


# ------------------------------------------------------------------------------------------------ readers, owners


def test_a_second_fill_waits_for_the_copy_and_for_the_reader(machine: Machine) -> None:
    gpu = machine.gpu
    copies, compute = gpu.stream(), gpu.stream()
    held = HostInput(machine.device, (4,), np.float32, stream=cast(Any, copies))
    read = np.zeros(4, np.float32)
    tensor = held.fill(np.ones(4, np.float32))
    tensor.wait_ready(cast(Any, compute))
    gpu.copy_out(read, tensor.pointer, compute)
    tensor.read_until("reader", cast(Any, compute.record()))
    held.fill(np.full(4, 2, np.float32))
    copies.synchronize()  # it overtakes the reader unless something prevents that
    compute.synchronize()
    np.testing.assert_array_equal(read, 1)
    np.testing.assert_array_equal(tensor.numpy(), 2)


def test_buffers_live_until_what_was_queued_on_them_has_run(machine: Machine) -> None:
    gpu = machine.gpu
    copies, compute = gpu.stream(), gpu.stream()
    held = HostInput(machine.device, (4,), np.float32, stream=cast(Any, copies))
    read = np.zeros(4, np.float32)
    tensor = held.fill(np.ones(4, np.float32))
    del held  # and the page-locked memory that the copy comes from
    tensor.wait_ready(cast(Any, compute))
    gpu.copy_out(read, tensor.pointer, compute)
    tensor.read_until("reader", cast(Any, compute.record()))
    del tensor
    compute.synchronize()
    np.testing.assert_array_equal(read, 1)
    assert gpu.used_bytes == 0


def test_a_slot_that_goes_ends_its_work_first(machine: Machine) -> None:
    slot, feeds = machine.engine().slot(), machine.feeds()
    stream = cast(Any, machine.gpu.stream())
    held = {name: HostInput(machine.device, value.shape, value.dtype, stream=stream) for name, value in feeds.items()}
    ran = machine.state.runs
    for _ in range(3):
        outputs = slot.run({name: held[name].fill(value) for name, value in feeds.items()})
    assert machine.state.runs < ran + 3
    del slot
    assert machine.state.runs == ran + 3, "its contexts and graphs are gone by now"
    machine.check(outputs, feeds)


class Lent:
    """An array on the GPU with only the CUDA array interface. ``stream``: the stream that it names."""

    def __init__(self, machine: Machine, values: Any, stream: FakeStream | None) -> None:
        self.memory = machine.gpu.allocate(values.nbytes)
        machine.gpu.write(self.memory.pointer, values)
        array = DeviceArray(self.memory.pointer, values.shape, values.dtype, self.memory, machine.device)
        handle = stream.handle if stream else None
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, "stream": handle}


@pytest.mark.parametrize("names_stream", [True, False])
def test_who_lends_an_array_may_write_it_behind_the_call(machine: Machine, names_stream: bool) -> None:
    gpu, slot, feeds = machine.gpu, machine.engine().slot(), machine.feeds()
    theirs = gpu.stream()
    lent = Lent(machine, feeds["audio"], theirs if names_stream else None)
    given = {**feeds, "audio": lent}
    for _ in range(3):
        outputs = slot.run(given)
    ran = machine.state.runs
    other = np.full_like(feeds["audio"], 9)
    gpu.copy_in(lent.memory.pointer, other, theirs)
    theirs.synchronize()  # at once, before the outputs are read
    machine.check(outputs, feeds)
    assert names_stream or machine.state.runs == ran, "the host has waited already"


# ------------------------------------------------------------------------------------------------ TensorRT-RTX


def test_engines_of_rtx_can_be_recorded(rtx: Machine) -> None:
    slot, feeds = rtx.engine().slot(), rtx.feeds()
    for _ in range(3):
        outputs = slot.run(feeds)
    rtx.check(outputs, feeds)
    assert rtx.gpu.graph_launches == 2 and slot.note is None
    assert json.loads(rtx.state.deserialized[-1])["flags"] == ["REQUIRE_USER_ALLOCATION"]


def test_what_rtx_says_can_not_be_recorded_is_not(rtx: Machine) -> None:
    rtx.state.is_capturable = False
    slot, feeds = rtx.engine().slot(), rtx.feeds()
    for _ in range(3):
        outputs = slot.run(feeds)
    rtx.check(outputs, feeds)
    assert rtx.gpu.graph_launches == 0 and slot.note is not None and "tensorrt-rtx says" in slot.note


@pytest.mark.parametrize(
    ("bits", "kind", "says"),
    [
        (Diagnostics.VERSION_MISMATCH, EngineError, r"built by tensorrt-rtx 1.7.1.116, but"),
        (Diagnostics.UNSUPPORTED_CC, EngineError, r"is not for Fake 4090 \(compute capability 8.9; .* sm89\)"),
        (Diagnostics.OLD_CUDA_DRIVER, DeviceError, r"needs a newer NVIDIA driver than the one installed \(CUDA 13.0\)"),
        (Diagnostics.OLD_CUDA_RUNTIME, DeviceError, "needs a newer CUDA runtime .*pip install --upgrade"),
        (Diagnostics.INSUFFICIENT_GPU_MEMORY, DeviceMemoryError, "fusion does not fit: it has .* are free"),
        (Diagnostics.MALFORMED_ENGINE, EngineError, "has a format that tensorrt-rtx 1.7.1.116 can't read"),
        (Diagnostics.CUDA_ERROR, DeviceError, "no answer from CUDA: run .*doctor"),
        (Diagnostics.OLD_CUDA_DRIVER | Diagnostics.UNSUPPORTED_CC, DeviceError, "newer NVIDIA driver"),
        (1 << 20, EngineError, "does not run here, .* 0x100000"),
    ],
)
def test_each_reason_against_an_engine_is_a_sentence(rtx: Machine, bits: int, kind: type, says: str) -> None:
    rtx.state.invalid = int(bits)
    with pytest.raises(kind, match=says) as raised:
        rtx.engine()
    assert "\n" not in str(raised.value) and isinstance(raised.value, DeviceMemoryError) == (kind is DeviceMemoryError)


# ------------------------------------------------------------------------------------------------ the inspector


def describe_layer(*outputs: dict[str, str], key: str = "Outputs", **more: Any) -> str:
    layers = [{"Name": f"conv{i}", "LayerType": "gemm", key: [one]} for i, one in enumerate(outputs)]
    return json.dumps({"Layers": [*layers, *([more] if more else [])]})


HALF, UNSAID = {"Format/Datatype": "Half"}, {"Format/Datatype": "N/A due to dynamic shapes"}


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        (
            describe_layer(HALF, {"Format/Datatype": "Row major linear FP32 format (kLINEAR)"}),
            {"fp16": 0.5, "fp32": 0.5},
        ),
        (describe_layer(HALF, {"format/datatype": "Half"}, key="outputs"), {"fp16": 1.0}),
        (describe_layer({"DataType": "BFloat16", "Format": "Row major linear"}, {"Datatype": "BF16"}), {"bf16": 1.0}),
        (describe_layer({"DataType": "FP8"}, {"Data Type": "Int8"}), {"fp8": 0.5, "int8": 0.5}),
        (describe_layer(UNSAID, UNSAID), {}),
        (describe_layer(UNSAID, UNSAID, UNSAID, {"Format/Datatype": "Float"}), {}),
        (describe_layer(HALF, HALF, HALF, UNSAID), {"fp16": 1.0}),
        (describe_layer({"Datatype": "Float"}, Name="{ForeignNode[a...b]}", LayerType="Myelin", Outputs=[]), {}),
        (describe_layer({"Datatype": "Float"}, Name="{ForeignNode[a...b]}", Outputs=[HALF]), {}),
        (describe_layer({"Datatype": "Int64"}), {}),
        ('{"Layers": null}', {}),
        ("[]", {}),
        ("no JSON", {}),
    ],
)
def test_shares_are_only_told_where_they_stand_for_the_engine(text: str, shares: dict[str, float]) -> None:
    assert read_shares(text) == shares


def test_an_engine_that_hides_its_types_is_not_refused(machine: Machine) -> None:
    machine.state.inspected = describe_layer(
        {"Datatype": "Int32"}, Name="{ForeignNode[a...b]}", LayerType="Myelin", Outputs=[HALF]
    )
    sidecar = machine.engine().sidecar
    assert (sidecar.shares_from, sidecar.shares) == ("network", {"fp32": 1.0})
