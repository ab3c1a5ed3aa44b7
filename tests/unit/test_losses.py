"""Each loss compared with its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from teso_deploy.recipe import TrainPhase
from teso_deploy.training.batches import SceneBatches
from teso_deploy.training.losses import (
    compute_imitation,
    compute_info_nce,
    compute_pairwise_bce,
    compute_pairwise_dice,
    mask_losses,
    match,
)


def test_pairwise_costs() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 10), (torch.rand(2, 4, 10) > 0.5).float()
    bce, dice = compute_pairwise_bce(logits, targets), compute_pairwise_dice(logits, targets)
    for n, q, t in itertools.product(range(2), range(3), range(4)):
        assert bce[n, q, t] == pytest.approx(
            F.binary_cross_entropy_with_logits(logits[n, q], targets[n, t]).item(), abs=1e-5
        )
        share = logits[n, q].sigmoid()
        expected = 1 - (2 * (share * targets[n, t]).sum() + 1) / (share.sum() + targets[n, t].sum() + 1)
        assert dice[n, q, t] == pytest.approx(expected.item(), abs=1e-5)


def test_matching_is_the_cheapest_assignment() -> None:
    cost = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=torch.bool)
    chosen = match(cost, present)
    for n in range(5):
        targets = present[n].nonzero().flatten().tolist()
        assert (chosen[n][~present[n]] == -1).all()
        ours = sum(float(cost[n, chosen[n, t], t]) for t in targets)
        best = min(
            sum(float(cost[n, q, t]) for q, t in zip(queries, targets, strict=True))
            for queries in itertools.permutations(range(4), len(targets))
        )
        assert ours == pytest.approx(best)


def test_info_nce_is_least_for_orthogonal_latents() -> None:
    same, orthogonal = torch.ones(2, 4, 8), torch.eye(8)[:4].expand(2, 4, 8)
    assert compute_info_nce(same, 0.1).item() == pytest.approx(np.log(4), abs=1e-5)
    assert compute_info_nce(orthogonal, 0.1) < 1e-3
    unit = F.normalize(torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    cosine = np.exp(unit[0].double().numpy() @ unit[0].double().numpy().T / 0.5)
    expected = -np.log(np.diag(cosine) / cosine.sum(axis=1)).mean()
    assert compute_info_nce(unit * 3, 0.5).item() == pytest.approx(expected, abs=1e-5)


def test_a_perfect_prediction_costs_nothing_and_a_blank_one_does(scene_batches: SceneBatches) -> None:
    train = scene_batches.train.model_copy(update={"loss_points": 10_000})
    batch = scene_batches.make(0, TrainPhase(size=(64, 64), steps=1))
    rows, queries, classes = len(batch.classes), 6, 3
    class_logits = torch.full((rows, queries, classes + 1), -20.0)
    class_logits[..., -1] = 20.0
    mask_logits = torch.full((rows, queries, *batch.masks.shape[2:]), -20.0)
    blank = mask_losses(class_logits, mask_logits, batch, train=train, generator=torch.Generator())
    for n, t in (batch.classes >= 0).nonzero().tolist():
        class_logits[n, 5 - t] = -20.0
        class_logits[n, 5 - t, batch.classes[n, t]] = 20.0
        mask_logits[n, 5 - t] = (batch.masks[n, t].round() * 2 - 1) * 20
    batch.masks.copy_(batch.masks.round())
    right = mask_losses(class_logits, mask_logits, batch, train=train, generator=torch.Generator())
    assert all(right[name] < 0.2 for name in ("bce", "dice", "class"))
    assert all(blank[name] > 1 for name in ("dice", "class"))


def test_imitation_knows_a_copy_and_ignores_what_all_have_in_common() -> None:
    target = torch.randn(6, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    standardised = (target - target.mean((0, 2, 3), keepdim=True)) / target.std((0, 2, 3), keepdim=True)
    assert compute_imitation(standardised * 3, target + 100).item() == pytest.approx(0, abs=1e-3)
    assert compute_imitation(-standardised, target).item() == pytest.approx(2, abs=1e-3)
