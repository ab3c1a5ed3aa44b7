"""Checkpoints of this package on disk, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from teso_deploy.errors import CheckpointError
from teso_deploy.models.state_dicts import Averaging
from teso_deploy.models.weight_files import read, read_metadata
from teso_deploy.outputs import open_staged_file
from teso_deploy.recipe import Calibration, Recipe
from teso_deploy.text import to_one_line

#: The metadata key of a checkpoint's calibration.
CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True)
class KeyReport:
    """The result of loading a checkpoint: ``loaded`` keys, and keys that did not fit."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether the file gave every parameter and had no other keys."""
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
    """Write a model's weights as safetensors, completely or not at all.

    Args:
        model: The model.
        path: The file to write.
        metadata: Metadata of the file. Default: none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with open_staged_file(path) as file:
        save_file(tensors, file.name, dict(metadata or {}))


def read_recipe(path: Path) -> Recipe:
    """Return the recipe that a checkpoint of `train` was trained with.

    Raises the errors of :func:`read`, and :class:`CheckpointError` if the file does not name its recipe.
    """
    text = read_metadata(path).get("recipe")
    try:
        return Recipe.model_validate_json(text or "")
    except ValueError as error:
        raise CheckpointError(
            f"{path} does not name its recipe: give the model.safetensors that `train` wrote"
        ) from error


def apply_calibration(recipe: Recipe, path: Path) -> Recipe:
    """Return the recipe with a checkpoint's calibrated thresholds, or unchanged if it was not calibrated.

    Raises :class:`CheckpointError` if the calibration can't be read.
    """
    text = read_metadata(path).get(CALIBRATION)
    try:
        return recipe if text is None else Calibration.model_validate_json(text).apply(recipe)
    except ValueError as error:
        raise CheckpointError(f"{path}: its calibration can't be read; run teso-deploy calibrate again") from error


def apply_framing(recipe: Recipe, path: Path) -> Recipe:
    """Return the recipe with the framing of the sound that a checkpoint was trained with, if the file says."""
    try:
        trained = Recipe.model_validate_json(read_metadata(path).get("recipe", ""))
    except ValueError:
        return recipe
    return recipe.model_copy(update={"audio": recipe.audio.model_copy(update={"framing": trained.audio.framing})})


def load(model: nn.Module, path: Path, *, parts: Sequence[str] = (), averaging: Averaging | None = None) -> KeyReport:
    """Load a checkpoint of this package into a model. Every key must fit.

    Args:
        model: The model to fill.
        path: The checkpoint.
        parts: Load only keys that start with one of these, and require only these to fit. Default: all keys.
        averaging: Which weights to take if the file has both trained and averaged ones.

    Raises:
        CheckpointError: Names the keys that do not fit; and the errors of :func:`weight_files.read_weights`.
    """
    return fill(model, read(path, averaging)[0], path=path, parts=parts)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, path: Path, parts: Sequence[str] = ()) -> KeyReport:
    """Load tensors into a model. Every key must fit.

    Args:
        model: The model to fill.
        tensors: The tensors by key.
        path: The checkpoint that they are from, for messages.
        parts: Load only keys that start with one of these. Default: all keys.

    Raises:
        CheckpointError: Names the keys that do not fit.
    """
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
