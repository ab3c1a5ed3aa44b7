"""The GPU runtime around the engines: what it waits for, what it records, what stays on the device.

The library is a fake that computes with ONNX Runtime. The GPU is a fake that works as late as possible. Our kernels run
on the CPU. The results must equal those of the CPU path.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest

from teso_deploy.backends.cuda import opening
from teso_deploy.backends.cuda.arrays import DeviceArray
from teso_deploy.backends.cuda.device import Device, Module
from teso_deploy.backends.cuda.operators import DeviceOperators
from teso_deploy.backends.cuda.tensors import DeviceTensor, HostInput
from teso_deploy.backends.engine import EngineFactory
from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine, check_available, make_onnxruntime_cuda_factory
from teso_deploy.backends.registry import check_installed
from teso_deploy.backends.tensorrt import bindings
from teso_deploy.backends.tensorrt.bindings import adopt
from teso_deploy.backends.tensorrt.cache import EngineCache
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.factory import make_engine_factory
from teso_deploy.backends.tensorrt.slot import TensorRTSlot
from teso_deploy.bundle import Bundle
from teso_deploy.errors import DeviceError, EngineError, MissingExtraError
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.types import AudioWindow
from teso_deploy.verification.engine_check import check_against_onnxruntime
from tests.support.fake_gpu import FakeDevice
from tests.support.fake_tensorrt import Fake, fake_tensorrt
from tests.unit.kernels_on_host.device import HostDevice, build_runner


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostDevice]:
    device = HostDevice(build_runner(tmp_path_factory.mktemp("runner")))
    yield device
    device.close()


@pytest.fixture
def bundle(full_bundle: Path) -> Bundle:
    return Bundle.open(full_bundle)


@pytest.fixture
def gpu() -> FakeDevice:
    return FakeDevice()


def factory_on(gpu: FakeDevice, folder: Path, **options: Any) -> tuple[EngineFactory, Fake]:
    state = Fake(gpu, is_rtx=False)
    library = adopt("tensorrt", fake_tensorrt(state))
    factory = make_engine_factory(
        library, cast(Device, gpu), check_of=check_against_onnxruntime, cache=EngineCache(folder), **options
    )
    return factory, state


def feeds_of(bundle: Bundle, graph: str, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    rng, feeds = np.random.default_rng(seed), {}
    for spec in bundle.manifest.graphs[graph].inputs:
        values = rng.standard_normal((batch, *map(int, spec.shape[1:]))).astype(np.float32)
        feeds[spec.name] = values > 0 if spec.dtype == "bool" else values
    return feeds


def expected_of(bundle: Bundle, graph: str, feeds: dict[str, Any]) -> dict[str, Any]:
    return OnnxRuntimeEngine(bundle.graph_path(graph)).run(feeds)


def same(found: Any, expected: Any) -> None:
    """Compare up to the rounding of sums in two sessions of ONNX Runtime."""
    np.testing.assert_allclose(found, expected, atol=1e-5)


def sound_of(seed: int) -> AudioWindow:
    return AudioWindow(np.random.default_rng(seed).standard_normal(15_600).astype(np.float32) * 0.1)


# ------------------------------------------------------------------------------------------------ slots


def test_every_run_sees_its_own_inputs(bundle: Bundle, gpu: FakeDevice, tmp_path: Path) -> None:
    slot = factory_on(gpu, tmp_path)[0](bundle, "fusion").slot()
    array = feeds_of(bundle, "fusion")
    for seed in range(4):
        fresh = feeds_of(bundle, "fusion", seed=seed)
        for name, value in fresh.items():
            array[name][:] = value
        outputs = slot.run(array)
        for value in array.values():
            value[:] = 0  # the caller may change its arrays now
        for name, value in expected_of(bundle, "fusion", fresh).items():
            same(outputs[name].numpy(), value)


def test_outputs_stay_on_the_device_and_are_the_same_tensors(bundle: Bundle, gpu: FakeDevice, tmp_path: Path) -> None:
    factory, _ = factory_on(gpu, tmp_path)
    encoder, decoder = factory(bundle, "visual_encoder").slot(), factory(bundle, "decoder").slot()
    queries = feeds_of(bundle, "decoder")["queries"]
    first = encoder.run(feeds_of(bundle, "visual_encoder"))
    pointers = {name: cast(DeviceTensor, tensor).pointer for name, tensor in first.items()}
    decoder.run({**first, "queries": queries})
    for seed in (1, 2, 3):  # not read in between: only events keep the two in order
        image = feeds_of(bundle, "visual_encoder", seed=seed)
        memory = encoder.run(image)
        masks = decoder.run({**memory, "queries": queries})["masks"]
        assert {name: cast(DeviceTensor, tensor).pointer for name, tensor in memory.items()} == pointers
        between = expected_of(bundle, "visual_encoder", image)
        want = expected_of(bundle, "decoder", {**between, "queries": queries})["masks"]
        same(masks.numpy(), want)


def test_nothing_is_written_before_its_reader_is_done(bundle: Bundle, gpu: FakeDevice, tmp_path: Path) -> None:
    factory, _ = factory_on(gpu, tmp_path)
    encoder, slow = factory(bundle, "visual_encoder").slot(), factory(bundle, "decoder").slot()
    image, queries = feeds_of(bundle, "visual_encoder"), feeds_of(bundle, "decoder")["queries"]
    for _ in range(3):  # the first run waits
        masks = slow.run({**encoder.run(image), "queries": queries})["masks"]
    encoder.run(feeds_of(bundle, "visual_encoder", seed=9))["mask_features"].numpy()  # overtakes the decoder
    want = expected_of(bundle, "decoder", {**expected_of(bundle, "visual_encoder", image), "queries": queries})
    same(masks.numpy(), want["masks"])


def test_a_shape_is_recorded_once_and_then_launched(bundle: Bundle, gpu: FakeDevice, tmp_path: Path) -> None:
    factory, state = factory_on(gpu, tmp_path)
    slot = cast(TensorRTSlot, factory(bundle, "fusion").slot())
    state.runs = 0
    for seed in range(5):
        feeds = feeds_of(bundle, "fusion", seed=seed)
        outputs = slot.run(feeds)
        same(outputs["queries"].numpy(), expected_of(bundle, "fusion", feeds)["queries"])
    assert gpu.graph_launches == 4 and state.runs == 5 and slot.note is None
    two = feeds_of(bundle, "fusion", batch=2)  # another shape is another graph
    for _ in range(2):
        outputs = slot.run(two)
    same(outputs["queries"].numpy(), expected_of(bundle, "fusion", two)["queries"])
    assert gpu.graph_launches == 5


def test_without_graphs_and_where_one_can_not_be_recorded(
    bundle: Bundle, gpu: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = cast(TensorRTEngine, factory_on(gpu, tmp_path)[0](bundle, "fusion"))
    slot = engine.slot()
    feeds = feeds_of(bundle, "fusion")
    monkeypatch.setattr(slot, "_execute", refusing_to_be_recorded(slot))
    for _ in range(3):
        found = slot.run(feeds)["queries"].numpy()
    same(found, expected_of(bundle, "fusion", feeds)["queries"])
    assert gpu.graph_launches == 0 and slot.note is not None and "no CUDA graph for fusion" in slot.note
    profile = engine.sidecar.settings.model_copy(update={"cuda_graphs": False})
    engine.sidecar = engine.sidecar.model_copy(update={"settings": profile})
    plain = engine.slot()
    for _ in range(3):
        plain.run(feeds)
    assert gpu.graph_launches == 0 and plain.note is None


def refusing_to_be_recorded(slot: TensorRTSlot) -> Any:
    execute = slot._execute

    def executed() -> None:
        if cast(Any, slot._compute).recording is not None:
            raise DeviceError("this operation is not permitted when a stream is captured")
        execute()

    return executed


def test_more_rows_than_a_batch_go_on_two_streams(bundle: Bundle, gpu: FakeDevice, tmp_path: Path) -> None:
    engine = cast(TensorRTEngine, factory_on(gpu, tmp_path)[0](bundle, "fusion"))
    before = len(gpu.streams)
    feeds = feeds_of(bundle, "fusion", batch=11)
    found = engine.run(feeds)
    for name, value in expected_of(bundle, "fusion", feeds).items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
    compute_streams = [stream for stream in list(gpu.streams.values())[before:] if len(stream.queued) > 3]
    assert len(compute_streams) >= 2


def test_arrays_of_other_libraries_are_taken_where_they_are(bundle: Bundle, gpu: FakeDevice, tmp_path: Path) -> None:
    slot = factory_on(gpu, tmp_path)[0](bundle, "fusion").slot()
    feeds = feeds_of(bundle, "fusion")
    memory = gpu.allocate(feeds["audio"].nbytes)
    writer = gpu.stream()
    gpu.copy_in(memory.pointer, feeds["audio"], writer)
    device = cast(Device, gpu)
    theirs = DeviceArray(memory.pointer, feeds["audio"].shape, np.dtype(np.float32), memory, device, cast(Any, writer))

    class Theirs:
        """An object that has only the interface."""

        __cuda_array_interface__ = theirs.__cuda_array_interface__

    class Host:
        def __init__(self, array: Any) -> None:
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    given = {**feeds, "audio": Theirs(), "cues": Host(feeds["cues"])}
    found = slot.run(given)["queries"].numpy()
    same(found, expected_of(bundle, "fusion", feeds)["queries"])
    wrong = DeviceArray(memory.pointer, feeds["audio"].shape, np.dtype(np.int32), memory, device)
    with pytest.raises(DeviceError, match="int32 was given where float32"):
        slot.run({**feeds, "audio": wrong})


def test_a_tensor_offers_itself_to_other_libraries(gpu: FakeDevice) -> None:
    stream = gpu.stream()
    held = HostInput(cast(Device, gpu), (2, 3), np.float32, stream=cast(Any, stream))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = held.fill(values)
    interface = tensor.array().__cuda_array_interface__
    assert interface["shape"] == (2, 3) and interface["typestr"] == "<f4" and interface["data"][0] == tensor.pointer
    np.testing.assert_array_equal(tensor.numpy(), values)  # queued work has run, because array() waited


def test_wrong_inputs_are_refused(bundle: Bundle, gpu: FakeDevice, tmp_path: Path) -> None:
    factory, _ = factory_on(gpu, tmp_path)
    slot, feeds = factory(bundle, "fusion").slot(), feeds_of(bundle, "fusion")
    with pytest.raises(EngineError, match="takes batches of 1 to 4, not 0"):
        slot.run({name: value[:0] for name, value in feeds.items()})
    tensor = DeviceTensor(cast(Device, gpu), feeds["audio"].shape, np.float16)
    with pytest.raises(EngineError, match="audio is float16, the engine takes float32"):
        slot.run({**feeds, "audio": tensor})


# ------------------------------------------------------------------------------------------------ the pipeline


def test_a_pipeline_on_the_device_gives_the_labels_of_the_cpu(bundle: Bundle, host: HostDevice, tmp_path: Path) -> None:
    gpu = FakeDevice(host)
    factory, _ = factory_on(gpu, tmp_path)
    device, module = cast(Device, gpu), cast(Module, gpu)
    ours = Pipeline(bundle, factory, size="auto", operators=lambda of: DeviceOperators(device, module, of))
    theirs = Pipeline.load(bundle.folder, size="auto")
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, size, np.uint8) for size in ((48, 80, 3), (48, 80, 3), (120, 90, 3), (48, 80, 3))]
    frames.insert(1, frames[0])  # the same frame again
    for i, frame in enumerate(frames):
        for seed in (i, i + 1):
            left, right = (p.segment(frame, sound_of(seed), ["dog"]) for p in (ours, theirs))
            np.testing.assert_array_equal(left.labels, right.labels)
            np.testing.assert_allclose(left.class_scores, right.class_scores, atol=1e-5)
            assert left.labels.any()
            np.testing.assert_allclose(left.probabilities, right.probabilities, atol=1e-5)
    assert ours.runs == theirs.runs and ours.encoder_skips == theirs.encoder_skips
    assert ours.backend == "tensorrt" and ours.precision == "fp32"


def test_streams_do_not_share_what_they_keep(bundle: Bundle, host: HostDevice, tmp_path: Path) -> None:
    gpu = FakeDevice(host)
    device, module = cast(Device, gpu), cast(Module, gpu)
    pipeline = Pipeline(bundle, factory_on(gpu, tmp_path)[0], operators=lambda of: DeviceOperators(device, module, of))
    cpu = Pipeline.load(bundle.folder)
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2)]
    streams = [pipeline.open_stream() for _ in frames]
    for seed in range(3):
        found = [s.segment(f, sound_of(seed)) for s, f in zip(streams, frames, strict=True)]
        for one, frame in zip(found, frames, strict=True):
            np.testing.assert_array_equal(one.labels, cpu.segment(frame, sound_of(seed)).labels)
    assert [stream.runs["visual_encoder"] for stream in streams] == [1, 1]


# ------------------------------------------------------------------------------------- ONNX Runtime, backends


def test_onnxruntime_slots_with_tensors_of_their_own(bundle: Bundle) -> None:
    """The GPU's slot, in host memory."""
    encoder = OnnxRuntimeCudaEngine(bundle.graph_path("visual_encoder"), device="cpu").slot()
    decoder = OnnxRuntimeCudaEngine(bundle.graph_path("decoder"), device="cpu").slot()
    for batch, seed in ((1, 0), (1, 1), (2, 2), (1, 3)):
        image, queries = (
            feeds_of(bundle, "visual_encoder", batch, seed),
            feeds_of(bundle, "decoder", batch, seed)["queries"],
        )
        memory = encoder.run(image)
        masks = decoder.run({**memory, "queries": queries})["masks"].numpy()
        want = expected_of(bundle, "visual_encoder", image)
        want = expected_of(bundle, "decoder", {**want, "queries": queries})
        np.testing.assert_allclose(masks, want["masks"], atol=1e-5)


