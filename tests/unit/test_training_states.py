"""The state of a run: a damaged one is refused in one sentence, and the file stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from teso_deploy.errors import CheckpointError
from teso_deploy.recipe import Recipe, load_recipe
from teso_deploy.training.states import is_of_recipe, load_state, read_log, save_state

CPU = torch.device("cpu")


def test_a_state_comes_back(tmp_path: Path) -> None:
    save_state({"step": 3, "model": {"a": torch.ones(2)}}, tmp_path / "run" / "state.pt")
    state = load_state(tmp_path / "run" / "state.pt", CPU, ("step", "model"))
    assert state["step"] == 3 and torch.equal(state["model"]["a"], torch.ones(2))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state.pt"]


@pytest.mark.parametrize("kind", ["cut", "pointer", "empty", "other", "list"])
def test_what_is_no_state_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state({"step": 3}, path)
    if kind == "other":
        save_state({"epoch": 3}, path)
    elif kind == "list":
        torch.save([3], path)
    else:
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[:300], "pointer": b"version https://git-lfs\n", "empty": b""}[kind])
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"truncated|Git LFS|empty|not the state of a run"):
        load_state(path, CPU, ("step",))
    assert path.read_bytes() == before


def test_a_state_of_an_older_version_is_of_its_recipe(tiny_recipe: Recipe) -> None:
    recipe = Recipe.model_validate({**tiny_recipe.model_dump(by_alias=True), "train": {"class": 3.0}})
    text = recipe.model_dump_json(by_alias=True)
    assert is_of_recipe(text, recipe) and not is_of_recipe(text, tiny_recipe)
    older = json.loads(recipe.model_dump_json())  # as it was written before: "class_", and without newer fields
    assert "class_" in older["train"]
    del older["audio"]["framing"]
    assert is_of_recipe(json.dumps(older), recipe)
    contiguous = recipe.audio.model_copy(update={"framing": "contiguous"})
    assert not is_of_recipe(json.dumps(older), recipe.model_copy(update={"audio": contiguous}))
    # The shipped recipes changed the temperature, and later the points at which masks are compared. A training from
    # before is not continued with the new ones.
    paper = load_recipe("teso-m2f-swin-b")
    assert paper.train is not None
    before = paper.model_copy(update={"train": paper.train.model_copy(update={"info_nce_temperature": 0.1})})
    assert not is_of_recipe(before.model_dump_json(), paper)
    cells = json.loads(paper.model_dump_json())
    del cells["train"]["loss_sampling"]
    assert not is_of_recipe(json.dumps(cells), paper)
    extended = paper.model_copy(update={"train": paper.train.model_copy(update={"loss_sampling": "cells"})})
    assert is_of_recipe(json.dumps(cells), extended), "an older state compares cells"
    assert not any(is_of_recipe(text, paper) for text in ("", "{}", "[]", '{"name": "x", "train": null}'))


def test_a_log_with_half_a_line_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_log(log, 9) == []
    log.write_bytes(b'{"step": 1, "bce": 0.5}\n{"step": 3}\n[]\n{"step": 2}\n{"step": 2, "bc\xff')
    assert read_log(log, 2) == [{"step": 1, "bce": 0.5}, {"step": 2}]
