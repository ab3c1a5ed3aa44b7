"""The slot of ONNX Runtime on a GPU, simulated in host memory: each run uses its own inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.cuda.tensors import DeviceTensor, HostInput
from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine, OnnxRuntimeCudaSlot
from teso_deploy.bundle import Bundle
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError
from tests.support.fake_gpu import FakeDevice

Image = NDArray[np.float32]


@pytest.fixture(scope="module")
def path(tiny_bundle: Path) -> Path:
    return Bundle.open(tiny_bundle).graph_path("visual_encoder")


@pytest.fixture
def slot(path: Path) -> OnnxRuntimeCudaSlot:
    return OnnxRuntimeCudaEngine(path, device="cpu").slot()


def image_of(seed: int, batch: int = 1) -> Image:
    return np.random.default_rng(seed).standard_normal((batch, 3, 64, 64)).astype(np.float32)


def held_by(gpu: FakeDevice, image: Image) -> DeviceTensor:
    return HostInput(cast(Device, gpu), image.shape, image.dtype, stream=cast(Any, gpu.stream())).fill(image)


def assert_is_of(slot: OnnxRuntimeCudaSlot, path: Path, given: Any, image: Image) -> None:
    expected = OnnxRuntimeEngine(path).run({"image": image})
    for name, tensor in slot.run({"image": given}).items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], atol=1e-5)


def test_an_input_may_come_from_elsewhere_each_time(slot: OnnxRuntimeCudaSlot, path: Path) -> None:
    """It may come from the host, from a tensor of our operators or from another session; the shape stays the same."""
    gpu = FakeDevice()
    for seed in range(2):
        images = [image_of(10 * seed + i) for i in range(4)]
        assert_is_of(slot, path, images[0], images[0])
        assert_is_of(slot, path, held_by(gpu, images[1]), images[1])
        assert_is_of(slot, path, images[2], images[2])
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images[3], "cpu", 0)
        assert_is_of(slot, path, value, images[3])


class Failing:
    """A session that fails while ``is_failing`` is set, after its inputs were bound."""

    def __init__(self, session: Any, says: str) -> None:
        self._session, self._says, self.is_failing = session, says, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        if self.is_failing:
            raise RuntimeError(self._says)
        self._session.run_with_iobinding(binding)


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("Failed to allocate memory for requested buffer of size 1024", DeviceMemoryError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", DeviceMemoryError),
        ("CUDA failure 700: an illegal memory access was encountered", DeviceError),
    ],
)
def test_a_run_that_fails_leaves_nothing_behind(
    slot: OnnxRuntimeCudaSlot, path: Path, says: str, kind: type[Exception]
) -> None:
    first = slot.run({"image": image_of(0)})
    slot._session = session = Failing(slot._session, says)
    for batch in (2, 1):
        session.is_failing = True
        with pytest.raises(kind) as raised:
            slot.run({"image": image_of(1, batch)})
        assert type(raised.value) is kind and "\n" not in str(raised.value)
        session.is_failing = False
        for seed in (2, 3):  # of the previous shape
            image = image_of(seed, 3 - batch)
            assert_is_of(slot, path, image, image)
    outputs = slot.run({"image": image_of(4)})
    assert outputs.keys() == first.keys()
    assert slot.run({"image": image_of(5)}) is outputs, "the same tensors, as long as the shapes stay"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8])
def test_an_input_of_another_type_is_refused(slot: OnnxRuntimeCudaSlot, path: Path, dtype: Any) -> None:
    """An address has no type, so the data would be misread without an error."""
    wrong = image_of(0).astype(dtype)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(wrong, "cpu", 0)
    for given in (wrong, held_by(FakeDevice(), cast(Any, wrong)), value):
        with pytest.raises(EngineError, match=r"visual_encoder: image is .*, the graph takes float32: convert it"):
            slot.run({"image": given})
    assert_is_of(slot, path, image_of(1), image_of(1))


def test_no_memory_for_the_weights_is_no_broken_bundle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9")

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(DeviceMemoryError, match="the GPU has too little memory"):
        OnnxRuntimeCudaEngine(path)
