"""``teso-deploy score`` on folders that another program wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.evaluation.metrics import BINARY_DEFINITIONS, BinaryScores, SemanticScores
from teso_deploy.evaluation.metrics.binary import apply_sigmoid
from tests.support.commands import refused, teso

FRAMES, VIDEOS = 5, ("a b", "dog/x_1", "y")


def write_folders(root: Path, size: tuple[int, int] = (224, 224)) -> tuple[Path, Path, list[NDArray[np.float32]]]:
    """Write logits and truth of three videos, each in its own folder, and return the logits by video."""
    rng, logits = np.random.default_rng(0), []
    for video in VIDEOS:
        for folder in ("predictions", "truth"):
            (root / folder / video).mkdir(parents=True)
        of_video = rng.normal(size=(FRAMES, *size)).astype(np.float32) * 3
        logits.append(of_video)
        for k, frame in enumerate(of_video):
            np.save(root / "predictions" / video / f"{k}.npy", frame[None] if k % 2 else frame)
            truth = (frame + rng.normal(size=size) > 2) & (k > 0)
            Image.fromarray(truth.astype(np.uint8) * 255).save(root / "truth" / video / f"{k}.png")
    return root / "predictions", root / "truth", logits


def read_truth(truth: Path, video: str) -> NDArray[np.bool_]:
    return np.stack([np.asarray(Image.open(truth / video / f"{k}.png")) > 0 for k in range(FRAMES)])


def score(*arguments: object) -> dict[str, object]:
    done = teso("score", *arguments, "--json", "-")
    assert done.code == 0, done
    report: dict[str, object] = json.loads(done.out)
    return report


def test_logits_by_the_definition_of_avsbench(tmp_path: Path) -> None:
    predictions, truth, logits = write_folders(tmp_path)
    expected = BinaryScores(BINARY_DEFINITIONS["avsbench"])
    for video, of_video in zip(VIDEOS, logits, strict=True):
        expected.add(apply_sigmoid(of_video), read_truth(truth, video))
    report = score(predictions, truth, "--unbiased")
    assert report["scores"] == pytest.approx(expected.values())
    assert report["frames"] == 15 and report["videos"] == 3 and report["resized_frames"] == 0 and not report["skipped"]
    assert set(score(predictions, truth)["scores"]) == {"miou", "f_score"}  # type: ignore[call-overload]


def test_batches_of_four_videos_at_another_size(tmp_path: Path) -> None:
    predictions, truth, _ = write_folders(tmp_path)
    report = score(predictions, truth, "--protocol", "gewu")
    assert report["resized_frames"] == 15
    names = sorted(report["by_video"])  # type: ignore[call-overload]
    assert names == sorted(VIDEOS)


def test_pictures_are_masks_or_probabilities(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth, grey, ids = tmp_path / "truth", tmp_path / "grey", tmp_path / "ids"
    for folder in (truth, grey, ids):
        folder.mkdir()
    found = BinaryScores(BINARY_DEFINITIONS["avsbench"])
    masks = rng.random((3, 224, 224)) < 0.3
    levels = rng.integers(0, 256, (3, 224, 224)).astype(np.uint8)
    found.add(levels / np.float32(255), masks)
    for k in range(3):
        Image.fromarray(masks[k].astype(np.uint8) * 255).save(truth / f"clip_{k}.png")
        Image.fromarray(levels[k]).save(grey / f"clip_{k}.png")
        palette = Image.fromarray(masks[k].astype(np.uint8) * 7, "P")
        palette.putpalette([0] * 768)
        palette.save(ids / f"clip_{k}.png")
    report = score(grey, truth)
    assert report["videos"] == 1, "the numbers at the end of the names are frames"
    assert report["scores"]["miou"] == pytest.approx(found.values()["miou"])  # type: ignore[index]
    assert score(ids, truth)["scores"]["miou"] == pytest.approx(1)  # type: ignore[index]


def test_probabilities_have_to_be_named(tmp_path: Path) -> None:
    predictions, truth, _ = write_folders(tmp_path)
    done = teso("score", predictions, truth, "--values", "probabilities")
    assert done.code == 2 and "say --values logits" in done.err


def test_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    truth, found = rng.integers(0, 71, (4, 30, 20)), rng.integers(0, 71, (4, 30, 20))
    found[:, :15] = truth[:, :15]
    for folder in ("truth", "predictions"):
        (tmp_path / folder).mkdir()
    for k in range(4):
        Image.fromarray(truth[k].astype(np.uint8)).save(tmp_path / "truth" / f"v_{k}.png")
        scores = np.eye(71)[found[k]].transpose(2, 0, 1)
        np.save(tmp_path / "predictions" / f"v_{k}.npy", scores if k % 2 else found[k])
    expected = SemanticScores(repeat_mistakes=True)
    expected.add(found, truth)
    report = score(tmp_path / "predictions", tmp_path / "truth", "--protocol", "avss", "--mistakes", "--unbiased")
    assert report["scores"] == pytest.approx(expected.values())
    assert len(report["by_class"]["miou"]) == 71  # type: ignore[index]
    refused("score", tmp_path / "predictions", tmp_path / "truth", "--mistakes", names="--mistakes is for avss")


def test_bad_files_are_named_or_skipped(tmp_path: Path) -> None:
    predictions, truth, _ = write_folders(tmp_path)
    (predictions / "y" / "0.npy").unlink()
    np.save(predictions / "y" / "1.npy", np.zeros((100, 224)))
    (predictions / "y" / "2.npy").write_bytes(b"no array")
    np.save(predictions / "y" / "3.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(predictions / "y" / "9.npy", np.zeros((224, 224)))
    (truth / "y" / "4.png").write_bytes(b"no picture")
    done = teso("score", predictions, truth, "--json", tmp_path / "score.json")
    assert done.code == 2 and "6 files can't be scored" in done.err and not (tmp_path / "score.json").exists()
    for name in ("y/0.png has no prediction", "y/1.npy is 100", "y/2.npy", "y/3.npy", "y/9.npy has no", "y/4.png"):
        assert name in done.err, name
    report = score(predictions, truth, "--skip-bad")
    assert report["frames"] == 10 and len(report["skipped"]) == 6  # type: ignore[arg-type]


def test_bad_folders(tmp_path: Path) -> None:
    predictions, truth, _ = write_folders(tmp_path)
    (tmp_path / "other").mkdir()
    refused("score", tmp_path / "none", truth, names="no folder")
    refused("score", predictions, tmp_path / "other", names="has no .png mask")
    refused("score", tmp_path / "other", truth, names="no file of")
    refused("score", predictions, truth, "--protocol", "avs", names="name one of avsbench")
    refused("score", predictions, truth, "--json", truth / "y" / "0.png", names="0.png")
