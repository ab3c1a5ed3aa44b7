"""How the graphs of a bundle are run: backend, precision, picture size, threads."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypedDict

from teso_deploy.backends.registry import BackendName, describe_choice, list_backends, list_targets
from teso_deploy.options.fields import OptionError, Options, option
from teso_deploy.text import to_one_line
from teso_deploy.types import Precision

#: (height, width), "auto", or None: the bundle's first size.
SizeChoice = tuple[int, int] | Literal["auto"] | None
#: The pattern limits the number of digits, because Python refuses to convert thousands of digits to a number.
_SIZE = re.compile(r"(\d{1,9})(?:x(\d{0,9}))?", re.ASCII | re.IGNORECASE)


def parse_size_choice(text: str | None) -> SizeChoice:
    """Read ``288x512`` (height first), ``384`` (for 384x384) or ``auto``. None and "" give None.

    Raises:
        OptionError: the text is none of these.
    """
    if not text or text == "auto":
        return "auto" if text else None
    if (match := _SIZE.fullmatch(text)) is None:
        raise OptionError(
            "{size} {shown}: give height x width in pixels as 288x512, 384 for 384x384, or auto",
            shown=to_one_line(text, 40),
        )
    return int(match[1]), int(match[2] or match[1])


def parse_backend(text: str) -> BackendName:
    """Check the name of a backend. Raises :class:`OptionError`."""
    if text not in list_backends():
        known = ", ".join(map(repr, list_backends()))
        raise OptionError("{given} is not one of {known}.", field="backend", given=repr(text), known=known)
    return text


def check_engine_building(backends: Collection[str], profile: str | None, rebuild_engines: bool) -> None:
    """Refuse options of engine builds if no backend builds engines.

    Args:
        backends: names of the backends that will run.
        profile: see :class:`EngineOptions`.
        rebuild_engines: see :class:`EngineOptions`.

    Raises:
        OptionError: one of the two is given, and none of the backends builds engines.
    """
    if (profile is not None or rebuild_engines) and not set(backends) & set(list_targets()):
        raise OptionError(
            "only {backend} {targets} build engines: name one of them, or omit this",
            field="rebuild_engines" if profile is None else "profile",
            targets=" and ".join(list_targets()),
        )


#: The most threads that a user may request. Each graph has its own threads: with 100,000, the engines took 10 GB and a
#: run did not begin.
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class BuildOptions(Options):
    """How engines are built, for backends that build them.

    Attributes:
        profile: name of a shipped profile, or a TOML file. Default: the backend's own.
        rebuild_engines: build engines again, whatever the bundle or the cache has. Default: no.
    """

    profile: str | None = option(None, "How engines are built: a shipped profile's name, or a TOML file.")
    rebuild_engines: bool = option(False, "Build engines again, even if the bundle or the cache has them.")


@dataclass(frozen=True, kw_only=True)
class EngineOptions(BuildOptions):
    """How the graphs of a bundle are run.

    Attributes:
        backend: what runs the graphs: a name of ``backends/registry.py``, such as ``cpu`` (ONNX Runtime), ``cuda``
            (ONNX Runtime on a GPU) or ``tensorrt``. ``auto`` is the first that can run this bundle without building an
            engine. Default: ``cpu``.
        precision: which of the bundle's forms for the backend. Default: ``fp32``.
        size: (height, width) that frames are fitted to. "auto": the size of the nearest shape for each frame. None, the
            default: the bundle's first size, at which the model was trained.
        threads: how many threads ONNX Runtime uses on the CPU. Default: all cores.
        still_threshold: a frame that differs by at most this many grey levels from the last encoded one uses its
            features again. The difference is the largest mean over squares of 32 x 32 pixels at that size, 0 to 255.
            Default 0: only equal frames use them.
        profile: how TensorRT engines are built: name of a shipped profile, or a TOML file.
        rebuild_engines: build engines again, whatever the bundle or the cache has. Default: no.
    """

    backend: BackendName = option(
        "cpu",
        describe_choice(),
        metavar=f"[{'|'.join(list_backends())}]",
        given_as=str,
        read=parse_backend,
    )
    precision: Precision = option("fp32", "Precision of the bundle's form for the backend.")
    size: SizeChoice = option(
        None,
        "One of the bundle's sizes; auto: for each frame the nearest. Default: the first.",
        metavar="HxW|N|auto",
        given_as=str | None,
        read=parse_size_choice,
    )
    threads: int | None = option(
        None, "Number of threads of the engines. Default: all cores.", minimum=1, maximum=MOST_THREADS
    )
    still_threshold: float = option(
        0.0,
        "Do not encode a frame again if no pixel differs by more than this many grey levels. 0: encode every change.",
        minimum=0,
        maximum=255,
        unit="grey levels",
    )

    def check(self) -> None:
        """Refuse options of engine builds for a backend that does not build engines."""
        check_engine_building([self.backend], self.profile, self.rebuild_engines)


class EngineKeywords(TypedDict, total=False):
    """The fields of :class:`EngineOptions` as keyword arguments, for type checkers. A test compares the two."""

    backend: BackendName
    precision: Precision
    size: SizeChoice
    threads: int | None
    still_threshold: float
    profile: str | None
    rebuild_engines: bool
