"""TensorRT and TensorRT-RTX: two libraries with one API. Only this module distinguishes them.

``tensorrt`` builds an engine on a GPU, for that GPU. ``tensorrt-rtx`` builds without a GPU, for named generations or
for all of them, and compiles its kernels when an engine is first run.
"""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass, field
from typing import Any

from teso_deploy.backends.registry import BACKENDS, check_installed
from teso_deploy.backends.tensorrt.targets import TARGETS, Target
from teso_deploy.errors import EngineError
from teso_deploy.requirements import write_install_command


@dataclass
class Messages:
    """The library's errors and warnings, in order."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def take(self, severity: str, text: str) -> None:
        """Keep a message if it is an error or a warning."""
        if severity.endswith("ERROR"):
            self.errors.append(text)
        elif severity == "WARNING":
            self.warnings.append(text)

    @property
    def is_out_of_memory(self) -> bool:
        """Whether an error reports a lack of the GPU's memory."""
        joined = " ".join(self.errors).lower().replace(" ", "")
        return "outofmemory" in joined

    @property
    def first_error(self) -> str:
        """Return the first error without positions in the library's source; "no reason given" if there is none."""
        if not self.errors:
            return "no reason given"
        text = re.sub(r"\(In [^()]*? at [^()]*?\)|\[[\w./]+::\w+::\d+\]", "", self.errors[0])
        return " ".join(text.split()).rstrip(". ")


@dataclass(frozen=True)
class TensorRTLibrary:
    """A loaded library: TensorRT or TensorRT-RTX.

    Attributes:
        target: Its name.
        trt: Its module.
        version: Its version.
        logger: The logger of every object that is made with it.
        messages: The messages that the logger has kept.
    """

    target: Target
    trt: Any
    version: str
    logger: Any
    messages: Messages

    @property
    def is_portable(self) -> bool:
        """Whether engines are built without a GPU, for other GPUs than the one in this machine."""
        return TARGETS[self.target].is_portable

    def architectures(self) -> tuple[str, ...]:
        """Generations that engines can be built for, such as ``sm89``; none if they are built for this GPU only."""
        if not self.is_portable:
            return ()
        names = (name.lower() for name in dir(self.trt.ComputeCapability) if re.fullmatch(r"SM\d+", name))
        return tuple(sorted(names, key=lambda name: int(name[2:])))

    def has_plugin(self, name: str, version: str) -> bool:
        """Whether a plugin is registered."""
        registry = self.trt.get_plugin_registry()
        return any(
            creator.name == name and creator.plugin_version == version and not creator.plugin_namespace
            for creator in registry.all_creators
        )


@functools.cache
def load_library(target: Target) -> TensorRTLibrary:
    """Load a library and its plugins.

    Raises:
        MissingExtraError: The library is not installed.
        EngineError: The library can't be loaded, or its version has another API.
    """
    check_installed(target)
    try:
        trt = importlib.import_module(BACKENDS[target].modules[0])
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"{target} is installed and can't be loaded ({error}): {write_install_command(target, '--force-reinstall')}"
        ) from error
    return adopt(target, trt)


def adopt(target: Target, trt: Any) -> TensorRTLibrary:
    """Take a loaded module as a library. Raises :class:`EngineError` for a version with another API."""
    version = str(trt.__version__)
    first, end = TARGETS[target].first_version, TARGETS[target].end_version
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not first <= numbers < end:
        raise EngineError(
            f"{target} {version} is here, this package works with {first[0]}.{first[1]} up to {end[0]}.{end[1]}: "
            f"{write_install_command(target, '--upgrade')}"
        )
    messages = Messages()

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        """Keeps errors and warnings; printing all messages would hide the progress."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            """Take a message; called by the library from any of its threads."""
            messages.take(str(severity).rpartition(".")[2], text)

    logger = Logger()
    trt.init_libnvinfer_plugins(logger, "")
    return TensorRTLibrary(target, trt, version, logger, messages)