def test_onnxruntime_takes_what_our_operators_leave(bundle: Bundle, gpu: FakeDevice) -> None:
    slot = OnnxRuntimeCudaEngine(bundle.graph_path("visual_encoder"), device="cpu").slot()
    image = feeds_of(bundle, "visual_encoder")["image"]
    held = HostInput(cast(Device, gpu), image.shape, np.float32, stream=cast(Any, gpu.stream()))
    found = slot.run({"image": held.fill(image)})["mask_features"].numpy()
    np.testing.assert_allclose(
        found, expected_of(bundle, "visual_encoder", {"image": image})["mask_features"], atol=1e-5
    )


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine without GPU and TensorRT, with ONNX Runtime for the CPU."""
    find, load = importlib.util.find_spec, bindings.load_library

    def load_others(target: str) -> bindings.TensorRTLibrary:
        check_installed(target)
        return load(target)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise DeviceError("there is no NVIDIA driver")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorrt" else find(name))
    monkeypatch.setattr(bindings, "load_library", load_others)
    monkeypatch.setattr(opening, "open_device", refuse)


@pytest.mark.usefixtures("bare")
def test_backends_that_are_not_here_say_what_is_missing(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="unknown backend 'tpu': one of auto, cpu, cuda"):
        load_backend(cast(Any, "tpu"), bundle)
    with pytest.raises(MissingExtraError, match=r"has no CUDA: pip uninstall -y onnxruntime"):
        check_available()
    with pytest.raises(MissingExtraError):
        make_onnxruntime_cuda_factory(bundle)
    with pytest.raises(MissingExtraError, match=r"teso-deploy\[tensorrt\]"):
        load_backend("tensorrt", bundle)
    with pytest.raises(DeviceError, match="no NVIDIA"):
        load_backend("tensorrt-rtx", bundle)


@pytest.mark.usefixtures("bare")
def test_auto_takes_the_cpu_where_there_is_nothing_else(bundle: Bundle) -> None:
    notes: list[str] = []
    backend = load_backend("auto", bundle, on_progress=notes.append)
    assert backend.engines(bundle, "fusion").backend == "cpu"
    assert notes[-1] == "backend cpu" and any(note.startswith("not cuda:") for note in notes)
