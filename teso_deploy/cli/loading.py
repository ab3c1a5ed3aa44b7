"""The model of a command. What can be refused is refused before engines are built, which takes minutes."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console

from teso_deploy.backends.registry import BackendName, list_backends, list_targets
from teso_deploy.bundle import Bundle
from teso_deploy.cli.reports import say, shown_in
from teso_deploy.errors import CueError
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.pipeline.pipeline import Pipeline, SizeChoice
from teso_deploy.types import Precision


def parse_backend(text: str) -> BackendName:
    """Check the value of ``--backend`` (:class:`typer.BadParameter`)."""
    if text not in list_backends():
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, list_backends()))}.")
    return text


def check_engine_options(backends: Sequence[str], profile: str | None, rebuild_engines: bool) -> None:
    """Refuse options of engines where no backend builds any (:class:`typer.BadParameter`)."""
    if (profile is not None or rebuild_engines) and not set(backends) & set(list_targets()):
        raise typer.BadParameter(
            f"only --backend {' and '.join(list_targets())} build engines: name one of them, or leave this away",
            param_hint="--rebuild-engines" if profile is None else "--profile",
        )


def check_tagger(bundle: Bundle) -> None:
    """Refuse ``--cues auto`` for a bundle without a tagger (:class:`CueError`)."""
    if bundle.manifest.tagger is None:
        raise CueError(f"bundle {bundle.manifest.name} has no tagger for --cues auto: name what is to be seen as cues")


def load_pipeline(
    console: Console,
    bundle: Bundle,
    backend: BackendName,
    precision: Precision,
    *,
    threads: int | None = None,
    profile: str | None = None,
    rebuild_engines: bool = False,
    size: SizeChoice = None,
    still_threshold: float = 0.0,
) -> Pipeline:
    """:meth:`Pipeline.load` of an opened bundle; what it says is shown, and what matters of it stays."""
    with console.status("loading the model") as status:
        chosen = load_backend(
            backend,
            bundle,
            precision,
            threads=threads,
            profile=profile,
            rebuild_engines=rebuild_engines,
            on_progress=shown_in(status),
            on_note=lambda note: say(console, note),
        )
        return Pipeline(bundle, chosen.engines, size=size, still_threshold=still_threshold, operators=chosen.operators)
