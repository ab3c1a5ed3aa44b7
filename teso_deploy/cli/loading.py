"""Loads the model of a command. Invalid options are refused before engines are built, which takes minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from teso_deploy.backends.registry import check_installed
from teso_deploy.bundle import Bundle
from teso_deploy.cli.reports import list_shown, say
from teso_deploy.cli.values import parse_checkpoint
from teso_deploy.errors import CueError
from teso_deploy.options.engine import EngineOptions
from teso_deploy.options.weights import WeightOptions
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.recipe import load_recipe

if TYPE_CHECKING:
    from teso_deploy.conversion.checkpoint_bundle import OpenCheckpoint


def check_tagger(bundle: Bundle) -> None:
    """Refuse ``--cues auto`` for a bundle without a tagger (:class:`CueError`)."""
    if bundle.manifest.tagger is None:
        raise CueError(f"bundle {bundle.manifest.name} has no tagger for --cues auto: name visible objects as cues")


def load_pipeline(console: Console, bundle: Bundle, engine: EngineOptions | None = None) -> Pipeline:
    """Load an opened bundle as :meth:`Pipeline.load` does.

    Args:
        console: shows what is being done; notes for the user stay on it.
        bundle: the opened bundle.
        engine: how its graphs are run. Default: on the CPU.

    Raises what :meth:`Pipeline.load` raises.
    """
    with console.status("loading the model") as status:
        return Pipeline.load(bundle, engine, on_progress=list_shown(status), on_note=lambda note: say(console, note))


def open_checkpoint(
    console: Console, weights: WeightOptions, *, recipe: str | None, bundle: Path | None
) -> OpenCheckpoint:
    """Open checkpoints for a command that runs them by PyTorch.

    Args:
        console: shows what is being done.
        weights: the checkpoints.
        recipe: name or file of their recipe. Default: that of ``bundle``, or the one that the checkpoint names.
        bundle: a bundle of the same recipe, whose cue table is used. Default: the words are embedded again.

    Raises what :func:`teso_deploy.conversion.checkpoint_bundle.open_checkpoint` raises, and
    :class:`MissingExtraError` without PyTorch.
    """
    check_installed("pytorch")
    from teso_deploy.conversion import checkpoint_bundle

    with console.status("loading the checkpoint") as status:
        return checkpoint_bundle.open_checkpoint(
            [parse_checkpoint(text) for text in weights.checkpoint],
            recipe=None if recipe is None else load_recipe(recipe),
            bundle=None if bundle is None else Bundle.open(bundle),
            random_weights_seed=weights.random_weights,
            averaging=weights.averaging,
            on_progress=list_shown(status),
        )


def wrap_checkpoint(checkpoint: OpenCheckpoint, threads: int | None = None) -> Pipeline:
    """Make a pipeline that runs a checkpoint's modules.

    Args:
        checkpoint: the opened checkpoint.
        threads: threads of PyTorch in this process. Default: as many as it chose.
    """
    from teso_deploy.conversion.pytorch_backend import set_threads, wrap_model

    set_threads(threads)
    return Pipeline(checkpoint.bundle, wrap_model(checkpoint.model))
