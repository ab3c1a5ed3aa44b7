"""teso-deploy: text-guided sounding-object segmentation, exported and streaming.

>>> import teso_deploy
>>> pipeline = teso_deploy.load()                    # the shipped bundle
>>> for segmentation in pipeline.stream("clip.mp4"): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teso_deploy._version import __version__
from teso_deploy.telemetry import switch_off_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from teso_deploy.backends.registry import BackendName
    from teso_deploy.pipeline.pipeline import Pipeline, SizeChoice
    from teso_deploy.types import Precision

__all__ = ["__version__", "load"]

# Here, so that it comes before any module of ours imports ONNX Runtime, in every process.
switch_off_telemetry()


def load(
    bundle: str | Path | None = None,
    *,
    threads: int | None = None,
    backend: BackendName = "cpu",
    size: SizeChoice = None,
    precision: Precision = "fp32",
    still_threshold: float = 0.0,
    profile: str | None = None,
    rebuild_engines: bool = False,
    on_progress: Callable[[str], None] = lambda note: None,
) -> Pipeline:
    """Open a bundle (default: the shipped ``teso-nano``) as a :class:`Pipeline`; see :meth:`Pipeline.load`."""
    from teso_deploy.pipeline.pipeline import Pipeline

    return Pipeline.load(
        bundle,
        threads=threads,
        backend=backend,
        size=size,
        precision=precision,
        still_threshold=still_threshold,
        profile=profile,
        rebuild_engines=rebuild_engines,
        on_progress=on_progress,
    )
