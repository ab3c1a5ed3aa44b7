"""Results as calls of a function."""

from __future__ import annotations

from collections.abc import Callable

from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery


class CallbackSink(Sink):
    """Calls a function with every result.

    An exception of the function ends only this sink in a run of streams, and the whole run in a run of files.
    """

    def __init__(self, callback: Callable[[Delivery], None], name: str = "callback") -> None:
        self.name, self._callback = name, callback

    def append(self, delivery: Delivery) -> None:
        self._callback(delivery)

    def close(self) -> None:
        pass


def open_callback_sink(callback: Callable[[Delivery], None], run: RunFacts) -> CallbackSink:
    """Open the sink with the arguments that the registry passes to every sink; the facts of the run are not used."""
    return CallbackSink(callback)
