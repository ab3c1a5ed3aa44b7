"""The benchmark of InfoNCE: the weights of a bundle as a checkpoint, and the comparison of its arms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.infonce import ARMS, compare, write_page
from benchmarks.shipped_weights import read_bundle_weights, restore_batch_norms
from teso_deploy.bundle import Bundle
from teso_deploy.errors import BundleError
from teso_deploy.models import build
from teso_deploy.recipe import Recipe


def test_weights_come_back_from_a_bundle(tiny_bundle: Path, tiny_recipe: Recipe) -> None:
    bundle, built = Bundle.open(tiny_bundle), build(tiny_recipe, 0).state_dict()
    found = read_bundle_weights(bundle, ("decoder",))
    expected = {key: value for key, value in built.items() if key.startswith("decoder.")}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=1e-6), key


def test_weights_that_a_graph_does_not_use_are_named(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"memory\.level_embedding"):  # two layers of the decoder look at two levels
        read_bundle_weights(Bundle.open(tiny_bundle), ("visual_encoder",))


def test_restored_batch_norms_change_nothing_in_eval_mode_and_little_in_training() -> None:
    norms = (nn.BatchNorm2d(4), nn.BatchNorm2d(3))
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), norms[0], nn.ReLU(), nn.Conv2d(4, 3, 3), norms[1])

    def make_identities() -> None:
        for norm in norms:
            norm.load_state_dict(nn.BatchNorm2d(norm.num_features).state_dict())
            assert norm.running_var is not None
            norm.running_var.fill_(1 - norm.eps)

    inputs = torch.randn(64, 1, 9, 9)
    with torch.no_grad():
        make_identities()
        expected = encoder.eval()(inputs)
        assert not torch.allclose(encoder.train()(inputs), expected, atol=0.1)
        make_identities()  # the pass in training mode moved the statistics
        restore_batch_norms(encoder, inputs)
        assert torch.allclose(encoder.eval()(inputs), expected, atol=1e-5)
        assert torch.allclose(encoder.train()(inputs), expected, atol=1e-4)


def test_arms_are_compared_by_seed() -> None:
    one, other = ARMS
    values = {one: [0.30, 0.34, 0.38], other: [0.28, 0.34, 0.34]}
    rows = [{"arm": arm, "seed": seed, "x": value} for arm in ARMS for seed, value in enumerate(values[arm])]
    found = compare(rows, "x")
    # Differences 0.02, 0 and 0.04: mean 0.02, deviation 0.02; Student's t with two degrees of freedom is 4.303.
    half = 4.3027 * 0.02 / math.sqrt(3)
    assert found[one] == 0.34 and found[f"{one}, spread"] == 0.04 and found["difference"] == 0.02
    assert found["interval_95"] == pytest.approx([0.02 - half, 0.02 + half], abs=1e-4)
    assert compare([row for row in rows if row["seed"] == 0], "x")["interval_95"] is None


def test_the_page_shows_both_arms_and_the_term() -> None:
    term = {"0.1": 0.0002, "1.0": 0.73}
    runs = [
        {"arm": arm, "seed": seed, "x": 0.1 * seed, "info_nce": {"start": term, "end": term}}
        for arm in ARMS
        for seed in range(2)
    ]
    report = {"rows": [compare(runs, "x")], "runs": runs, "bound_by": "Little.", "environment": {"cpu": "one"}}
    page = write_page("teso-nano", report)
    assert "| x | 0.05 ± 0.0707 | 0.05 ± 0.0707 | +0.0 | 0.0 … 0.0 |" in page
    assert "| with InfoNCE | 1.0 | 0.7300 | 0.7300 |" in page and "\nLittle.\n" in page
