"""The reported stages of a frame if the engines only queue their work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.cuda.device import Device, Module
from teso_deploy.backends.cuda.operators import DeviceOperators
from teso_deploy.backends.cuda.tensors import DeviceTensor
from teso_deploy.backends.engine import Tensor
from teso_deploy.backends.tensorrt.bindings import adopt
from teso_deploy.backends.tensorrt.cache import EngineCache
from teso_deploy.backends.tensorrt.factory import make_engine_factory
from teso_deploy.bundle import Bundle
from teso_deploy.latency import LatencyLog
from teso_deploy.pipeline.pipeline import Pipeline
from tests.support.fake_gpu import FakeDevice
from tests.support.fake_tensorrt import Fake, fake_tensorrt
from tests.unit.kernels_on_host.device import HostDevice, build_runner


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostDevice]:
    device = HostDevice(build_runner(tmp_path_factory.mktemp("runner")))
    yield device
    device.close()


def test_the_frame_is_timed_and_no_stage_of_it(
    tiny_bundle: Path, host: HostDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, order = FakeDevice(host), list[str]()
    device, module = cast(Device, gpu), cast(Module, gpu)

    class Told(DeviceOperators):
        def labels(self, masks: Tensor, size: tuple[int, int], shares: tuple[float, float]) -> NDArray[np.uint8]:
            order.append("labels")
            return super().labels(masks, size, shares)

    download = DeviceTensor.numpy

    def numpy(tensor: DeviceTensor) -> NDArray[Any]:
        order.append("scores" if tensor.shape[1] == classes else "other")
        return download(tensor)

    bundle = Bundle.open(tiny_bundle)
    factory = make_engine_factory(
        adopt("tensorrt", fake_tensorrt(Fake(gpu, is_rtx=False))), device, cache=EngineCache(tmp_path)
    )
    pipeline = Pipeline(bundle, factory, operators=lambda of: Told(device, module, of))
    classes = len(pipeline.classes)
    monkeypatch.setattr(DeviceTensor, "numpy", numpy)
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    found = pipeline.segment(picture, np.zeros(15_600, np.float32), ["dog"])
    assert order.index("labels") < order.index("scores"), "labels are queued behind the graphs, without the host"
    assert list(found.stamps) == ["started", "segmented"]
    log = LatencyLog()
    log.add(found.stamps)
    assert list(log.summary()) == ["segmented", "frame"]
    wanted = Pipeline.load(tiny_bundle).segment(picture, np.zeros(15_600, np.float32), ["dog"])
    assert list(wanted.stamps) == ["started", "encoded", "heard", "fused", "masked", "labelled"]
    np.testing.assert_allclose(found.class_scores, wanted.class_scores, atol=1e-5)
    np.testing.assert_array_equal(found.labels, wanted.labels)
