"""A server on the loopback address that answers with a case's bytes, right or wrong."""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: A larger request is cut off.
_MAX_HEAD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    ``content``: head and body as they are sent. ``pause_seconds``: the pause between pieces of 100 bytes.
    """

    content: bytes
    pause_seconds: float = 0.0


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


class AnswerServer:
    """Sends the answer that was set for each path, and then closes the connection; a context manager."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}
        self._numbers = itertools.count()
        self._over = threading.Event()
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    outer._answer(self.request)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def add(self, answers: Mapping[str, Answer]) -> str:
        """Return a new prefix (``/7``) under which the paths of ``answers`` are answered."""
        prefix = f"/{next(self._numbers)}"
        self._answers |= {prefix + path: answer for path, answer in answers.items()}
        return prefix

    def _answer(self, connection: Any) -> None:
        connection.settimeout(10)
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD_BYTES:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        lengths = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
        missing = int(lengths[0]) - len(body) if lengths else 0
        while missing > 0:
            missing -= len(connection.recv(min(missing, 1 << 16)) or b"x" * missing)
        answer = self._answers.get(lines[0].split(" ")[1].partition("?")[0])
        if answer is None:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if not answer.pause_seconds:
            connection.sendall(answer.content)
            return
        for at in range(0, len(answer.content), 100):
            connection.sendall(answer.content[at : at + 100])
            if self._over.wait(answer.pause_seconds):
                return

    def __enter__(self) -> AnswerServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
