"""Fixtures of the GPU tests, all of which are deselected by default.

A missing requirement skips a test. With TESO_REQUIRE_GPU=1 the test fails instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.contracts import Backend
from teso_deploy.backends.cuda.device import CudaLibrary, Device
from teso_deploy.backends.cuda.opening import open_device
from teso_deploy.backends.engine import Engine
from teso_deploy.backends.registry import BackendName
from teso_deploy.backends.tensorrt.bindings import load_library
from teso_deploy.backends.tensorrt.sidecar import name_architecture
from teso_deploy.backends.tensorrt.targets import Target
from teso_deploy.bundle import Bundle
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError, MissingExtraError
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_source import Moment, VideoSource
from teso_deploy.resources import find_shipped_path
from teso_deploy.types import BLANK_PIXEL_RATE, Precision
from teso_deploy.verification.parity import LIMITS

Absent = Callable[[object], NoReturn]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
Labels = NDArray[np.uint8]
#: The memory is filled in pieces of these sizes, from large to small. A rest below the last size is useless.
PIECES_BYTES = tuple(1 << power for power in range(30, 15, -1))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let warnings not fail the tests here: which warnings CUDA's libraries give is only seen on a GPU."""
    item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def absent() -> Absent:
    """Return a function that ends a test or a fixture because something is missing."""

    def end(reason: object) -> NoReturn:
        if os.environ.get("TESO_REQUIRE_GPU") == "1":
            pytest.fail(f"TESO_REQUIRE_GPU=1, and {reason}")
        pytest.skip(str(reason))

    return end


@pytest.fixture(scope="module", params=["cuda-core", "pycuda"])
def device(request: pytest.FixtureRequest, absent: Absent) -> Device:
    """Open the GPU through each of the two libraries."""
    library: CudaLibrary = request.param
    try:
        return open_device(library, 0)
    except (DeviceError, MissingExtraError) as error:
        absent(error)


@pytest.fixture(scope="session")
def gpu(absent: Absent) -> Device:
    """Open the GPU through the library that the package prefers."""
    try:
        return open_device()
    except (DeviceError, MissingExtraError) as error:
        absent(error)


@pytest.fixture(scope="session")
def cuda_torch(absent: Absent) -> None:
    """Require that torch sees a GPU."""
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return
    absent("torch sees no CUDA device")


@contextmanager
def full_memory(gpu: Device) -> Iterator[None]:
    """Fill the GPU's memory during the test, and release it afterwards in any case."""
    with ExitStack() as filled:
        for nbytes in PIECES_BYTES:
            while True:
                try:
                    memory = gpu.allocate(nbytes)
                except DeviceMemoryError:
                    break
                filled.callback(memory.close)
        yield


# ------------------------------------------------------------------------------------------ the shipped bundle


@dataclass(frozen=True)
class Running:
    """A bundle on a backend in one precision."""

    name: BackendName
    precision: Precision
    bundle: Bundle
    backend: Backend

    def engine(self, graph: str) -> Engine:
        return self.backend.engines(self.bundle, graph)

    def pipeline(self) -> Pipeline:
        return Pipeline(self.bundle, self.backend.engines, operators=self.backend.operators)


def is_listed(target: Target, gpu: Device) -> bool:
    """Return whether a library claims to run on a GPU. TensorRT builds for any GPU that exists."""
    known = load_library(target).architectures()
    return not known or name_architecture(gpu.compute_capability) in known


def load_running(name: BackendName, precision: Precision, bundle: Bundle, gpu: Device, absent: Absent) -> Running:
    """Load a bundle on a backend. Skip the test if the library does not list this GPU."""
    notes: list[str] = []
    try:
        backend = load_backend(name, bundle, precision, on_progress=notes.append)
    except MissingExtraError as error:
        absent(error)
    assert backend.operators is not None, f"the operators are not on the GPU: {notes[-1]}"
    try:
        backend.engines(bundle, "fusion")
    except (EngineError, DeviceError) as error:
        if name == "cuda" or is_listed(name, gpu):
            raise
        # Nothing is missing, so TESO_REQUIRE_GPU does not make this a failure: see
        # test_tensorrt_rtx_answers_in_a_sentence.
        pytest.skip(f"{name} does not list {gpu.name}, and refuses it: {error}")
    return Running(name, precision, bundle, backend)


@pytest.fixture(scope="session")
def bundle(gpu: Device, absent: Absent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """Open the shipped bundle with its graphs in half precision. Everything built from it is kept with it."""
    if find_spec("onnx_ir") is None:
        absent("onnx-ir, which derives half precision, is not installed: pip install 'teso-deploy[export]'")
    from teso_deploy.conversion.derive import derive_bundle

    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield derive_bundle(Bundle.open(), folder / "nano", PRECISIONS)[0]


@pytest.fixture(scope="session")
def moments() -> list[Moment]:
    """Return ten frames of the shipped clip, a second apart, each with its sound."""
    with VideoSource(find_shipped_path("export/demo/clip.mp4"), fps=1) as source:
        return list(source)


@pytest.fixture(scope="session")
def cues() -> list[str]:
    return list(json.loads(find_shipped_path("export/demo/clip.json").read_text(encoding="utf-8"))["visible"])


@pytest.fixture(scope="session")
def expected(bundle: Bundle, moments: list[Moment], cues: list[str]) -> list[Labels]:
    """Return the labels of the CPU."""
    pipeline = Pipeline.load(bundle.folder)
    found = [pipeline.segment(moment.frame, moment.sound, cues).labels for moment in moments]
    assert sum(labels.any() for labels in found) >= 3, "the clip has something that sounds"
    return found


def assert_labels_agree(found: Labels, expected: Labels, precision: Precision) -> None:
    """Check labels against the table of limits. In fp32, a few pixels on an outline may differ."""
    limits = LIMITS[precision].pytorch
    assert (found == expected).mean() >= limits.pixel_agreement
    either = np.count_nonzero((found > 0) | (expected > 0))
    if either >= BLANK_PIXEL_RATE * found.size:
        assert np.count_nonzero((found == expected) & (found > 0)) / either >= limits.mask_iou


def assert_muted_clip_is_blank(pipeline: Pipeline, cues: list[str]) -> None:
    """Check every frame of the shipped clip without sound, as `demo` does: 99 % must be blank."""
    found = list(pipeline.stream(find_shipped_path("export/demo/clip.mp4"), cues, mute=True))
    rates = [one.positive_pixel_rate for one in found if not one.is_blank]
    assert found and len(rates) <= 0.01 * len(found), rates
