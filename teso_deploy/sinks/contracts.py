"""The interface of a sink, and what a sink is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from teso_deploy.sinks.delivery import Delivery

#: Outputs of files appear when they are complete. Those of streams can be read while they grow.
InputKind = Literal["files", "streams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a sink is opened with, before the first result.

    Attributes:
        kind: Whether the inputs are files or streams.
        classes: Names of the labels from 1, as the bundle has them.
        inputs: Names of the inputs whose results the sink will take, without credentials.
        bundle: Name of the bundle. Default: none.
    """

    kind: InputKind
    classes: tuple[str, ...]
    inputs: tuple[str, ...]
    bundle: str = ""


class Sink(Protocol):
    """Takes the results of a run. Subclasses write ``append`` and ``close``, and set ``name``.

    A sink is called by one thread. As a context manager it is closed when the block ends; sinks of files then leave
    nothing if the block has raised.

    Attributes:
        name: For people, without credentials.
    """

    name: str

    def append(self, delivery: Delivery) -> None:
        """Take one result; those of an input come in order. Raise :class:`TesoError` if it can take no more."""

    def close(self) -> None:
        """Finish the output."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
