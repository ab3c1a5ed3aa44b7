"""Memory, streams, kernels and arrays on a GPU, through cuda-core and through PyCUDA: the same checks for both."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from teso_deploy.backends.cuda.arrays import DeviceArray, take_array
from teso_deploy.backends.cuda.device import Device
from teso_deploy.errors import DeviceError
from tests.support.device_checks import CHECKS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_device(device: Device, check: Callable[[Device], None]) -> None:
    check(device)


@pytest.mark.usefixtures("cuda_torch")
def test_torch_reads_and_writes_our_memory(device: Device) -> None:
    import torch
    from torch.utils.dlpack import from_dlpack

    stream = device.stream()
    source = np.arange(12, dtype=np.float32).reshape(3, 4)
    memory = device.allocate(source.nbytes)
    for version in ((1, 0), None):
        device.copy_in(memory.pointer, source, stream)
        array = DeviceArray(memory.pointer, (3, 4), np.dtype("f4"), memory, device, stream)
        tensor = from_dlpack(array)
        if version is None:
            tensor = torch.as_tensor(array, device="cuda")
        assert tensor.data_ptr() == memory.pointer and tensor.is_cuda
        assert torch.equal(tensor.cpu(), torch.from_numpy(source))
        tensor += 1
        torch.cuda.synchronize()
        assert np.array_equal(array.numpy(), source + 1)
    del array, memory
    gc.collect()
    assert torch.equal(tensor.cpu(), torch.from_numpy(source) + 1)


@pytest.mark.usefixtures("cuda_torch")
def test_we_read_memory_of_torch_behind_what_it_has_queued(device: Device) -> None:
    import torch

    stream = device.stream()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        tensor = torch.zeros(1 << 20, device="cuda")
        for _ in range(200):
            tensor += 1
        for behind in (stream, None):
            array = take_array(tensor, device, behind)
            assert array.pointer == tensor.data_ptr() and np.all(array.numpy() == 200)
    with pytest.raises(DeviceError, match="not in C order"):
        take_array(tensor.reshape(1024, 1024).T, device)
    with pytest.raises(DeviceError, match="can't be shared"):
        take_array(torch.zeros(3, device="cuda", requires_grad=True), device)
    host = take_array(torch.arange(3.0), device)
    assert host.is_on_host and np.array_equal(host.numpy(), [0, 1, 2])


@pytest.mark.usefixtures("cuda_torch")
def test_torch_has_the_same_context(device: Device) -> None:
    import torch

    from teso_deploy.backends.cuda.libcuda import Libcuda

    torch.zeros(1, device="cuda")
    theirs = Libcuda().current_context()
    device.allocate(16).close()
    assert Libcuda().current_context() == theirs
    device.activate()
    assert Libcuda().current_context() == theirs
