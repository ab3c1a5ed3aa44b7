"""Loads the model of a command. Invalid options are refused before engines are built, which takes minutes."""

from __future__ import annotations

from rich.console import Console

from teso_deploy.bundle import Bundle
from teso_deploy.cli.reports import list_shown, say
from teso_deploy.errors import CueError
from teso_deploy.options.engine import EngineOptions
from teso_deploy.pipeline.pipeline import Pipeline


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
