"""A server that speaks OpenAI's protocol: vLLM, llama.cpp, Ollama, and what is hosted.

Whatever such a server does, a request ends by its deadline, with a text or with one sentence that says what is wrong.
The key is read from the environment and is in no message.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.cues.source import LONGER, Message, Moment
from teso_deploy.errors import CueSourceError
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.resources import cache_folder

KEY_VARIABLE = "TESO_CUES_API_KEY"
#: What a server asks for beyond this (``Retry-After``) is a mistake of its own.
LONGEST_WAIT_SECONDS = 86_400.0
#: Of an answer no more is read: what counts has been said, or never will be.
MAX_ANSWER_CHARACTERS, MAX_BODY_BYTES = 20_000, 2_000_000
#: Tokens that a model is granted for a caption, an answer, and an answer that thinks aloud first.
CAPTION_TOKENS, ANSWER_TOKENS, REASONING_TOKENS = 160, 200, 800
#: Pictures are sent no larger than this, as JPEG.
MAX_PICTURE_SIDE, JPEG_QUALITY = 768, 90
_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "array", "items": {"type": "string"}} for name in ("objects", "sounding")},
    "required": ["objects", "sounding"],
    "additionalProperties": False,
}


class ChatServer:
    """An address that takes ``/v1/chat/completions``. One request at a time.

    ``model`` None: the first that the server names. ``key`` None: what the environment has in ``TESO_CUES_API_KEY``.
    ``timeout_seconds``: of a request as a whole. Raises :class:`CueSourceError` for an address that is none.
    """

    def __init__(
        self, url: str, model: str | None = None, *, key: str | None = None, timeout_seconds: float = 120.0
    ) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.username or parts.password:
            raise CueSourceError(f"the server's address has a password in it: give the key in {KEY_VARIABLE}")
        if parts.scheme not in ("http", "https") or not host:
            shown = "what was given" if "@" in url else repr(url[:100])  # there may be a password in it
            raise CueSourceError(f"{shown} is no server's address: give one like http://localhost:8000/v1")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self._base = path or "/v1"
        self._is_safe, self._host, self._port = parts.scheme == "https", host, port
        #: As it is shown.
        self.address = f"{parts.scheme}://{host}{f':{port}' if port else ''}{self._base}"
        self._model, self._key = model, (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise CueSourceError(f"the key in {KEY_VARIABLE} has characters that no key has: set it again")
        self._failure_to_name: CueSourceError | None = None
        self._has_asked_for_name = False
        self._timeout_seconds = timeout_seconds
        self._takes_schema = True
        self._asking, self._lock = threading.Lock(), threading.Lock()
        self._socket: socket.socket | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"ChatServer({self.address})"

    @property
    def identity(self) -> str:
        """Its address and model. Where none was named the server is asked once; one that is off goes by its last."""
        if self._model is None and not self._has_asked_for_name:
            self._has_asked_for_name = True
            try:
                return f"{self.address}#{self.model}"
            except CueSourceError as error:
                self._failure_to_name = error
        return f"{self.address}#{self._model or _last_model(self.address) or '?'}"

    @property
    def model(self) -> str:
        """The model's name, or the first of the server's. Raises :class:`CueSourceError`."""
        if self._model is None:
            if self._failure_to_name is not None:  # it has just been asked, and a question is to fail once
                error, self._failure_to_name = self._failure_to_name, None
                raise error
            names = self._models()
            if not names:
                raise CueSourceError(f"{self.address} names no model: name one with --server-model")
            self._model = names[0]
            with suppress(OSError):
                write_vouched(_last_model_file(self.address), self._model.encode("utf-8", "replace"))
        return self._model

    def complete(self, messages: Sequence[Mapping[str, Any]], max_tokens: int, *, as_object: bool = False) -> str:
        """What the model says next. ``as_object``: held to the schema of an answer, where the server can do that.

        Raises :class:`CueSourceError`.
        """
        body: dict[str, Any] = {
            "model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0, "stream": True,
        }  # fmt: skip
        if as_object and self._takes_schema:
            held = {"name": "answer", "strict": True, "schema": _SCHEMA}
            try:
                return self._said(body | {"response_format": {"type": "json_schema", "json_schema": held}})
            except _RefusedError:  # an older server; the parser is as strict
                self._takes_schema = False
        return self._said(body)

    def close(self) -> None:
        """End a request under way, and take no other. From any thread, more than once."""
        with self._lock:
            self._is_closed = True
        self._abort()

    def _said(self, body: Mapping[str, Any]) -> str:
        text = ""
        with self._asking:
            for piece in self._request("POST", "/chat/completions", body):
                text += piece
                if len(text) > MAX_ANSWER_CHARACTERS:
                    break
        # Halves of a letter may come in two pieces; one without its other half is no text.
        return text[:MAX_ANSWER_CHARACTERS].encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _models(self) -> list[str]:
        with self._asking:
            content = self._parsed("".join(self._request("GET", "/models", None)))
        listed = content.get("data") if isinstance(content, dict) else None
        names = [entry.get("id") for entry in listed or [] if isinstance(entry, dict)]
        return [name for name in names if isinstance(name, str)]

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[str]:
        """The text of an answer, in pieces; of a GET, its body."""
        began = time.monotonic()
        connection: http.client.HTTPConnection | None = None
        timer = threading.Timer(self._timeout_seconds, self._abort)
        timer.daemon = True
        try:
            connection = self._connected()
            timer.start()
            headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self._base + path, content, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise self._refusal(response, body)
            if body is None:
                yield response.read(MAX_BODY_BYTES).decode("utf-8", "replace")
            elif "event-stream" in response.headers.get("Content-Type", ""):
                yield from self._events(response)
            else:
                whole = response.read(MAX_BODY_BYTES).decode("utf-8", "replace")
                yield self._content(self._parsed(whole))[0]
        except (OSError, ValueError, http.client.HTTPException, CueSourceError) as error:
            seconds = time.monotonic() - began
            # What was cut off at the deadline looks like an answer that ends too early.
            if isinstance(error, CueSourceError) and not self._is_closed and seconds < self._timeout_seconds:
                raise
            raise self._failure(error, seconds, connection is not None) from None
        finally:
            timer.cancel()
            with self._lock:
                self._socket = None
            if connection is not None:
                connection.close()

    def _connected(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._is_safe else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_seconds)
        connection.connect()
        with self._lock:
            self._socket = connection.sock
            if self._is_closed:
                raise OSError("closed")
        return connection

    def _abort(self) -> None:
        """End what the socket is waiting for."""
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _events(self, response: http.client.HTTPResponse) -> Iterator[str]:
        """Pieces of text of a stream of server-sent events."""
        read, is_whole = 0, False
        while line := response.readline(MAX_BODY_BYTES):
            read += len(line)
            if read > MAX_BODY_BYTES:
                return
            data = line.strip()
            if not data.startswith(b"data:"):
                continue
            data = data.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            piece, ends = self._content(self._parsed(data.decode("utf-8", "replace")))
            is_whole = is_whole or ends
            yield piece
        if not is_whole:
            raise http.client.IncompleteRead(b"")

    def _parsed(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise CueSourceError(
                f"{self.address} sent what is no JSON: check that it speaks OpenAI's protocol"
            ) from None

    def _content(self, content: Any) -> tuple[str, bool]:
        """The text of a (part of an) answer, and whether it is the last."""
        if not isinstance(content, dict):
            raise CueSourceError(f"{self.address} sent no answer of OpenAI's protocol: check the address")
        if content.get("error"):
            raise CueSourceError(f"{self.address} failed: {self._told(content)}")
        choices = content.get("choices")
        if not isinstance(choices, list):
            raise CueSourceError(f"{self.address} sent no answer of OpenAI's protocol: check the address")
        if not choices or not isinstance(choices[0], dict):  # a part that has counts alone
            return "", False
        said = choices[0].get("delta") or choices[0].get("message") or {}
        text = said.get("content") if isinstance(said, dict) else None
        if isinstance(text, list):
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        return text if isinstance(text, str) else "", choices[0].get("finish_reason") is not None

    def _told(self, content: Any) -> str:
        """What a server says of its failure, in one line and without the key."""
        error = content.get("error", content) if isinstance(content, dict) else content
        text = str(error.get("message", "")) if isinstance(error, dict) else str(error)
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return (text.replace(self._key, "***") if self._key else text)[:200] or "it does not say why"

    def _refusal(self, response: http.client.HTTPResponse, body: Mapping[str, Any] | None) -> CueSourceError:
        status, raw = response.status, response.read(20_000).decode("utf-8", "replace")
        try:
            told = self._told(json.loads(raw))
        except (ValueError, RecursionError):
            told = self._told(raw)
        if status in (401, 403):
            return CueSourceError(f"{self.address} does not take the key: set {KEY_VARIABLE} to one that it knows")
        if status in (400, 422) and body is not None and "response_format" in body:
            return _RefusedError(told)
        if status in (429, 503):
            wait = _seconds_of(response.headers.get("Retry-After"))
            when = "later" if wait is None else f"in {wait:.0f} s"
            return CueSourceError(f"{self.address} is busy ({status}: {told}): ask again {when}", wait)
        if status == 404 and body is not None:
            return CueSourceError(
                f"{self.address} has no model {body['model']!r} ({told}): see what it has at {self.address}/models and "
                "name it with --server-model"
            )
        return CueSourceError(f"{self.address} answered {status} ({told}): check the address and the server's log")

    def _failure(self, error: BaseException, seconds: float, was_connected: bool) -> CueSourceError:
        if self._is_closed:
            return CueSourceError(f"the request to {self.address} was ended")
        if seconds >= self._timeout_seconds or isinstance(error, TimeoutError):
            return CueSourceError(
                f"{self.address} gave no whole answer in {self._timeout_seconds:g} s: give it longer ({LONGER})"
            )
        if isinstance(error, ssl.SSLError):
            return CueSourceError(f"{self.address} can't be trusted ({error.reason}): check its certificate")
        if not was_connected:
            why = "no such host" if isinstance(error, socket.gaierror) else error.__class__.__name__
            why = getattr(error, "strerror", None) or why
            return CueSourceError(f"{self.address} can't be reached ({why}): start the server, or check the address")
        return CueSourceError(f"{self.address} broke off in the middle of an answer: see the server's log")


class _RefusedError(CueSourceError):
    """The server does not take something in the request."""


def _seconds_of(header: str | None) -> float | None:
    """``Retry-After``: seconds, or a date."""
    if header is None:
        return None
    try:
        return min(max(0.0, float(header)), LONGEST_WAIT_SECONDS)
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(0.0, (at - datetime.now(UTC)).total_seconds()), LONGEST_WAIT_SECONDS)


def _last_model_file(address: str) -> Path:
    return cache_folder("cues") / "servers" / f"{hashlib.sha256(address.encode()).hexdigest()}.txt"


def _last_model(address: str) -> str | None:
    content = read_vouched(_last_model_file(address))
    return None if content is None else content.decode("utf-8", "replace")


def as_data_url(image: NDArray[np.uint8]) -> str:
    """A picture (H, W, 3) as JPEG in a ``data:`` address."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


