"""What every engine can do, whichever library runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from teso_deploy.bundle import Bundle


class Engine(Protocol):
    """One graph, ready to run."""

    @property
    def name(self) -> str:
        """The graph's name."""

    @property
    def backend(self) -> str:
        """What runs it, for reports: ``cpu``."""

    @property
    def precision(self) -> str:
        """What most of it is computed in, for reports: ``fp32``."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs for all inputs; arrays that are not inputs of the graph are left alone."""


#: (bundle, graph name) → engine.
EngineFactory = Callable[[Bundle, str], Engine]
