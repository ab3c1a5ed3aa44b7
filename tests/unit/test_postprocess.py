"""Labels compared with bilinear interpolation by its definition, in float64."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.labels import cut_padding, labels_of
from teso_deploy.pipeline.preprocess import choose_nearest_size, compute_fitted_size, normalise_picture, resize_picture
from teso_deploy.types import Segmentation


def at(score: NDArray[np.float64], y: float, x: float) -> float:
    """Return the value at a place in pixels of ``score``. The first pixel has its centre at 0."""
    height, width = score.shape
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    upper = score[top, left] * (1 - along) + score[top, right] * along
    lower = score[bottom, left] * (1 - along) + score[bottom, right] * along
    return float(upper * (1 - down) + lower * down)


def upsampled(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    wide = scores.astype(np.float64)
    height, width = size
    result = np.empty((len(scores), height, width))
    for c, score in enumerate(wide):
        for i in range(height):
            for j in range(width):
                y = (i + 0.5) * score.shape[0] / height - 0.5
                x = (j + 0.5) * score.shape[1] / width - 0.5
                result[c, i, j] = at(score, y, x)
    return result


@pytest.mark.parametrize("size", [(40, 56), (37, 23), (10, 14), (7, 5), (1, 1), (80, 3)])
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_labels_are_the_definition_s(size: tuple[int, int], threshold: float) -> None:
    rng = np.random.default_rng(size[0])
    scores = rng.random((5, 10, 14), dtype=np.float32)
    scores[1] *= 0.3  # never reaches either threshold
    scores[2, 3:] = 0  # only in a corner
    expected = upsampled(scores, size)
    best = expected.max(axis=0)
    truth = np.where(best >= threshold, 1 + expected.argmax(axis=0), 0)
    labels = labels_of(scores, size, threshold=threshold)
    order = np.sort(expected, axis=0)
    # float32 and float64 may differ at the threshold, and where two classes are equal.
    is_sure = (np.abs(best - threshold) > 1e-5) & (order[-1] - order[-2] > 1e-5)
    assert is_sure.mean() > 0.95
    np.testing.assert_array_equal(labels[is_sure], truth[is_sure])
    assert labels.dtype == np.uint8


def test_a_score_at_the_threshold_counts_and_the_first_of_equals_wins() -> None:
    scores = np.full((3, 4, 4), 0.5, np.float32)
    assert (labels_of(scores, (8, 8), threshold=0.5) == 1).all()
    scores[1] = 0.6
    assert (labels_of(scores, (8, 8), threshold=0.5) == 2).all()


def test_nothing_reaches_the_threshold() -> None:
    assert not labels_of(np.full((2, 4, 4), 0.49, np.float32), (9, 9), threshold=0.5).any()


def test_not_a_number_is_background() -> None:
    assert not labels_of(np.full((2, 4, 4), np.nan, np.float32), (9, 9), threshold=0.5).any()


def test_the_last_of_255_classes_has_a_label() -> None:
    scores = np.zeros((255, 2, 2), np.float32)
    scores[254] = 1
    assert (labels_of(scores, (3, 3), threshold=0.5) == 255).all()


def test_the_resize_weighs_all_pixels() -> None:
    """With antialiasing a fine chessboard becomes grey, whatever its phase, and not black or white."""
    board = np.indices((128, 128)).sum(axis=0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    small = resize_picture(image, (32, 32))
    assert small.shape == (32, 32, 3)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_normalisation_is_per_channel() -> None:
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[...] = (10, 20, 30)
    values = normalise_picture(picture, mean=(5.0, 10.0, 30.0), std=(5.0, 10.0, 2.0))
    assert values.shape == (1, 3, 2, 3) and values.dtype == np.float32
    np.testing.assert_allclose(values[0, :, 0, 0], (1, 1, 0), atol=1e-6)


def test_the_bucket_that_distorts_least() -> None:
    sizes = [(384, 384), (384, 672), (672, 384)]
    assert choose_nearest_size(np.zeros((720, 1280, 3), np.uint8), sizes) == (384, 672)
    assert choose_nearest_size(np.zeros((1280, 720, 3), np.uint8), sizes) == (672, 384)
    assert choose_nearest_size(np.zeros((500, 480, 3), np.uint8), sizes) == (384, 384)


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (30, 200), (64, 64), (1, 500)])
def test_a_padded_picture_keeps_its_shape(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    height, width = compute_fitted_size(image, (64, 64), "pad")
    assert max(height, width) == 64 and compute_fitted_size(image, (64, 64), "stretch") == (64, 64)
    assert abs(height / 64 * max(shape) - shape[0]) <= max(shape) / 64 or height == 1
    given = normalise_picture(
        resize_picture(image, (height, width)), mean=(100, 100, 100), std=(50, 50, 50), bucket=(64, 64)
    )
    assert given.shape == (1, 3, 64, 64)
    np.testing.assert_allclose(given[:, :, :height, :width], 2.0, atol=1e-6)
    assert not given[:, :, height:].any() and not given[:, :, :, width:].any()


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (33, 80)])
def test_labels_of_a_padded_picture_lie_on_the_picture(shape: tuple[int, int]) -> None:
    """A mark in the bucket appears at the same share of the picture, and padding never appears."""
    height, width = compute_fitted_size(np.zeros((*shape, 3), np.uint8), (64, 64), "pad")
    scores = np.ones((1, 16, 16), np.float32)
    rows, columns = np.mgrid[0:16, 0:16]
    scores[0, (rows + 0.5) * 4 > height / 2] = 0  # the lower half of the picture, and all padding
    scores[0, (columns + 0.5) * 4 > width] = 1  # padding at the side, which must not be visible
    labels = labels_of(scores, shape, threshold=0.5, shares=(height / 64, width / 64))
    assert labels.shape == shape
    assert (labels[: shape[0] // 2 - 4] == 1).all() and (labels[shape[0] // 2 + 4 :, : shape[1] - 4] == 0).all()


def make_segmentation(scores: NDArray[np.float32], shape: tuple[int, int], shares: tuple[float, float]) -> Segmentation:
    labels = labels_of(scores, shape, threshold=0.5, shares=shares)
    shown, extent = cut_padding(scores, shares)
    return Segmentation(labels, scores.max(axis=(1, 2)), scores=shown.copy(), score_extent=extent)


@pytest.mark.parametrize("size", [(40, 56), (37, 23), (7, 5), (1, 1)])
def test_probabilities_are_the_definition_s(size: tuple[int, int]) -> None:
    scores = np.random.default_rng(1).random((3, 10, 14), dtype=np.float32)
    found = Segmentation(np.zeros(size, np.uint8), np.ones(3, np.float32), scores=scores)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities, upsampled(scores, size), atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (33, 80), (31, 47)])
def test_labels_are_probabilities_after_the_threshold(shape: tuple[int, int]) -> None:
    """Also where the last row of scores is partly padding: 33 / 80 of 64 pixels are 6.5 scores."""
    height, width = compute_fitted_size(np.zeros((*shape, 3), np.uint8), (64, 64), "pad")
    scores = np.random.default_rng(2).random((3, 16, 16), dtype=np.float32)
    found = make_segmentation(scores, shape, (height / 64, width / 64))
    probabilities = found.probabilities
    best = probabilities.max(axis=0)
    assert probabilities.shape == (3, *shape) and found.labels.any() and not found.labels.all()
    np.testing.assert_array_equal(found.labels, np.where(best >= 0.5, 1 + probabilities.argmax(axis=0), 0))


def test_probabilities_have_no_padding() -> None:
    scores = np.zeros((1, 16, 16), np.float32)
    scores[:, 9:] = 1  # the picture ends in the ninth row
    found = make_segmentation(scores, (34, 64), (34 / 64, 1.0))
    assert found.scores is not None and found.scores.shape == (1, 9, 16)
    assert not found.probabilities.any() and not found.resize_probabilities((68, 10)).any()


def test_scores_that_exceed_1_are_clipped() -> None:
    scores = np.array([[[-0.1, 1.7]]], np.float32)
    found = Segmentation(np.zeros((1, 2), np.uint8), np.ones(1, np.float32), scores=scores)
    np.testing.assert_array_equal(found.probabilities, [[[0, 1]]])
    assert found.scores is not None and found.scores.max() > 1.5


def test_a_segmentation_without_scores_says_so() -> None:
    found = Segmentation(np.zeros((1, 2), np.uint8), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="no scores"):
        _ = found.probabilities


def test_a_pickled_segmentation_keeps_its_scores() -> None:
    found = make_segmentation(np.random.default_rng(3).random((2, 4, 4), dtype=np.float32), (9, 16), (9 / 16, 1.0))
    copy = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(copy.probabilities, found.probabilities)
