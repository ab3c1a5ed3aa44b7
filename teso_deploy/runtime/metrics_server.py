"""Numbers of a live run by HTTP: ``/metrics`` for Prometheus, ``/health`` as JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from teso_deploy.errors import OutputError
from teso_deploy.runtime.accounting import prometheus

DEFAULT_HOST = "127.0.0.1"


def parsed_place(text: str) -> tuple[str, int]:
    """``:9090``, ``9090`` or ``HOST:PORT``. Raises :class:`OutputError`."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65536:
        raise OutputError(f"{text!r} is no place for metrics: give :PORT or HOST:PORT")
    return host.strip("[]") or DEFAULT_HOST, int(port)


class MetricsServer:
    """Answers until it is closed; a context manager. Port 0: any that is free, see :attr:`address`.

    Raises :class:`OutputError` where the port is taken.
    """

    def __init__(self, place: str, snapshot: Callable[[], dict[str, Any]]) -> None:
        host, port = parsed_place(place)

        class Handler(BaseHTTPRequestHandler):
            """Two pages."""

            timeout = 10

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._send(prometheus(snapshot()), "text/plain; version=0.0.4; charset=utf-8")
                elif self.path == "/health":
                    found = snapshot()
                    is_well = all(stream["state"] in ("running", "ended") for stream in found["streams"])
                    self._send(json.dumps(found), "application/json", 200 if is_well else 503)
                else:
                    self.send_error(404)

            def _send(self, text: str, kind: str, status: int = 200) -> None:
                content = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody wants to see who asks."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise OutputError(
                f"{place} can't serve metrics ({getattr(error, 'strerror', error)}): name another port"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="teso-metrics", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
