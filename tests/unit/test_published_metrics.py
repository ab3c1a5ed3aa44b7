"""Every published measure against a slow, plain program written from its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.metrics import (
    BINARY_DEFINITIONS,
    BinaryScores,
    FslaScores,
    NegativeScores,
    PositiveIous,
    SemanticScores,
    combine_auc,
    score_batch,
)
from teso_deploy.evaluation.metrics.binary import THRESHOLDS, apply_sigmoid

CASES = 1000


def make_case(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Make probabilities and truth of a batch of some frames, odd ones among them."""
    frames, height, width = rng.integers(1, 6), rng.integers(1, 9), rng.integers(1, 9)
    shape = (frames, height, width)
    values = rng.random(shape).astype(np.float32)
    truth = rng.random(shape) < rng.random()
    for frame in range(frames):
        match rng.integers(8):
            case 0:
                truth[frame] = False
            case 1:
                values[frame] = 0
            case 2:
                truth[frame], values[frame] = True, 1
            case 3:
                truth[frame], values[frame] = False, 0
                truth[frame, rng.integers(height), rng.integers(width)] = True
            case 4:  # ties at the thresholds of the curve, and at those of the masks
                values[frame] = rng.choice(np.append(THRESHOLDS, np.array([0.4, 0.5], np.float32)), (height, width))
    if rng.integers(10) == 0:
        truth[:] = False
    return values, truth


def define_iou(values: NDArray[np.float32], truth: NDArray[np.bool_], threshold: float) -> float:
    """AVSBench's ``mask_iou`` of one frame, pixel by pixel."""
    inter = union = background = 0
    for value, true in zip(values.ravel(), truth.ravel(), strict=True):
        found = bool(value > np.float32(threshold))
        inter += found and bool(true)
        union += found or bool(true)
        background += not found
    if not truth.any():
        return background / (truth.size + 1e-7)
    return inter / (union + 1e-7)


def define_f_curve(values: NDArray[np.float32], truth: NDArray[np.bool_]) -> list[float]:
    """AVSBench's curve of one frame, threshold by threshold."""
    curve = []
    for threshold in THRESHOLDS:
        found = values >= threshold
        hits = float((found & truth).sum())
        precision, recall = hits / (float(found.sum()) + 1e-20), hits / (float(truth.sum()) + 1e-20)
        below = 0.3 * precision + recall
        curve.append(1.3 * precision * recall / below if below else 0.0)
    return curve


