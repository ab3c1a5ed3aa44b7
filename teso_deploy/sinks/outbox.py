"""Pass the results of a live run to a sink in a separate thread, so that a slow sink delays nothing else."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from teso_deploy.errors import OutputError, TesoError
from teso_deploy.sinks.contracts import Sink
from teso_deploy.sinks.delivery import Delivery

#: The most results that wait for a sink. A live run drops the oldest if there are more.
MOST_WAITING = 16
#: How long the end of a run waits for a sink to finish.
CLOSE_SECONDS = 20.0


class Outbox:
    """A queue in front of a sink, and the thread that empties it.

    A sink that raises is closed, and :attr:`error` says why; the run continues without it.

    Args:
        sink: The sink.
        lossless: If the queue is full, :meth:`put` waits. Default: the oldest results are dropped and counted.
        most_waiting: The size of the queue.
        name: The name in messages and in the report. Default: the sink's.
    """

    def __init__(
        self, sink: Sink, lossless: bool = False, *, most_waiting: int = MOST_WAITING, name: str | None = None
    ) -> None:
        self.sink, self.name, self._lossless, self._most = sink, name or sink.name, lossless, most_waiting
        self.error: TesoError | None = None
        self.delivered = self.dropped = 0
        self._waiting: deque[Delivery] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"teso-sink-{self.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Add a result to the queue."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: self.error or self._closing or len(self._waiting) < self._most)
            if self.error is not None or self._closing:
                self.dropped += 1
                return
            if len(self._waiting) >= self._most:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(delivery)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closing)
                    if not self._waiting:
                        break
                    delivery = self._waiting.popleft()
                    self._changed.notify_all()
                self.sink.append(delivery)
                self.delivered += 1
        except Exception as error:  # a user's callback may raise anything
            self._fail(error)
        try:
            self.sink.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            if self.error is None:
                message = f"{self.name} failed ({type(error).__name__}: {error}): it gets no further results"
                self.error = error if isinstance(error, TesoError) else OutputError(message)
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Let the sink take the waiting results and finish.

        If that takes longer than the timeout, the results that still wait are dropped.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._fail(
                OutputError(f"{self.name} did not finish within {timeout_seconds:g} s: its waiting results are lost")
            )

    def get_health(self) -> dict[str, Any]:
        """Return a report's facts about the sink: results delivered and dropped, and its error."""
        error = None if self.error is None else str(self.error)
        return {"delivered": self.delivered, "dropped": self.dropped, "error": error}
