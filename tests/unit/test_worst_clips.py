"""The clips on which a model is worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from teso_deploy.evaluation import worst_clips
from teso_deploy.evaluation.clip_trials import ClipTrial
from teso_deploy.evaluation.contact_sheet import SheetRow
from teso_deploy.evaluation.contracts import Prediction
from teso_deploy.evaluation.protocols.registry import ProtocolOptions, open_protocol
from teso_deploy.evaluation.worst_clips import WorstClips, draw_worst_clips
from tests.support.avs_layouts import write_avss


def test_the_worst_clips_are_kept_the_worst_first() -> None:
    rng, worst = np.random.default_rng(0), WorstClips(5)
    scores = {f"clip {k}": float(score) for k, score in enumerate(rng.random(200))}
    for name, miou in scores.items():
        worst.add_line({"clip": name, "condition": "muted", "values": {"miou": 0.0}})
        worst.add_line({"clip": name, "condition": "normal", "values": {"miou": miou}})
    worst.add_line({"clip": "nothing to score", "condition": "normal", "values": {"miou": None}})
    assert worst.clips == sorted(scores.items(), key=lambda item: item[1])[:5]


def test_a_clip_with_classes_has_the_mean_over_those_that_occur() -> None:
    """Over all 71 classes a perfect clip with one class has 2 / 71, and a bad one with three classes more."""
    worst = WorstClips(2)
    good = {"background": [5.0, 5], "dog": [4.5, 5]}
    bad = {"background": [5.0, 5], "dog": [2.0, 5], "cat": [0.5, 1], "man": [1.5, 5]}
    worst.add_line({"clip": "good", "condition": "normal", "values": {"miou": 1.9 / 71}, "class_ious": good})
    worst.add_line({"clip": "bad", "condition": "normal", "values": {"miou": 2.2 / 71}, "class_ious": bad})
    assert [name for name, _ in worst.clips] == ["bad", "good"]
    assert [miou for _, miou in worst.clips] == pytest.approx([0.55, 0.95])


def test_the_worst_frame_with_classes_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of the wrong class is a bad one, and a legend names the classes."""
    root = write_avss(tmp_path, videos=1)
    protocol = open_protocol("avss", root, ProtocolOptions(("dog",)))

    def predict(trial: ClipTrial) -> Prediction:
        return Prediction(np.where((trial.frame == 3) | (trial.truth == 0), trial.truth, 1).astype(np.uint8))

    worst = WorstClips()
    (sample,) = protocol.samples()
    worst.add_line({"clip": sample.name, "condition": "normal", "values": {"miou": 0.0}})
    rows: list[SheetRow] = []
    legends: list[dict[int, str]] = []

    def keep(path: Path, found: list[SheetRow], *, title: str, legend: dict[int, str]) -> None:
        rows.extend(found)
        legends.append(legend)

    monkeypatch.setattr(worst_clips, "save_sheet", keep)
    draw_worst_clips(protocol, predict, worst, path=tmp_path / "worst.png")
    pictures = dict(rows[0].pictures)
    assert "frame 1:" in rows[0].title and list(pictures) == ["picture", "truth", "prediction", "muted"]
    assert not np.array_equal(pictures["truth"], pictures["prediction"])
    assert legends[0] == {1: "accordion", 17: "dog"}
