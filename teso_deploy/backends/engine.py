"""What every engine can do, whichever library runs it.

Each graph takes arrays and gives arrays (:meth:`Engine.run`). Where one graph's outputs are
another's inputs, a :class:`Slot` leaves them where they are, so that none of them passes
through NumPy on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from teso_deploy.bundle import Bundle


class Tensor(Protocol):
    """An output of a graph where its backend left it, in the memory of the host or of a device."""

    def numpy(self) -> NDArray[Any]:
        """Its content on the host. It may be a view: copy what has to outlive the slot's next run."""


class Slot(Protocol):
    """Room for one graph's outputs: allocated at the first run, written anew by each one after it."""

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, Tensor]:
        """All outputs for all inputs; feeds that are not inputs of the graph are left alone.

        Inputs may be tensors of other slots of the same backend, and are only read. As long as their shapes
        stay, the outputs are the same tensors each time.
        """


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
    def form(self) -> str | None:
        """The form of the graph that it runs, by its name in the manifest; None is the canonical graph."""

    @property
    def is_asynchronous(self) -> bool:
        """True if a slot's run only queues work on a device: the outputs are there when they are read."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs for all inputs; arrays that are not inputs of the graph are left alone."""

    def slot(self) -> Slot:
        """A new slot. It shares the weights, and nothing else, with the engine's other slots."""


#: (bundle, graph name) → engine.
EngineFactory = Callable[[Bundle, str], Engine]
