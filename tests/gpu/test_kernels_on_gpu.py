"""The CUDA operators on a real GPU, through both libraries: equal to the references and to the CPU path."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.cuda import references
from teso_deploy.backends.cuda.compiling import compile_kernels
from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.cuda.kernels import Postprocess, Preprocess, load_kernels
from teso_deploy.backends.cuda.plans import LUMA_SHARES, Labels, RgbPictures, Scores, is_rows_first
from teso_deploy.errors import DeviceError, MissingExtraError
from teso_deploy.labels import labels_of
from teso_deploy.pipeline.preprocess import compute_fitted_size, normalise_picture, resize_picture
from teso_deploy.resources import find_shipped_path
from teso_deploy.types import ImageSize
from tests.gpu.conftest import Absent
from tests.support.operators import MEAN, STD, Operators

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def operators(device: Device, absent: Absent, tmp_path_factory: pytest.TempPathFactory) -> Operators:
    try:
        module = load_kernels(device, cache=tmp_path_factory.mktemp("kernels"))
    except (DeviceError, MissingExtraError) as error:
        absent(error)
    return Operators(device, module, device.stream())


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def probabilities(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).beta(0.4, 0.4, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "bucket", "fit"),
    [
        ((1080, 1920), (288, 512), "stretch"),
        ((1080, 1920), (384, 384), "pad"),
        ((1919, 1081), (224, 224), "stretch"),
        ((360, 640), (384, 384), "stretch"),
        ((2160, 3840), (8, 8), "stretch"),
        ((300, 200), (288, 512), "stretch"),  # the rows are resized first
        ((384, 384), (384, 384), "stretch"),
        ((1, 1), (64, 96), "pad"),
        ((33, 77), (1, 1), "stretch"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pictures_equal_those_of_the_cpu_path(
    operators: Operators, size: ImageSize, bucket: ImageSize, fit: str, dtype: Any
) -> None:
    pictures = noise(3, *size, 3)
    fitted = compute_fitted_size(pictures[0], bucket, fit)
    made = operators.rgb(pictures, bucket, fitted, dtype, gap_bytes=37)
    expected = [
        normalise_picture(resize_picture(picture, fitted), mean=MEAN, std=STD, bucket=bucket)[0].astype(dtype)
        for picture in pictures
    ]
    np.testing.assert_array_equal(made, np.stack(expected))


@functools.cache
def nv12_and_reference(
    size: ImageSize, is_full_range: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[Any]]:
    """Return luma, chroma, and the float64 result, which takes seconds."""
    height, width = size
    batch = 1 if height > 1000 else 2
    luma, chroma = noise(batch, height, width), noise(batch, -(-height // 2), -(-width // 2), 2, seed=1)
    rgb = references.convert_nv12_to_rgb(luma, chroma, luma_shares=LUMA_SHARES["bt709"], is_full_range=is_full_range)
    order = is_rows_first(size, (288, 512))
    levels = np.rint(rgb.clip(0, 255)).astype(np.uint8)
    return (
        luma,
        chroma,
        references.prepare_encoder_input(
            levels, bucket=(288, 512), fitted=(288, 512), mean=MEAN, std=STD, is_rows_first=order
        ),
    )


@pytest.mark.parametrize("size", [(1080, 1920), (719, 1281), (1, 1)], ids=str)
@pytest.mark.parametrize("is_full_range", [False, True])
def test_nv12_is_within_a_level_of_the_reference(operators: Operators, size: ImageSize, is_full_range: bool) -> None:
    luma, chroma, expected = nv12_and_reference(size, is_full_range)
    made = operators.nv12(luma, chroma, (288, 512), "bt709", is_full_range, gap_bytes=64)
    assert np.abs(made - expected).max() < 1.01 / min(STD)


@pytest.mark.parametrize("classes", [1, 71, 255])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_labels_equal_those_of_the_cpu_path(operators: Operators, classes: int, dtype: Any) -> None:
    scores = probabilities(2, classes, 72, 128).astype(dtype)
    scores[:, :, 20:50, 30:90] *= dtype(0.4)  # nothing reaches the threshold
    scores[:, -1, 60:] = scores[:, 0, 60:]  # ties
    for size, shares in (((1080, 1920), (1.0, 1.0)), ((719, 1281), (0.5625, 1.0)), ((7, 5), (1.0, 0.3))):
        made = operators.labels(scores, size, 0.5, shares, gap_bytes=11)
        for index in range(2):
            wanted = labels_of(scores[index].astype(np.float32), size, threshold=0.5, shares=shares)
            np.testing.assert_array_equal(made[index], wanted)


def test_both_run_in_a_graph_that_was_captured(operators: Operators) -> None:
    device, stream = operators.device, operators.stream
    preprocess = Preprocess(device, operators.module, mean=MEAN, std=STD)
    postprocess = Postprocess(device, operators.module, 0.5)
    picture, scores = noise(270, 480, 3), probabilities(1, 3, 36, 64)
    image, labels = np.empty((1, 3, 144, 256), np.float32), np.empty((270, 480), np.uint8)
    memories = [device.allocate(array.nbytes) for array in (picture, scores, image, labels)]
    frame, masks, encoded, found = (memory.pointer for memory in memories)

    def queue() -> None:
        preprocess(RgbPictures(frame, (270, 480)), encoded, bucket=(144, 256), stream=stream)
        postprocess(Scores(masks, (1, 3, 36, 64)), Labels(found, (270, 480)), stream)

    queue()  # their tables
    with stream.capture() as graph:
        queue()
    for seed in (1, 2):
        picture, scores = noise(270, 480, 3, seed=seed), probabilities(1, 3, 36, 64, seed=seed)
        device.copy_in(frame, picture, stream)
        device.copy_in(masks, scores, stream)
        graph.launch(stream)
        device.copy_out(image, encoded, stream)
        device.copy_out(labels, found, stream)
        stream.synchronize()
        np.testing.assert_array_equal(image, normalise_picture(resize_picture(picture, (144, 256)), mean=MEAN, std=STD))
        np.testing.assert_array_equal(labels, labels_of(scores[0], (270, 480), threshold=0.5))


def test_what_nvrtc_compiles_and_what_cmake_builds_are_the_same(operators: Operators, tmp_path: Path) -> None:
    if not (shutil.which("cmake") and shutil.which("nvcc")):
        pytest.skip("cmake and nvcc, which build the fatbin, are not here")
    device = operators.device
    root, build = find_shipped_path("CMakeLists.txt").parent, tmp_path / "build"
    subprocess.run(["cmake", "-S", root, "-B", build], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    picture, scores = noise(1, 270, 480, 3), probabilities(1, 5, 36, 64)
    results = []
    for module in (
        load_kernels(device, fatbin=build / "kernels.fatbin"),
        device.module(compile_kernels(device.compute_capability, tmp_path / "cache")),
    ):
        run = Operators(device, module, operators.stream)
        results.append((run.rgb(picture, (144, 256)), run.labels(scores, (270, 480))))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
