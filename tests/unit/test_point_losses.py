"""The losses at sampled points: where points lie, what a mask costs, gradients, and memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from teso_deploy.recipe import TrainPhase, TrainRecipe
from teso_deploy.training.batches import Batch, SceneBatches
from teso_deploy.training.loop import compute_batch_scores
from teso_deploy.training.losses import (
    compute_single_mask_losses,
    draw_points,
    draw_uncertain_points,
    mask_losses,
    sample_maps,
)

TRAIN = TrainRecipe(loss_points=400, loss_sampling="points")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(masks: Tensor, classes: Tensor, extent: Tensor | None = None) -> Batch:
    """Make a batch of which the mask losses use everything: masks, classes, extent."""
    rows = len(masks)
    unused: dict[str, Any] = dict.fromkeys(
        ("image", "photograph", "dense_tags", "waveform", "audio_tags", "cues", "cue_valid", "cue_sounds"),
        torch.zeros(rows),
    )
    return Batch(**unused, masks=masks, classes=classes, extent=torch.ones(rows, 2) if extent is None else extent)


def make_boxes(size: int) -> Tensor:
    """Make halves of two pictures: left and upper of one, right and lower of the other: (2, 2, size, size)."""
    masks = torch.zeros(2, 2, size, size)
    masks[0, 0, :, : size // 2] = 1
    masks[0, 1, : size // 2] = 1
    masks[1] = 1 - masks[0]
    return masks


def compute_losses(mask_logits: Tensor, batch: Batch, *, train: TrainRecipe = TRAIN) -> dict[str, Tensor]:
    """Compute the losses with class logits that prefer no query."""
    class_logits = torch.zeros(len(mask_logits), mask_logits.shape[1], 3)
    return mask_losses(class_logits, mask_logits, batch, train=train, generator=seeded())


def test_points_lie_in_the_picture_and_not_in_its_padding() -> None:
    extent = torch.tensor([[1.0, 1.0], [1.0, 0.5], [0.25, 1.0]])
    points = draw_points(extent, 5000, generator=seeded())
    assert points.shape == (3, 5000, 2) and (points >= 0).all()
    assert torch.allclose(points.amax(1), extent, atol=0.01) and (points <= extent[:, None]).all()
    assert torch.allclose(points.mean(1), extent / 2, atol=0.02)
    logits = torch.randn(3, 16, 16, generator=seeded(1))
    assert (draw_uncertain_points(logits, extent, 500, generator=seeded()) <= extent[:, None]).all()


def test_maps_are_interpolated_between_the_centres_of_cells() -> None:
    maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.5, 0.25]]])
    assert sample_maps(maps, points).flatten().tolist() == [0.0, 1.0, 2.0, 1.5, 0.5]


def test_three_quarters_of_the_points_are_uncertain() -> None:
    # The logit grows from left to right: the uncertain quarter of the candidates is in the middle. A few points within
    # half a cell of the edge look uncertain too, because interpolation takes 0 beyond the edge, as Mask2Former's does.
    logits = torch.linspace(-8, 8, 64).expand(1, 64, 64)
    points = draw_uncertain_points(logits, torch.ones(1, 2), 400, generator=seeded())
    assert points.shape == (1, 400, 2)
    distance = (points[0, :, 0] - 0.5).abs()
    assert (distance[:300] < 0.13).sum() > 290, "300 of 1200 candidates are in the middle quarter"
    assert distance[300:].max() > 0.4 and distance[300:].mean() == pytest.approx(0.25, abs=0.05)
    again = draw_uncertain_points(logits, torch.ones(1, 2), 400, generator=seeded())
    assert torch.equal(points, again), "the generator alone decides"


def test_a_perfect_mask_costs_nearly_nothing_and_a_wrong_one_much() -> None:
    batch = make_batch(make_boxes(64), torch.tensor([[0, 1], [1, -1]]))
    right = torch.full((2, 5, 64, 64), -9.0)
    right[:, 3], right[:, 1] = (batch.masks[:, 0] - 0.5) * 18, (batch.masks[:, 1] - 0.5) * 18
    perfect = compute_losses(right, batch)
    thrice = compute_losses(right.repeat(3, 1, 1, 1), batch)
    assert all(2 * perfect[name] < thrice[name] < 4 * perfect[name] for name in thrice), "other points, alike in cost"
    wrong = compute_losses(-right, batch)
    assert perfect["bce"] < 0.2 * TRAIN.bce and perfect["dice"] < 0.05 * TRAIN.dice
    assert wrong["bce"] > 1 * TRAIN.bce and wrong["dice"] > 0.3 * TRAIN.dice
    one = make_batch(batch.masks[:, :1], torch.zeros(2, 1, dtype=torch.int64))
    single = compute_single_mask_losses(right[:, 3:4], one, train=TRAIN, generator=seeded())
    assert single["bce"] < 0.2 * TRAIN.bce and single["dice"] < 0.05 * TRAIN.dice


def test_truth_may_be_finer_than_the_cells_of_the_masks() -> None:
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., 0::4] = stripes[..., 1::4] = 1
    grey = torch.nn.functional.avg_pool2d(stripes, 4)
    assert (grey == 0.5).all(), "cells of stride 4 can't tell the stripes from grey"
    classes = torch.zeros(1, 1, dtype=torch.int64)
    logits = ((stripes - 0.5) * 18).expand(-1, 5, -1, -1)
    fine, coarse = (compute_losses(logits, make_batch(truth, classes)) for truth in (stripes, grey))
    assert all(fine[name] < 0.8 * coarse[name] for name in ("bce", "dice"))
    blurred = compute_losses(grey.expand(-1, 5, -1, -1) * 0, make_batch(stripes, classes))
    assert blurred["bce"].item() == pytest.approx(TRAIN.bce * math.log(2), rel=1e-3), "a logit of 0 costs ln 2"


def test_padding_counts_neither_in_the_loss_nor_in_the_gradient() -> None:
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., :16, :] = 1
    batch = make_batch(masks, torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[1.0, 0.5]]))
    logits = torch.randn(1, 5, 16, 16, generator=seeded(1))
    changed = logits.clone()
    changed[:, :, 9:] = 0.0  # uncertain everywhere; row 8 is the neighbour of the last row of the picture
    for compute in (
        compute_losses,
        lambda logits, batch: compute_single_mask_losses(logits[:, :1], batch, train=TRAIN, generator=seeded()),
    ):
        one, other = compute(logits, batch), compute(changed, batch)
        assert all(torch.equal(one[name], other[name]) for name in ("bce", "dice"))
        learnt = logits.clone().requires_grad_()
        losses = compute(learnt, batch)
        (losses["bce"] + losses["dice"]).backward()  # type: ignore[no-untyped-call]
        assert learnt.grad is not None and not learnt.grad[:, :, 9:].any() and learnt.grad[:, :, :8].any()
    whole = make_batch(masks, batch.classes)
    assert not torch.equal(compute_losses(logits, whole)["bce"], compute_losses(changed, whole)["bce"])


def test_matched_masks_learn_in_all_states_and_others_do_not() -> None:
    batch = make_batch(make_boxes(64), torch.tensor([[0, 1], [1, -1]]))
    logits = torch.randn(6, 5, 16, 16, generator=seeded(1)).requires_grad_()  # three states
    losses = compute_losses(logits, batch)
    (losses["bce"] + losses["dice"]).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    learnt = logits.grad.flatten(2).abs().sum(2) > 0
    assert learnt.sum(1).tolist() == [2, 1] * 3, "as many queries as targets"
    # A step along the gradient makes the same points cheaper.
    after = compute_losses((logits - 30 * logits.grad).detach(), batch)
    assert after["bce"] < losses["bce"] and after["dice"] < losses["dice"]


def test_a_batch_in_which_nothing_sounds_costs_only_classes() -> None:
    batch = make_batch(make_boxes(64) * 0, torch.full((2, 2), -1))
    logits = torch.randn(4, 5, 16, 16, generator=seeded(1)).requires_grad_()
    losses = compute_losses(logits, batch)
    assert losses["bce"] == 0 and losses["dice"] == 0 and losses["class"] > 0
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("sampling", ["points", "cells"])
def test_memory_of_the_loss_does_not_grow_with_the_picture(sampling: str) -> None:
    def count_saved(size: int) -> int:
        """Count the values kept for the gradient, without the matched masks and targets themselves."""
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.shape[-1] not in (size, size // 4):
                saved[tensor.data_ptr()] = tensor.numel()
            return tensor

        batch = make_batch(make_boxes(size if sampling == "points" else size // 4), torch.tensor([[0, 1], [1, -1]]))
        logits = torch.randn(2, 5, size // 4, size // 4, generator=seeded(1)).requires_grad_()
        train = TRAIN.model_copy(
            update={"loss_sampling": sampling, "loss_points": 400 if sampling == "points" else 10**6}
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            compute_losses(logits, batch, train=train)
        return sum(saved.values())

    small, large = count_saved(64), count_saved(256)
    assert large < 1.2 * small if sampling == "points" else large > 10 * small


def test_scenes_have_truth_at_full_resolution(scene_batches: SceneBatches) -> None:
    phase = TrainPhase(size=(64, 64), steps=1)
    coarse = scene_batches.make(0, phase)
    train = scene_batches.train.model_copy(update={"loss_sampling": "points"})
    recipe = scene_batches.recipe.model_copy(update={"train": train})
    fine = SceneBatches(recipe, scene_batches.library, scene_batches.embeddings).make(0, phase)
    assert fine.masks.shape[2:] == (64, 64) and coarse.masks.shape[2:] == (16, 16)
    pooled = torch.nn.functional.avg_pool2d(fine.masks, 4)
    assert torch.allclose(pooled, coarse.masks, atol=1e-5) and coarse.masks.any()
    assert torch.equal(fine.classes, coarse.classes) and torch.equal(fine.image, coarse.image)
    assert (fine.extent == 1).all()
    scores = torch.rand(len(fine.classes), 3, 16, 16, generator=seeded())
    assert compute_batch_scores(recipe, scores, fine) == pytest.approx(compute_batch_scores(recipe, scores, coarse))