def define_f_score(values: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """AVSBench's ``Eval_Fmeasure`` of a batch."""
    curves = [define_f_curve(value, true) for value, true in zip(values, truth, strict=True) if true.any()]
    return max(sum(column) / len(curves) for column in zip(*curves, strict=True)) if curves else 0.0


def test_the_thresholds_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    assert np.array_equal(torch.linspace(0, 1 - 1e-10, 255).numpy(), THRESHOLDS)


@pytest.mark.parametrize("name", ["avsbench", "gewu", "combo"])
def test_binary_scores_of_a_batch(name: str) -> None:
    rng, definition = np.random.default_rng(0), BINARY_DEFINITIONS[name]
    for _ in range(CASES):
        values, truth = make_case(rng)
        scores = BinaryScores(definition)
        scores.add(values, truth)
        found = scores.values()
        ious = [define_iou(v, t, definition.threshold) for v, t in zip(values, truth, strict=True)]
        assert found["miou"] == pytest.approx(sum(ious) / len(ious), abs=1e-6)
        assert found["f_score"] == pytest.approx(define_f_score(values, truth), abs=1e-6)


def test_batches_are_averaged_and_unbiased_scores_are_not() -> None:
    """The published F depends on how frames are batched; the unbiased scores do not."""
    rng = np.random.default_rng(1)
    cases = [make_case(rng) for _ in range(60)]
    scores, single = BinaryScores(BINARY_DEFINITIONS["avsbench"]), BinaryScores(BINARY_DEFINITIONS["avsbench"])
    for values, truth in cases:
        scores.add(values, truth)
        for value, true in zip(values, truth, strict=True):
            single.add(value[None], true[None])
    found = scores.values()
    batches = [[define_iou(v, t, 0.5) for v, t in zip(values, truth, strict=True)] for values, truth in cases]
    assert found["miou"] == pytest.approx(np.mean([np.mean(ious) for ious in batches]), abs=1e-6)
    assert found["f_score"] == pytest.approx(np.mean([define_f_score(*case) for case in cases]), abs=1e-6)
    frames = [(v, t) for values, truth in cases for v, t in zip(values, truth, strict=True)]
    plain = []
    for value, true in frames:
        union = ((value > 0.5) | true).sum()
        plain.append(((value > 0.5) & true).sum() / union if union else 1.0)
    assert found["unbiased_miou"] == pytest.approx(np.mean(plain), abs=1e-6)
    curves = np.array([define_f_curve(value, true) for value, true in frames if true.any()])
    assert found["unbiased_f_score"] == pytest.approx(curves.mean(axis=0).max(), abs=1e-6)
    for name in ("unbiased_miou", "unbiased_f_score"):
        assert single.values()[name] == pytest.approx(found[name], abs=1e-12)
    assert single.values()["f_score"] != pytest.approx(found["f_score"], abs=1e-4)


def test_dataset_micro_adds_up_pixels() -> None:
    rng = np.random.default_rng(2)
    cases = [make_case(rng) for _ in range(40)]
    scores = BinaryScores(BINARY_DEFINITIONS["dataset-micro"])
    for case in cases:
        scores.add(*case)
    values = np.concatenate([value.ravel() for value, _ in cases])
    truth = np.concatenate([true.ravel() for _, true in cases])
    found = values > 0.5
    assert scores.values()["miou"] == pytest.approx((found & truth).sum() / (found | truth).sum(), abs=1e-9)
    assert scores.values()["f_score"] == pytest.approx(max(define_f_curve(values, truth)), abs=1e-9)


def test_a_batch_of_logits() -> None:
    rng = np.random.default_rng(3)
    logits, truth = rng.normal(size=(5, 7, 6)) * 4, rng.random((5, 7, 6)) < 0.4
    values = apply_sigmoid(logits)
    score = score_batch(logits, truth)
    ious = [define_iou(value, true, 0.5) for value, true in zip(values, truth, strict=True)]
    assert score.miou == pytest.approx(np.mean(ious), abs=1e-6)
    assert score.f_score == pytest.approx(define_f_score(values, truth), abs=1e-6)
    blank = score_batch(logits, np.zeros_like(truth))
    assert blank.f_score == 0 and 0 < blank.miou < 1
    assert score_batch(np.full((1, 2, 2), -1e9), np.ones((1, 2, 2))).miou == 0
    assert score_batch(logits, truth, protocol="gewu").miou != score.miou


@pytest.mark.parametrize(
    ("values", "truth", "message"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 4, 3)), "must be"),
        (np.zeros((3, 4)), np.zeros((3, 4)), "must be"),
        (np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2)), "NaN"),
    ],
)
def test_bad_predictions(values: NDArray[np.float64], truth: NDArray[np.float64], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_batch(values, truth)
    with pytest.raises(DataError, match="name one of avsbench"):
        score_batch(values, truth, protocol="avs")


def test_semantic_scores() -> None:
    rng, classes = np.random.default_rng(4), 6
    scores = SemanticScores(classes, repeat_mistakes=True)
    ious: dict[int, list[float]] = {k: [] for k in range(classes)}
    f_scores: dict[int, list[float]] = {k: [] for k in range(classes)}
    for _ in range(CASES):
        shape = (rng.integers(1, 4), 5, 4)
        known = rng.choice(classes - 1, rng.integers(1, 4), replace=False)  # the last class never occurs
        labels, truth = rng.choice(known, shape), rng.choice(known, shape)
        scores.add(labels, truth)
        for one, other in zip(labels, truth, strict=True):
            for k in range(classes):
                inter, found, there = ((one == k) & (other == k)).sum(), (one == k).sum(), (other == k).sum()
                if found + there:
                    ious[k].append(inter / (found + there - inter))
                    precision, recall = inter / found if found else math.nan, inter / there if there else math.nan
                    f_score = 1.3 * precision * recall / (0.3 * precision + recall) if inter else 0.0
                    f_scores[k].append(f_score)
    means = [float(np.mean(ious[k])) if ious[k] else 0.0 for k in range(classes)]
    f_means = [float(np.mean(f_scores[k])) if f_scores[k] else 0.0 for k in range(classes)]
    found = scores.values()
    assert found["miou"] == pytest.approx(np.mean(means), abs=1e-9)
    assert found["f_score"] == pytest.approx(np.mean(f_means), abs=1e-9)
    assert found["miou_without_background"] == pytest.approx(np.mean(means[1:]), abs=1e-9)
    assert found["miou_no_bg"] == pytest.approx(np.mean(means[:-1]), abs=1e-9)
    assert found["unbiased_miou"] == pytest.approx(np.mean(means[:-1]), abs=1e-9), "the class that never occurs"
    assert "miou_no_bg" not in SemanticScores(classes).values()
    named = scores.name_classes(["background", *"abcde"])["miou"]
    assert list(named) == ["background", "a", "b", "c", "d"] and named["a"] == pytest.approx(means[1])
    with pytest.raises(DataError, match="0 to 5"):
        scores.add(np.full((1, 2, 2), 6), np.zeros((1, 2, 2), int))


def test_negative_scores() -> None:
    rng, scores, batches = np.random.default_rng(5), NegativeScores(), []
    for _ in range(50):
        masks = rng.random((rng.integers(1, 5), 10, 10)) < rng.choice([0, 0.01, 0.3, 1])
        batches.append(masks)
        scores.add(masks)
    shares = [mask.mean() for masks in batches for mask in masks]
    found = scores.values()
    assert found["fpr"] == pytest.approx(np.mean(shares)) and found["pia"] == found["fpr"]
    assert found["s"] == pytest.approx(np.mean([math.sqrt(masks.mean()) for masks in batches]))
    curve = [np.mean([share <= t for share in shares]) for t in np.arange(21) / 20]
    area = sum((curve[k] + curve[k + 1]) / 2 * 0.05 for k in range(20))
    assert found["auc_n"] == pytest.approx(area)
    assert found["blank_rate"] == pytest.approx(np.mean([share < 0.002 for share in shares]))
    one_percent = NegativeScores()
    one_percent.add(np.arange(100).reshape(1, 10, 10) == 7)
    assert one_percent.values()["s"] == pytest.approx(0.1)


def test_auc_of_positives_and_f() -> None:
    rng, scores, ious = np.random.default_rng(6), PositiveIous(), []
    for _ in range(50):
        masks, truth = rng.random((3, 6, 6)) < rng.random(), rng.random((3, 6, 6)) < rng.random()
        scores.add(masks, truth)
        ious += [(m & t).sum() / (m | t).sum() if (m | t).any() else 1.0 for m, t in zip(masks, truth, strict=True)]
    curve = [np.mean([iou >= t for iou in ious]) for t in np.arange(21) / 20]
    area = sum((curve[k] + curve[k + 1]) / 2 * 0.05 for k in range(20))
    assert scores.values()["auc"] == pytest.approx(area)
    assert combine_auc(area, [0.9, 0.8, 1.0]) == pytest.approx(2 * area * 0.9 / (area + 0.9))
    assert combine_auc(0, [0]) == 0


def test_fsla() -> None:
    rng, scores = np.random.default_rng(7), FslaScores(least_share=0)
    alphas = [0.05 * (k + 1) for k in range(19)]
    right: dict[str, list[float]] = {"n": [], "s": [], "m": []}
    for _ in range(CASES):
        known = rng.choice(4, rng.integers(1, 4), replace=False)
        truth = rng.choice(known, (1, 4, 4))
        labels = np.where(rng.random((1, 4, 4)) < 0.8, truth, rng.choice(4, (1, 4, 4)))
        scores.add(labels, truth)
        there = {int(k) for k in np.unique(truth)} - {0}
        kind = "n" if not there else "s" if len(there) == 1 else "m"
        if {int(k) for k in np.unique(labels)} - {0} != there:
            right[kind].append(0.0)
            continue
        ious = [((labels == k) & (truth == k)).sum() / ((labels == k) | (truth == k)).sum() for k in there]
        right[kind].append(sum(all(iou > alpha for iou in ious) for alpha in alphas) / 19)
    found = scores.values()
    assert all(right.values())
    for kind, values in right.items():
        assert found[f"fsla_{kind}"] == pytest.approx(np.mean(values), abs=1e-2)
    assert found["fsla"] == pytest.approx(np.mean([v for values in right.values() for v in values]), abs=1e-2)
    stray = FslaScores()
    stray.add((np.arange(10_000) == 5).astype(int).reshape(1, 100, 100), np.zeros((1, 100, 100), int))
    assert stray.values()["fsla_n"] == 1.0, "one pixel of 10,000 is a blank frame"


def test_nothing_was_added() -> None:
    accumulators = (BinaryScores(BINARY_DEFINITIONS["avsbench"]), SemanticScores(), NegativeScores(), FslaScores())
    assert all(value is None for scores in accumulators for value in scores.values().values())
