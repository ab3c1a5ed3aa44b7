"""The files from which a training continues: its state (weights, optimiser and step in one file), and its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from teso_deploy.errors import CheckpointError
from teso_deploy.models.file_kinds import identify
from teso_deploy.outputs import open_staged_file
from teso_deploy.recipe import Recipe


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a state completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_staged_file(path) as file:
        torch.save(state, file)


def load_state(path: Path, device: torch.device, names: tuple[str, ...]) -> dict[str, Any]:
    """Read a state that :func:`save_state` wrote.

    Args:
        path: The file.
        device: The device for its tensors.
        names: The keys it must have.

    Returns:
        The state by key.

    Raises:
        CheckpointError: The file is damaged, or not a state.
    """
    identify(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or not all(name in state for name in names):
            raise ValueError("not a state")
    except Exception as error:  # random bytes raise RuntimeError, UnpicklingError, IndexError
        raise CheckpointError(
            f"{path} is damaged or not the state of a run: remove it to begin again, or give another --out"
        ) from error
    return state


def is_of_recipe(text: str, recipe: Recipe) -> bool:
    """Whether the recipe in a state, as JSON, is this recipe.

    A state of an older version lacks newer fields. They count as their defaults, which keep the meaning of a recipe.
    """
    try:
        tables = json.loads(text)
        train = tables["train"]
        if "class_" in train:  # older versions wrote the field's name in Python
            train["class"] = train.pop("class_")
        return Recipe.model_validate(tables).model_dump_json() == recipe.model_dump_json()
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def read_log(path: Path, step: int) -> list[dict[str, float]]:
    """Read the log of an earlier run up to a step; empty if there is no log.

    A run that was killed may leave an incomplete last line, which is skipped.
    """
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
            rows.append(row)
    return rows
