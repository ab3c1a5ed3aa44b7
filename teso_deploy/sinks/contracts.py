"""The interface of a sink, and the facts of a run that a sink is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Literal, Protocol, Self

from teso_deploy.sinks.delivery import Delivery

#: For files, outputs appear when they are complete. For streams, outputs can be read while they grow.
InputKind = Literal["files", "streams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """The facts of a run that a sink is opened with, before the first result.

    Attributes:
        kind: Whether the inputs are files or streams.
        classes: Names of the labels from 1, as in the bundle.
        inputs: Names of the inputs whose results the sink will take, without credentials.
        bundle: Name of the bundle. Default: none.
    """

    kind: InputKind
    classes: tuple[str, ...]
    inputs: tuple[str, ...]
    bundle: str = ""


class Sink(Protocol):
    """Takes the results of a run. Subclasses define ``append`` and ``close``, and set ``name``.

    One thread calls a sink. As a context manager it is closed when the block ends. If the block has raised, sinks of
    files leave no file.

    Attributes:
        name: Display name, without credentials.
        wants_variants: Whether deliveries need ``variants``. Only runs of files make them.
    """

    name: str
    wants_variants: ClassVar[bool] = False

    def append(self, delivery: Delivery) -> None:
        """Take one result; those of an input come in order. Raise :class:`TesoError` if the sink can't take more."""

    def close(self) -> None:
        """Finish the output."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
