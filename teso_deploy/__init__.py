"""teso-deploy: text-guided sounding-object segmentation, exported and streaming.

>>> import teso_deploy
>>> pipeline = teso_deploy.load()                    # the shipped bundle
>>> pipeline.classes[:3]
('dog', 'rooster', 'elephant')
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from teso_deploy._version import __version__
from teso_deploy.telemetry import switch_off_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Unpack

    from teso_deploy.bundle import Bundle
    from teso_deploy.options.cues import CueOptions
    from teso_deploy.options.engine import EngineKeywords, EngineOptions
    from teso_deploy.options.fields import OptionError
    from teso_deploy.options.media import FrameOptions, SoundOptions
    from teso_deploy.options.output import OutputOptions
    from teso_deploy.options.stream import StreamOptions
    from teso_deploy.pipeline.pipeline import Pipeline
    from teso_deploy.types import AudioWindow, Cues, Frame, Segmentation

#: Public name → its module. They are imported when they are first used: ``import teso_deploy`` loads no library.
_PUBLIC = {
    "AudioWindow": "types",
    "Bundle": "bundle",
    "CueOptions": "options.cues",
    "Cues": "types",
    "EngineOptions": "options.engine",
    "Frame": "types",
    "FrameOptions": "options.media",
    "OptionError": "options.fields",
    "OutputOptions": "options.output",
    "Pipeline": "pipeline.pipeline",
    "Segmentation": "types",
    "SoundOptions": "options.media",
    "StreamOptions": "options.stream",
}

__all__ = [
    "AudioWindow",
    "Bundle",
    "CueOptions",
    "Cues",
    "EngineOptions",
    "Frame",
    "FrameOptions",
    "OptionError",
    "OutputOptions",
    "Pipeline",
    "Segmentation",
    "SoundOptions",
    "StreamOptions",
    "__version__",
    "load",
]

# This must come first, because ONNX Runtime reads the setting when it is imported.
switch_off_telemetry()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def load(
    bundle: str | Path | Bundle | None = None,
    options: EngineOptions | None = None,
    *,
    on_progress: Callable[[str], None] = lambda note: None,
    **keywords: Unpack[EngineKeywords],
) -> Pipeline:
    """Open a bundle and load its graphs.

    Args:
        bundle: folder of the bundle, or the opened bundle. Default: the shipped ``teso-nano``.
        options: how the graphs are run. Default: on the CPU, with all cores.
        on_progress: receives a line about each step that takes time, such as building an engine. Default: no report.
        keywords: fields of :class:`EngineOptions`, as in ``load(threads=1)``; they replace those of ``options``.

    Returns:
        A pipeline: :meth:`Pipeline.stream` segments a file, :meth:`Pipeline.segment` one frame.

    Raises:
        OptionError: options are out of range, or have no effect on this backend.
        BundleError: the bundle is damaged, or lacks what the options ask for; see also :meth:`Pipeline.load`.
    """
    from teso_deploy.pipeline.pipeline import Pipeline

    return Pipeline.load(bundle, options, on_progress=on_progress, **keywords)
