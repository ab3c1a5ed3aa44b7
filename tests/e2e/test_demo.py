"""``teso-deploy demo`` on a short clip: what it writes, and the mute gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teso_deploy.cli import demo as command
from teso_deploy.media.reader import VideoReader
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.types import Segmentation
from tests.support.clips import make_clip
from tests.support.commands import names_in, teso

SCRIPT = {"visible": ["dog", "sheep"], "heard": {"dog": [[0.0, 1.0]], "cow": [[1.0, 2.0], [0.9, 2.0]]}}


class Obedient(Pipeline):
    """Labels the left half of the picture whenever there is sound."""

    def segment(self, *arguments: Any) -> Segmentation:
        found = super().segment(*arguments)
        labels = np.zeros_like(found.labels)
        if not found.audio_is_silent:
            labels[:, : labels.shape[1] // 2] = 1
        return Segmentation(
            labels, found.class_scores, found.cue_gate, found.cues, found.pts_seconds, found.index,
            found.audio_start_seconds, found.audio_is_silent, found.stamps,
        )  # fmt: skip


class Deaf(Obedient):
    """Labels the same pixels with and without sound."""

    def segment(self, *arguments: Any) -> Segmentation:
        found = super().segment(*arguments)
        return Segmentation(
            np.ones_like(found.labels), found.class_scores, found.cue_gate, found.cues, stamps=found.stamps
        )


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the shipped clip and script by short ones."""
    make_clip(tmp_path / "clip.mp4", seconds=2.0)
    (tmp_path / "clip.json").write_text(json.dumps(SCRIPT))
    monkeypatch.setattr(command, "find_shipped_path", lambda relative: tmp_path / Path(relative).name)
    return tmp_path


def use(kind: type[Pipeline], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chosen:
        @staticmethod
        def load(**options: Any) -> Pipeline:
            return kind.load(bundle, **options)

    monkeypatch.setattr(command, "Pipeline", Chosen)


def test_side_by_side_and_a_contact_sheet(shipped: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Obedient, tiny_bundle, monkeypatch)
    out = shipped / "out"
    done = teso("demo", "--out", out, "--threads", 1, "--json", "-")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["nonblank_rate"] == {"with sound": 1.0, "muted": 0.0} and report["passed"] is True
    assert report["frames"] == 24 and report["cues"] == ["dog", "sheep"]
    assert names_in(out) == ["contact-sheet.png", "demo.mp4"]
    assert str(out / "demo.mp4") in done.err and "muted 0.0%" in done.err
    with VideoReader(out / "demo.mp4") as reader:
        assert reader.info.width == 2 * 96 and reader.info.has_audio
        assert sum(1 for _ in reader) == 24
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width == 2 * 96, "the middles of the two cow spans are one moment"


def test_the_mute_gate(shipped: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Deaf, tiny_bundle, monkeypatch)
    done = teso("demo", "--out", shipped / "out", "--threads", 1)
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("teso-deploy: the mute gate failed") and "100.0% of the frames" in last


def test_the_moments_of_the_sheet() -> None:
    assert command.choose_sheet_moments({"cow": [[0, 2], [5, 8]], "dog": [[3, 5], [6, 9]]}, ["cow", "sheep"]) == [
        (1.0, "cow"), (4.0, "unseen dog"), (6.5, "cow + unseen dog"), (7.5, "cow + unseen dog"),
    ]  # fmt: skip


def test_a_clip_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_shipped_path", lambda relative: tmp_path / Path(relative).name)
    done = teso("demo", "--out", tmp_path / "out")
    assert done.code == 2 and "lacks the demo clip" in done.err
    assert names_in(tmp_path) == []
