"""What every test on a GPU begins with. All of them are deselected by default.

What is missing skips a test, unless TESO_REQUIRE_GPU=1 says that all of it has to be there: then the test fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import NoReturn

import pytest

from teso_deploy.backends.cuda.device import CudaLibrary, Device
from teso_deploy.backends.cuda.opening import open_device
from teso_deploy.errors import DeviceError, DeviceMemoryError, MissingExtraError

Absent = Callable[[object], NoReturn]
#: Pieces in which the memory is filled, from large to small: a rest of less than the last one is of no use to anybody.
PIECES_BYTES = tuple(1 << power for power in range(30, 15, -1))


@pytest.fixture(scope="session")
def absent() -> Absent:
    """Ends a test, or a fixture, with what is missing."""

    def end(reason: object) -> NoReturn:
        if os.environ.get("TESO_REQUIRE_GPU") == "1":
            pytest.fail(f"TESO_REQUIRE_GPU=1, and {reason}")
        pytest.skip(str(reason))

    return end


@pytest.fixture(scope="module", params=["cuda-core", "pycuda"])
def device(request: pytest.FixtureRequest, absent: Absent) -> Device:
    """The GPU, through one library and through the other."""
    library: CudaLibrary = request.param
    try:
        return open_device(library, 0)
    except (DeviceError, MissingExtraError) as error:
        absent(error)


@pytest.fixture(scope="session")
def gpu(absent: Absent) -> Device:
    """The GPU, through the library that the package takes."""
    try:
        return open_device()
    except (DeviceError, MissingExtraError) as error:
        absent(error)


@pytest.fixture(scope="session")
def cuda_torch(absent: Absent) -> None:
    """Torch sees a GPU."""
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return
    absent("torch sees no CUDA device")


@contextmanager
def full_memory(gpu: Device) -> Iterator[None]:
    """Inside, nothing is left; whatever happens there, it is given back."""
    with ExitStack() as filled:
        for nbytes in PIECES_BYTES:
            while True:
                try:
                    memory = gpu.allocate(nbytes)
                except DeviceMemoryError:
                    break
                filled.callback(memory.close)
        yield
