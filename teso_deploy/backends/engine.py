"""The interface of every engine, independent of the library that runs it.

A graph takes arrays and returns arrays (:meth:`Engine.run`). If the outputs of one graph are the inputs of another, a
:class:`Slot` leaves them in the memory of the device, so that they do not pass through NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from teso_deploy.bundle import Bundle


class Tensor(Protocol):
    """An output of a graph, in the memory of the host or of a device."""

    def numpy(self) -> NDArray[Any]:
        """Return the content on the host.

        The array may be a view that the slot's next run overwrites: copy what you keep.
        """


class Slot(Protocol):
    """The outputs of one graph: allocated by the first run, overwritten by each later one."""

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, Tensor]:
        """Run the graph.

        Args:
            feeds: Inputs by name: arrays, or tensors of other slots of the same backend. They are only read. Names that
                are not inputs of the graph are ignored.

        Returns:
            Outputs by name, the same tensors each time while the inputs keep their shapes.
        """


class Engine(Protocol):
    """One graph, ready to run."""

    @property
    def name(self) -> str:
        """The graph's name."""

    @property
    def backend(self) -> str:
        """The backend's name: ``cpu``."""

    @property
    def precision(self) -> str:
        """The precision of most tensors of the engine: ``fp32``."""

    @property
    def form(self) -> str | None:
        """The manifest's name of the form that the engine runs; None for the canonical graph."""

    @property
    def is_asynchronous(self) -> bool:
        """True if a slot's run only queues work on a device; reading an output then waits for the run."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on the inputs by name and return its outputs. Other names are ignored."""

    def slot(self) -> Slot:
        """Make a slot. It shares only the weights with the engine's other slots."""


#: (bundle, graph name) → engine.
EngineFactory = Callable[[Bundle, str], Engine]