class ServerCaptioner:
    """A model that sees, on a server. ``frames``: pictures that it is shown, the last ones, for those of videos."""

    def __init__(self, server: ChatServer, prompt: str, frames: int = 1) -> None:
        self._server, self._prompt, self._frames = server, prompt, frames

    @property
    def identity(self) -> str:
        """Of server, model and prompt."""
        return f"{self._server.identity}:{self._frames}:{self._prompt}"

    def caption(self, moment: Moment) -> str:
        """See :class:`Captioner`."""
        shown = [*moment.earlier, moment.frame][-self._frames :]
        pictures = [{"type": "image_url", "image_url": {"url": as_data_url(frame.image)}} for frame in shown]
        content = [*pictures, {"type": "text", "text": self._prompt}]
        return self._server.complete([{"role": "user", "content": content}], CAPTION_TOKENS).strip()

    def close(self) -> None:
        """Of the server."""
        self._server.close()


class ServerReasoner:
    """A language model on a server. ``reasons``: whether it thinks aloud first; if not, it is held to the object."""

    def __init__(self, server: ChatServer, *, reasons: bool = True) -> None:
        self._server, self._reasons = server, reasons

    @property
    def identity(self) -> str:
        """Of server and model."""
        return f"{self._server.identity}:{self._reasons}"

    def answer(self, messages: Sequence[Message]) -> str:
        """See :class:`Reasoner`."""
        turns = [{"role": role, "content": content} for role, content in messages]
        tokens = REASONING_TOKENS if self._reasons else ANSWER_TOKENS
        return self._server.complete(turns, tokens, as_object=not self._reasons)

    def close(self) -> None:
        """Of the server."""
        self._server.close()
