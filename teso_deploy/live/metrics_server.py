"""Serve the counts of a live run by HTTP: ``/metrics`` for Prometheus, ``/health`` as JSON.

One thread serves all clients. Limits protect the run from them: the number of connections at a time, the time and the
bytes of each, and the number of new ones per second.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from functools import partial
from types import TracebackType
from urllib.parse import urlsplit

from teso_deploy.errors import OutputError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.prometheus import render_metrics
from teso_deploy.text import to_one_line

DEFAULT_HOST = "127.0.0.1"
#: Simultaneous connections. A new one replaces the oldest, so that slow clients do not block others.
MOST_CONNECTIONS = 16
#: The longest time from accepting a connection to closing it.
CONNECTION_SECONDS = 5.0
#: How long a client may take to close its side after the answer. Closing first could discard data that it has not read.
LINGER_SECONDS = 1.0
MOST_REQUEST_BYTES = 16 * 1024
#: Connections that the system queues until they are accepted. They use no file descriptor of the process.
BACKLOG = 128
#: Pause after each new connection, so that a flood of them takes only a few per cent of one core.
ACCEPT_PAUSE_SECONDS = 0.005
_MOST_DIGITS = 5
#: Pause after accepting has failed, for example because the process has no file descriptor left.
RETRY_SECONDS = 0.5

_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) (\S+) HTTP/1\.[0-9]\r?")
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
_INDEX = b"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>teso-deploy</title>
<ul><li><a href="/metrics">/metrics</a>: Prometheus<li><a href="/health">/health</a>: JSON</ul></html>
"""
#: A response: status, content, content type.
_Answer = tuple[int, bytes, str]


def parse_place(text: str) -> tuple[str, int]:
    """Parse ``:9090``, ``9090`` or ``HOST:PORT``. Raises :class:`OutputError`."""
    host, _, port = text.rpartition(":")
    # int() raises for text of thousands of digits.
    if not port.isdecimal() or len(port) > _MOST_DIGITS or not 0 <= int(port) < 65536:
        raise OutputError(f"{to_one_line(repr(text), 100)} is not a place for metrics: give :PORT or HOST:PORT")
    return host.strip("[]") or DEFAULT_HOST, int(port)


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)  # type: ignore[arg-type]
    listening.setblocking(False)
    return listening


def _encode_answer(answer: _Answer, is_head: bool) -> bytes:
    status, content, content_type = answer
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        *(["Allow: GET, HEAD"] if status == 405 else []),
        "Connection: close",
    ]
    return "\r\n".join((*lines, "", "")).encode() + (b"" if is_head else content)


def _refuse(status: int) -> _Answer:
    # The text depends only on the status, so the answer repeats no part of the request.
    return status, f"{_REASONS[status]}\n".encode(), "text/plain; charset=utf-8"


class MetricsServer:
    """Serves the pages until it is closed; a context manager.

    Args:
        place: ``:PORT``, ``PORT`` or ``HOST:PORT``. Port 0 takes any free port, see :attr:`address`.
        accounting: The run's counts.
        connections: The most clients that are served at a time.
        seconds: The longest time a client is served, from accepting its connection to closing it.

    Raises:
        OutputError: The server can't listen on the place.
    """

    def __init__(
        self,
        place: str,
        accounting: Accounting,
        *,
        connections: int = MOST_CONNECTIONS,
        seconds: float = CONNECTION_SECONDS,
    ) -> None:
        self._accounting, self._most_connections, self._seconds = accounting, connections, seconds
        try:
            self._listening = _listen(*parse_place(place))
            self._loop = asyncio.new_event_loop()
        except OutputError:
            raise
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"{place} can't serve metrics ({reason}): name another port") from error
        host, port = self._listening.getsockname()[:2]
        #: HOST:PORT.
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._clients: dict[asyncio.Task[None], None] = {}  # the oldest is the first
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="teso-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._listening.close()
            self._loop.close()

    async def _serve(self) -> None:
        accepting = self._loop.create_task(self._accept())
        await self._closing.wait()
        accepting.cancel()
        tasks = [accepting, *self._clients]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listening)
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if len(self._clients) >= self._most_connections:
                next(iter(self._clients)).cancel()
            task = self._loop.create_task(self._attend(connection))
            self._clients[task] = None
            task.add_done_callback(partial(self._forget, connection))
            await asyncio.sleep(ACCEPT_PAUSE_SECONDS)

    def _forget(self, connection: socket.socket, client: asyncio.Task[None]) -> None:
        connection.close()
        del self._clients[client]

    async def _attend(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                answer, is_head = await self._answer(connection)
                await self._loop.sock_sendall(connection, _encode_answer(answer, is_head))
                connection.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(LINGER_SECONDS):
                    while await self._loop.sock_recv(connection, 65536):
                        pass
        except (OSError, TimeoutError):
            pass  # the client has gone, or was too slow

    async def _answer(self, connection: socket.socket) -> tuple[_Answer, bool]:
        request = b""
        while not (ends := re.search(rb"\r?\n\r?\n", request)):
            if len(request) >= MOST_REQUEST_BYTES:
                return _refuse(431), False
            received = await self._loop.sock_recv(connection, 4096)
            if not received:
                return _refuse(400), False
            request += received
        line, _, headers = request[: ends.start()].partition(b"\n")
        if not (found := _REQUEST_LINE.fullmatch(line)):
            return _refuse(400), False
        method, target = found[1], found[2].decode("latin-1")
        try:
            path = urlsplit(target).path
        except ValueError:
            return _refuse(400), False
        if path not in ("/", "/metrics", "/health"):
            return _refuse(404), method == b"HEAD"
        if method not in (b"GET", b"HEAD"):
            return _refuse(405), False
        try:
            return self._render(path, headers), method == b"HEAD"
        except Exception:  # an error in the counts must not end the run
            return _refuse(500), method == b"HEAD"

    def _render(self, path: str, headers: bytes) -> _Answer:
        if path == "/":
            return 200, _INDEX, "text/html; charset=utf-8"
        if path == "/metrics":
            accept = re.search(rb"(?im)^accept:(.*)$", headers)
            return 200, *render_metrics(self._accounting, accept[1].decode("latin-1") if accept else "")
        found = self._accounting.snapshot()
        is_well = all(stream["state"] in ("running", "ended") for stream in found["streams"])
        return 200 if is_well else 503, json.dumps(found).encode(), "application/json"

    def close(self) -> None:
        """Stop serving. May be called more than once."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(2)

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
