"""The CUDA operators compared with the CPU path. Their own source runs on the CPU, thread by thread."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teso_deploy.backends.cuda import references
from teso_deploy.backends.cuda.device import Device, Module, Stream
from teso_deploy.backends.cuda.kernels import Preprocess
from teso_deploy.backends.cuda.plans import LUMA_SHARES, RgbPictures, YuvMatrix, compute_yuv_gains, is_rows_first
from teso_deploy.labels import labels_of
from teso_deploy.pipeline.preprocess import compute_fitted_size, normalise_picture, resize_picture
from teso_deploy.resources import find_shipped_path
from teso_deploy.types import ImageSize
from tests.support.operators import MEAN, STD, Operators
from tests.unit.kernels_on_host.device import HostDevice, HostStream, KernelCrash, build_runner


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostDevice]:
    device = HostDevice(build_runner(tmp_path_factory.mktemp("runner")))
    yield device
    device.close()


def operators_on(host: HostDevice) -> Operators:
    return Operators(cast(Device, host), cast(Module, host), cast(Stream, HostStream()))


@pytest.fixture(scope="module")
def operators(host: HostDevice) -> Operators:
    return operators_on(host)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return levels that are often 0 or 255, where rounding is visible."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 255, *rng.integers(0, 256, 6)], np.uint8), shape)


def probabilities(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).beta(0.4, 0.4, shape).astype(np.float32)


def on_the_cpu(picture: NDArray[np.uint8], bucket: ImageSize, fitted: ImageSize) -> NDArray[np.float32]:
    return normalise_picture(resize_picture(picture, fitted), mean=MEAN, std=STD, bucket=bucket)


# ------------------------------------------------------------------------------------------------ pictures

RESIZES = [
    ((9, 13), (9, 13)),  # no resizing
    ((37, 53), (16, 24)),
    ((37, 53), (37, 24)),  # along one axis
    ((37, 53), (20, 53)),
    ((1, 1), (5, 7)),
    ((1, 1), (1, 1)),
    ((23, 17), (1, 1)),
    ((5, 7), (41, 67)),  # up
    ((5, 200), (60, 9)),  # up and down
    ((300, 40), (2, 33)),  # several strips of rows
    ((7, 4096), (3, 8)),
    ((4096, 5), (8, 5)),
    ((72, 128), (64, 96)),
    ((90, 30), (11, 40)),  # the rows first, as in Pillow 13
    ((60, 1000), (9, 900)),  # the rows first, with several strips of columns
    ((301, 3), (20, 2)),  # the rows first, also in Pillow 12.2
]


@pytest.mark.parametrize(("size", "target"), RESIZES, ids=str)
def test_pictures_equal_those_of_the_cpu_path_bit_for_bit(
    operators: Operators, size: ImageSize, target: ImageSize
) -> None:
    picture = noise(*size, 3)
    expected = on_the_cpu(picture, target, target)
    assert np.array_equal(operators.rgb(picture[None], target), expected)
    order = is_rows_first(size, target)
    reference = references.prepare_encoder_input(
        picture[None], bucket=target, fitted=target, mean=MEAN, std=STD, is_rows_first=order
    )
    assert np.array_equal(reference, expected)


@settings(max_examples=300, deadline=None)
@given(sizes=st.tuples(*(st.integers(1, 130) for _ in range(4))), seed=st.integers(0, 99))
def test_pillow_takes_the_axis_first_that_we_think(sizes: tuple[int, int, int, int], seed: int) -> None:
    picture, target = noise(*sizes[:2], 3, seed=seed), sizes[2:]
    order = is_rows_first(sizes[:2], target)
    assert np.array_equal(references.resize_pictures(picture[None], target, order)[0], resize_picture(picture, target))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    bucket=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    batch=st.integers(1, 3),
    gap_bytes=st.integers(0, 9),
    does_pad=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_picture_fits_any_bucket(
    operators: Operators, size: ImageSize, bucket: ImageSize, batch: int, gap_bytes: int, does_pad: bool, seed: int
) -> None:
    pictures = noise(batch, *size, 3, seed=seed)
    fitted = compute_fitted_size(pictures[0], bucket, "pad" if does_pad else "stretch")
    made = operators.rgb(pictures, bucket, fitted, gap_bytes=gap_bytes)
    for index, picture in enumerate(pictures):
        assert np.array_equal(made[index], on_the_cpu(picture, bucket, fitted)[0])


def test_a_huge_downscale_needs_no_more_shared_memory(operators: Operators) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4096, 1024, 3), np.uint8)
    assert np.array_equal(operators.rgb(picture[None], (8, 2)), on_the_cpu(picture, (8, 2), (8, 2)))


def test_half_precision_rounds_as_numpy_does(operators: Operators) -> None:
    pictures = noise(2, 21, 33, 3)
    expected = references.prepare_encoder_input(
        pictures, bucket=(16, 40), fitted=(16, 25), mean=MEAN, std=STD, dtype=np.float16
    )
    made = operators.rgb(pictures, (16, 40), (16, 25), np.float16)
    assert made.dtype == np.float16 and np.array_equal(made, expected)
    assert not made[:, :, :, 25:].any()


def test_a_cut_of_a_larger_picture_is_read_in_place(host: HostDevice) -> None:
    canvas, stream = noise(40, 50, 3), cast(Stream, HostStream())
    source, target = host.allocate(canvas.nbytes), host.allocate(3 * 8 * 12 * 4)
    host.copy_in(source.pointer, canvas, HostStream())
    operator = Preprocess(cast(Device, host), cast(Module, host), mean=MEAN, std=STD)
    cut = RgbPictures(source.pointer + 5 * 150 + 3 * 7, (30, 41), pitch_bytes=150)
    operator(cut, target.pointer, bucket=(8, 12), stream=stream)
    made = np.empty((1, 3, 8, 12), np.float32)
    host.copy_out(made, target.pointer, HostStream())
    assert np.array_equal(made, on_the_cpu(np.ascontiguousarray(canvas[5:35, 7:48]), (8, 12), (8, 12)))


@pytest.mark.parametrize(("source", "target"), [(4096, 8), (1080, 288), (8, 4096), (1, 9), (9, 1), (719, 720)])
def test_the_reference_resizes_as_pillow_does(source: int, target: int) -> None:
    for size, new in (((source, 3), (target, 3)), ((3, source), (3, target))):
        picture = noise(*size, 3)
        assert np.array_equal(
            references.resize_pictures(picture[None], new, is_rows_first(size, new))[0], resize_picture(picture, new)
        )


# ------------------------------------------------------------------------------------------------ NV12


def planes(size: ImageSize, batch: int = 1, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = size
    rng = np.random.default_rng(seed)
    luma = rng.integers(0, 256, (batch, height, width), np.uint8)
    return luma, rng.integers(0, 256, (batch, -(-height // 2), -(-width // 2), 2), np.uint8)


def fixed_point_rgb(luma: NDArray[np.uint8], chroma: NDArray[np.uint8], gains: tuple[int, ...]) -> NDArray[np.uint8]:
    y_offset, y_gain, v_to_r, u_to_g, v_to_g, u_to_b = gains
    full = chroma.repeat(2, axis=1).repeat(2, axis=2)[:, : luma.shape[1], : luma.shape[2]].astype(np.int64) - 128
    y, (u, v) = (luma.astype(np.int64) - y_offset) * y_gain, np.moveaxis(full, -1, 0)
    rgb = np.stack((y + v * v_to_r, y + u * u_to_g + v * v_to_g, y + u * u_to_b), axis=-1)
    return ((rgb + 2**15) >> 16).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("is_full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colours_are_those_of_the_standards(operators: Operators, matrix: YuvMatrix, is_full_range: bool) -> None:
    luma, chroma = planes((24, 30))
    exact = references.convert_nv12_to_rgb(luma, chroma, luma_shares=LUMA_SHARES[matrix], is_full_range=is_full_range)
    rounded = fixed_point_rgb(luma, chroma, compute_yuv_gains(matrix, is_full_range))
    # Half a level is the error of rounding.
    assert np.abs(rounded - exact.clip(0, 255)).max() < 0.51
    made = operators.nv12(luma, chroma, (24, 30), matrix, is_full_range)
    assert np.array_equal(made, on_the_cpu(rounded[0], (24, 30), (24, 30)))


@pytest.mark.parametrize("is_full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_flat_colours_agree_with_ffmpeg(operators: Operators, matrix: YuvMatrix, is_full_range: bool) -> None:
    for y, u, v in ((16, 128, 128), (235, 128, 128), (90, 90, 200), (150, 180, 70), (60, 120, 130)):
        luma, chroma = np.full((1, 16, 16), y, np.uint8), np.empty((1, 8, 8, 2), np.uint8)
        chroma[..., 0], chroma[..., 1] = u, v
        flat = np.concatenate((luma[0], chroma[0].reshape(8, 16)))
        frame = av.VideoFrame.from_ndarray(flat, format="nv12")
        theirs = frame.reformat(
            format="rgb24",
            src_colorspace={"bt601": "itu601", "bt709": "itu709"}[matrix],
            src_color_range=ColorRange.JPEG if is_full_range else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
        ).to_ndarray()
        made = operators.nv12(luma, chroma, (16, 16), matrix, is_full_range)[0].transpose(1, 2, 0)
        levels = np.rint(made * np.array(STD) + np.array(MEAN))
        # FFmpeg's conversion is not exact.
        assert np.abs(levels - theirs.astype(int)).max() <= 3, (y, u, v)


def test_chroma_is_spread_as_in_frames_of_the_reader(operators: Operators) -> None:
    luma, chroma = planes((32, 48))
    flat = np.concatenate([plane.reshape(-1) for plane in (luma, chroma[..., 0], chroma[..., 1])])
    theirs = av.VideoFrame.from_ndarray(flat.reshape(48, 48), format="yuv420p").to_ndarray(format="rgb24")
    made = operators.nv12(luma, chroma, (32, 48))[0].transpose(1, 2, 0)
    levels = np.rint(made * np.array(STD) + np.array(MEAN))
    assert np.abs(levels - theirs.astype(int)).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 9), (7, 10), (33, 41)], ids=str)
def test_odd_pictures_in_nv12(operators: Operators, size: ImageSize) -> None:
    luma, chroma = planes(size, batch=2)
    rgb = fixed_point_rgb(luma, chroma, compute_yuv_gains("bt709", False))
    made = operators.nv12(luma, chroma, (12, 10), "bt709", gap_bytes=5)
    for index in range(2):
        assert np.array_equal(made[index], on_the_cpu(rgb[index], (12, 10), (12, 10))[0])
    half = operators.nv12(luma, chroma, (12, 10), "bt709", dtype=np.float16)
    assert np.array_equal(half, made.astype(np.float16))


# ------------------------------------------------------------------------------------------------ labels


@settings(max_examples=40, deadline=None)
@given(
    cells=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    classes=st.integers(1, 8),
    batch=st.integers(1, 2),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0, 1.1]),
    shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    gap_bytes=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_labels_equal_those_of_the_cpu_path(
    operators: Operators,
    cells: ImageSize,
    size: ImageSize,
    classes: int,
    batch: int,
    threshold: float,
    shares: tuple[float, float],
    gap_bytes: int,
    seed: int,
) -> None:
    scores = probabilities(batch, classes, *cells, seed=seed)
    made = operators.labels(scores, size, threshold, shares, gap_bytes)
    assert np.array_equal(made, references.compute_labels(scores, size, threshold=threshold, shares=shares))
    for index in range(batch):
        assert np.array_equal(made[index], labels_of(scores[index], size, threshold=threshold, shares=shares))


@pytest.mark.parametrize("classes", [1, 71, 255])
def test_few_and_many_classes(operators: Operators, classes: int) -> None:
    scores = probabilities(1, classes, 9, 11)
    made = operators.labels(scores, (36, 50))
    assert np.array_equal(made[0], labels_of(scores[0], (36, 50), threshold=0.5))
    assert classes == 1 or len(np.unique(made)) > 20


def test_of_equal_scores_the_first_class_wins(operators: Operators) -> None:
    scores = np.repeat(probabilities(1, 1, 6, 6), 5, axis=1)
    assert set(np.unique(operators.labels(scores, (40, 40)))) == {0, 1}
    scores[:, 0] = 0
    assert set(np.unique(operators.labels(scores, (40, 40)))) == {0, 2}


def test_the_threshold_itself_counts(operators: Operators) -> None:
    at = np.float32(0.3)
    scores = np.full((1, 2, 4, 4), np.nextafter(at, np.float32(0)), np.float32)
    assert not operators.labels(scores, (9, 9), 0.3).any()
    scores[:, 1] = at
    assert (operators.labels(scores, (9, 9), 0.3) == 2).all()


def test_scores_that_are_no_numbers_give_no_label(operators: Operators) -> None:
    scores = np.full((1, 2, 5, 5), np.nan, np.float32)
    assert not operators.labels(scores, (20, 20)).any()
    scores[0, 1, :, 3:] = 0.9
    made = operators.labels(scores, (20, 20))
    assert set(np.unique(made)) == {0, 2}
    assert np.array_equal(made[0], labels_of(scores[0], (20, 20), threshold=0.5))


def test_scores_in_half_precision(operators: Operators) -> None:
    scores = probabilities(2, 5, 7, 12).astype(np.float16)
    made = operators.labels(scores, (30, 41), shares=(0.6, 1.0))
    assert np.array_equal(made, references.compute_labels(scores, (30, 41), threshold=0.5, shares=(0.6, 1.0)))


# ------------------------------------------------------------------------------------------------ the host run itself


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("preprocess.cu", "    __syncthreads();\n    if (is_inside)", "    if (is_inside)"),
        ("preprocess.cu", "if (row >= bucket_height || column >= bucket_width) return;", ""),
        ("postprocess.cu", "if (row >= rows.size || column >= columns.size) return;", ""),
    ],
    ids=["no barrier", "outside of the bucket", "outside of the labels"],
)
def test_a_broken_kernel_is_found(tmp_path: Path, file: str, before: str, after: str) -> None:
    kernels = tmp_path / "kernels"
    shutil.copytree(find_shipped_path("engines/kernels"), kernels)
    source = (kernels / file).read_text(encoding="utf-8")
    assert source.count(before) == 1
    (kernels / file).write_text(source.replace(before, after), encoding="utf-8")
    device = HostDevice(build_runner(tmp_path, kernels))
    operators, picture, scores = operators_on(device), noise(30, 40, 3), probabilities(1, 2, 6, 7)
    try:
        is_right = np.array_equal(operators.rgb(picture[None], (17, 37)), on_the_cpu(picture, (17, 37), (17, 37)))
        is_right &= np.array_equal(operators.labels(scores, (17, 37))[0], labels_of(scores[0], (17, 37), threshold=0.5))
    except KernelCrash as crash:
        assert "AddressSanitizer" in str(crash) or "runtime error" in str(crash)
        is_right = False
    finally:
        device.close()
    assert not is_right
