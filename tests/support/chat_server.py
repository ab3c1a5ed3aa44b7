"""A server that speaks OpenAI's protocol and answers by a script, faults included."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from teso_deploy.cues.chat_server import ChatServer

MODELS = ("seer-7b", "thinker-1b")


class Request:
    """A received request, and the means to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: Any, over: threading.Event) -> None:
        self._handler, self.body, self.over = handler, body, over
        self.path, self.headers = handler.path, dict(handler.headers)

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        """Send a complete answer. A string is sent unchanged, anything else as JSON."""
        raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.head(status, "application/json", {"Content-Length": str(len(raw)), **(headers or {})})
        self.write(raw)

    def head(self, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self._handler.send_response(status)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def write(self, raw: bytes) -> None:
        self._handler.wfile.write(raw)
        self._handler.wfile.flush()

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the test."""
        self.over.wait(seconds)

    def hang_up(self) -> None:
        self._handler.close_connection = True


Answer = Callable[[Request], None]


def saying(text: str) -> Answer:
    """Return an answer that has the whole text at once."""
    message = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return lambda request: request.send(200, message)


def event(piece: str | None, end: str | None = None) -> bytes:
    delta = {} if piece is None else {"content": piece}
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": end}]}).encode() + b"\n\n"


def streaming(*pieces: str, done: bool = True, pause: float = 0.0, role: bool = True) -> Answer:
    """Return an answer in pieces, as server-sent events."""

    def answer(request: Request) -> None:
        request.head(200, "text/event-stream; charset=utf-8")
        if role:
            request.write(b'data: {"choices": [{"delta": {"role": "assistant"}, "finish_reason": null}]}\n\n')
        for piece in pieces:
            request.write(event(piece))
            request.wait(pause)
        if done:
            request.write(event(None, "stop") + b": a comment\n\ndata: [DONE]\n\n")
        request.hang_up()

    return answer


def failing(status: int, content: Any = None, headers: dict[str, str] | None = None) -> Answer:
    content = {"error": {"message": "the model is on fire"}} if content is None else content
    return lambda request: request.send(status, content, headers)


class ScriptedServer:
    """Answers in the order of a script, and repeats the last answer. ``requests``: the received requests."""

    def __init__(self, script: Sequence[Answer], key: str | None = None) -> None:
        self._script, self._key = list(script), key
        self.requests: list[Request] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                request = outer._taken(self, None)
                if outer._refuses(request):
                    return
                request.send(200, {"object": "list", "data": [{"id": name} for name in MODELS]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = outer._taken(self, body)
                if outer._refuses(request):
                    return
                answer = outer._script.pop(0) if len(outer._script) > 1 else outer._script[0]
                with contextlib.suppress(OSError):
                    answer(request)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _taken(self, handler: BaseHTTPRequestHandler, body: Any) -> Request:
        request = Request(handler, body, self.over)
        self.requests.append(request)
        return request

    def _refuses(self, request: Request) -> bool:
        if self._key is not None and request.headers.get("Authorization") != f"Bearer {self._key}":
            request.send(401, {"error": {"message": f"no such key: {request.headers.get('Authorization')}"}})
            return True
        return False

    @property
    def asked(self) -> list[Any]:
        """The bodies of the questions."""
        return [request.body for request in self.requests if request.body is not None]

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)


@contextmanager
def chat_server(*script: Answer, key: str | None = None) -> Iterator[ScriptedServer]:
    """Run a scripted server during the block."""
    server = ScriptedServer(script or [saying("fine")], key)
    try:
        yield server
    finally:
        server.close()


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return the function's result or exception, and how long it took."""
    began = time.monotonic()
    try:
        found = function()
    except Exception as error:
        found = error
    return found, time.monotonic() - began


KEY = "sk-very-secret-0123456789"
USER = [{"role": "user", "content": "hello"}]


def complete(*script: Answer, seconds: float = 60.0, **more: Any) -> Any:
    """Return the text that is read from a server, or the error."""
    with chat_server(*script) as server:
        chat = ChatServer(server.url, "m", timeout_seconds=seconds, **more)
        return timed(lambda: chat.complete(USER, 50))[0]
