"""The clips on which a model is worst."""

from __future__ import annotations

import numpy as np

from teso_deploy.evaluation.worst_clips import WorstClips


def test_the_worst_clips_are_kept_the_worst_first() -> None:
    rng, worst = np.random.default_rng(0), WorstClips(5)
    scores = {f"clip {k}": float(score) for k, score in enumerate(rng.random(200))}
    for name, miou in scores.items():
        worst.add_line({"clip": name, "condition": "muted", "values": {"miou": 0.0}})
        worst.add_line({"clip": name, "condition": "normal", "values": {"miou": miou}})
    worst.add_line({"clip": "nothing to score", "condition": "normal", "values": {"miou": None}})
    assert worst.clips == sorted(scores.items(), key=lambda item: item[1])[:5]


def test_means_over_classes_that_occur_are_preferred() -> None:
    worst = WorstClips(1)
    worst.add_line({"clip": "a", "condition": "normal", "values": {"miou": 0.01, "unbiased_miou": 0.9}})
    worst.add_line({"clip": "b", "condition": "normal", "values": {"miou": 0.02, "unbiased_miou": 0.5}})
    assert worst.clips == [("b", 0.5)]
