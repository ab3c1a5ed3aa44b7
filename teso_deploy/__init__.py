"""teso-deploy: text-guided sounding-object segmentation, exported and streaming.

>>> import teso_deploy
>>> pipeline = teso_deploy.load()                    # the shipped bundle
>>> for segmentation in pipeline.stream("clip.mp4"): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from teso_deploy.runtime.pipeline import Pipeline

__all__ = ["__version__", "load"]


def load(bundle: str | None = None, **options: Any) -> Pipeline:
    """Open a bundle (default: the shipped ``teso-nano``) as a :class:`Pipeline`.

    ``options`` go to :meth:`Pipeline.load` (``threads``, ``backend``).
    """
    from teso_deploy.runtime.pipeline import Pipeline

    return Pipeline.load(bundle, **options)
