"""``teso-deploy eval`` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from teso_deploy.evaluation.protocols.composed_scenes import SCENE_ROWS
from tests.support.commands import teso


@pytest.mark.parametrize("cues", ["visible", "auto", "none", "wrong"])
def test_scores_of_every_row(media_folder: Path, tiny_bundle: Path, tmp_path: Path, cues: str) -> None:
    table = tmp_path / "scores.md"
    code, out, err = teso(
        "eval", media_folder, "--bundle", tiny_bundle, "--scenes", 2, "--seeds", 2, "--cues", cues, "--threads", 1,
        "--json", "-", "--markdown", table,
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert [row["row"] for row in report["rows"]] == list(SCENE_ROWS)
    assert report["cues"] == cues and report["bundle"] == "tiny"
    assert all(0 <= row["blank_rate"] <= 1 and row["scenes"] == 2 and row["seeds"] == [0, 1] for row in report["rows"])
    rows = table.read_text().splitlines()
    assert rows[2].startswith("| one source: one object, its own sound | 2 × 2 | ") and "±" in rows[2]
    assert {line.split(" | ")[0] for line in rows[len(SCENE_ROWS) + 5 :]} <= {"| car", "| cow", "| dog"}


def test_bad_input_is_one_sentence(media_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for arguments, name in (
        ((tmp_path / "no",), "no"),
        ((media_folder, "--cues", "perfect"), "'perfect'"),
        ((media_folder, "--layout", "s4"), "layout s4"),
    ):
        code, out, err = teso("eval", *arguments, "--bundle", tiny_bundle)
        assert code == 2 and out == "" and name in err and "Traceback" not in err
