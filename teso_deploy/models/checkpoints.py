"""Checkpoints on disk: safetensors of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from teso_deploy.errors import CheckpointError
from teso_deploy.models.state_dicts import Averaging
from teso_deploy.models.weight_files import read, read_metadata
from teso_deploy.outputs import staged_file
from teso_deploy.recipe import Calibration, Recipe
from teso_deploy.text import to_one_line

#: Where a checkpoint's metadata keep its calibration.
CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True)
class KeyReport:
    """What a checkpoint gave a model: ``loaded`` keys, and those that did not fit."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """True when every parameter came from the file and nothing was left over."""
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        parts = []
        for name in ("missing", "unexpected", "misshaped"):
            keys: tuple[str, ...] = getattr(self, name)
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                parts.append(f"{len(keys)} {name} ({to_one_line(', '.join(keys[:3]))}{more})")
        return "; ".join(parts) or f"all {len(self.loaded)} keys loaded"


def save(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's weights as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with staged_file(path) as file:
        save_file(tensors, file.name, dict(metadata or {}))


def recipe_of(path: Path) -> Recipe:
    """The recipe that a checkpoint of `train` was trained with.

    Raises what :func:`read` raises, and :class:`CheckpointError` where the file does not say.
    """
    text = read_metadata(path).get("recipe")
    try:
        return Recipe.model_validate_json(text or "")
    except ValueError as error:
        raise CheckpointError(
            f"{path} does not say of which recipe it is: give the model.safetensors that `train` wrote"
        ) from error


def calibrated(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with the thresholds that a checkpoint was calibrated to; the recipe itself where it was not.

    Raises :class:`CheckpointError` when the calibration can't be read.
    """
    text = read_metadata(path).get(CALIBRATION)
    try:
        return recipe if text is None else Calibration.model_validate_json(text).apply(recipe)
    except ValueError as error:
        raise CheckpointError(f"{path}: its calibration can't be read; run teso-deploy calibrate again") from error


def load(model: nn.Module, path: Path, parts: Sequence[str] = (), averaging: Averaging | None = None) -> KeyReport:
    """Load a checkpoint of our own into a model; every key must fit.

    Args:
        model: What is filled.
        path: The checkpoint.
        parts: Only the keys that start with one of these, and only they must fit; default: all.
        averaging: Which weights of a file that holds an average beside the trained ones.

    Raises:
        CheckpointError: Names the keys that do not fit; and what :func:`weight_files.read_weights` raises.
    """
    return fill(model, read(path, averaging)[0], path, parts)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, parts: Sequence[str] = ()) -> KeyReport:
    """Load tensors of the checkpoint ``path`` into a model; the rest is as for :func:`load`."""
    own = model.state_dict()
    if parts:
        tensors = {key: value for key, value in tensors.items() if key.startswith(tuple(parts))}
        own = {key: value for key, value in own.items() if key.startswith(tuple(parts))}
    misshaped = tuple(
        f"{key} {list(tensors[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    )
    report = KeyReport(
        tuple(key for key in own if key in tensors),
        tuple(key for key in own if key not in tensors),
        tuple(key for key in tensors if key not in own),
        misshaped,
    )
    if not report.is_complete:
        raise CheckpointError(f"{path} does not fit the recipe: {report}; use the recipe it was trained with")
    model.load_state_dict(tensors, strict=not parts)
    return report
