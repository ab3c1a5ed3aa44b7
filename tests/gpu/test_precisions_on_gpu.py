"""The shipped bundle in bfloat16 and int8, by TensorRT and TensorRT-RTX on a real GPU: the CPU's masks, and silence."""

from __future__ import annotations

from itertools import product

import pytest

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.tensorrt.targets import TARGETS
from teso_deploy.bundle import Bundle
from teso_deploy.pipeline.video_source import Moment
from teso_deploy.types import Precision
from tests.gpu.conftest import (
    Absent,
    Labels,
    Running,
    assert_labels_agree,
    assert_muted_clip_is_blank,
    load_running,
)

pytestmark = pytest.mark.gpu

#: ONNX Runtime's CUDA provider has few operators in these precisions.
OTHERS: tuple[Precision, ...] = ("bf16", "int8")


@pytest.fixture(scope="module")
def rounded(bundle: Bundle) -> Bundle:
    """Return the bundle with the forms of these precisions, int8 calibrated on the shipped clip."""
    from teso_deploy.conversion.derive import derive_bundle

    return derive_bundle(bundle, bundle.folder.parent / "rounded", ("fp32", *OTHERS))[0]


@pytest.fixture(scope="module", params=list(product(TARGETS, OTHERS)), ids="-".join)
def running(request: pytest.FixtureRequest, rounded: Bundle, gpu: Device, absent: Absent) -> Running:
    name, precision = request.param
    return load_running(name, precision, rounded, gpu, absent)


def test_labels_are_those_of_the_cpu_and_silence_is_blank(
    running: Running, moments: list[Moment], cues: list[str], expected: list[Labels]
) -> None:
    pipeline = running.pipeline()
    assert pipeline.backend == running.name and pipeline.form == f"onnx-{running.precision}"
    for moment, wanted in zip(moments, expected, strict=True):
        assert_labels_agree(pipeline.segment(moment.frame, moment.sound, cues).labels, wanted, running.precision)
    assert_muted_clip_is_blank(pipeline, cues)
