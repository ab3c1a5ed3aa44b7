"""Client of servers that speak OpenAI's protocol: vLLM, llama.cpp, Ollama and hosted ones.

Whatever the server does, a request ends by its deadline. It ends with a text or with one sentence that says what is
wrong. The key is read from the environment and appears in no message.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from teso_deploy.cues.chat_protocol import MAX_ANSWER_CHARACTERS as MAX_ANSWER_CHARACTERS
from teso_deploy.cues.chat_protocol import AnswerReader, ServerAnswer, read_error, read_lines
from teso_deploy.cues.contracts import LONGER
from teso_deploy.errors import CueSourceError, NoCueAnswerError
from teso_deploy.outputs import read_vouched, write_vouched
from teso_deploy.redaction import HIDDEN, RedactedUrl
from teso_deploy.resources import cache_folder
from teso_deploy.small_files import parse_json
from teso_deploy.text import to_one_line

KEY_VARIABLE = "TESO_CUES_API_KEY"
#: Local servers accept a placeholder as key ("none", "ollama"). Answers may contain such a word, so shorter keys are
#: not redacted.
LEAST_KEY = 8
#: Longer pauses that a server requests (``Retry-After``) are a mistake, and are cut to this.
LONGEST_WAIT_SECONDS = 86_400.0
#: The tokens that are added when a model used up its limit by thinking and is asked again.
THINKING_TOKENS = 4000
_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "array", "items": {"type": "string"}} for name in ("objects", "sounding")},
    "required": ["objects", "sounding"],
    "additionalProperties": False,
}


class ChatServer:
    """A server that answers ``/v1/chat/completions``. It handles one request at a time.

    Args:
        url: The server's address, such as ``http://localhost:8000/v1``.
        model: The model's name. Default: the first that the server lists.
        key: The API key. Default: the environment variable ``TESO_CUES_API_KEY``.
        timeout_seconds: The time limit of a whole request. Default: 120.

    Raises:
        CueSourceError: The address is invalid or holds a password, or the key has characters that no key has.
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
            raise CueSourceError(f"the server's address holds a password: remove it and give the key in {KEY_VARIABLE}")
        if parts.scheme not in ("http", "https") or not host:
            # The given text may hold a password, so it is only shown if it looks harmless.
            shown = repr(to_one_line(url, 100)) if re.fullmatch(r"[\w.:/-]*", url) else "what was given"
            raise CueSourceError(f"there is no server's address in {shown}: give one like http://localhost:8000/v1")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise CueSourceError("the server's address has a character that is not allowed in addresses: correct it")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self._base = path or "/v1"
        #: The query of hosted servers, such as ``?api-version=…``.
        self._query = f"?{parts.query}" if parts.query else ""
        self._is_safe, self._host, self._port = parts.scheme == "https", host, port
        self._redacted = RedactedUrl.parse(urlunsplit((parts.scheme, parts.netloc, self._base, parts.query, "")))
        #: The address without secrets, as messages show it.
        self.address = self._redacted.shown
        self._model, self._key = model, (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise CueSourceError(f"the key in {KEY_VARIABLE} has characters that are not allowed in keys: correct it")
        self._room_to_think = 0
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
        """The address and the model.

        If no model was given, the server is asked once. If that fails, the model that was last used at this address
        counts.
        """
        if self._model is None and not self._has_asked_for_name:
            self._has_asked_for_name = True
            try:
                return f"{self.address}#{to_one_line(self.model)}"
            except CueSourceError as error:
                self._failure_to_name = error
        return f"{self.address}#{to_one_line(self._model or _read_last_model(self.address) or '?')}"

    @property
    def model(self) -> str:
        """The model's name: the given one, else the first that the server lists. Raises :class:`CueSourceError`."""
        if self._model is None:
            if self._failure_to_name is not None:  # the server has just been asked, and a question must fail only once
                error, self._failure_to_name = self._failure_to_name, None
                raise error
            names = self._models()
            if not names:
                raise CueSourceError(f"{self.address} lists no model: name one with --server-model")
            self._model = names[0]
            with suppress(OSError):
                write_vouched(_find_last_model_file(self.address), self._model.encode("utf-8", "replace"))
        return self._model

    def complete(self, messages: Sequence[Mapping[str, Any]], max_tokens: int, *, as_object: bool = False) -> str:
        """Return the model's next message.

        Args:
            messages: The conversation, in OpenAI's form.
            max_tokens: The longest answer.
            as_object: If True, the server must keep the answer to the JSON schema of cues, if it supports schemas.
                Default: False.

        Returns:
            The text of the answer, without thoughts.

        Raises:
            CueSourceError: The request failed.
            NoCueAnswerError: The answer has no text.
        """
        body: dict[str, Any] = {
            "model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0, "stream": True,
        }  # fmt: skip
        if as_object and self._takes_schema:
            held = {"name": "answer", "strict": True, "schema": _SCHEMA}
            try:
                return self._said(body | {"response_format": {"type": "json_schema", "json_schema": held}})
            except _RefusedError:  # an older server; our parser is as strict as the schema
                self._takes_schema = False
        return self._said(body)

    def close(self) -> None:
        """End a running request and refuse all later ones. Any thread may call this, more than once."""
        with self._lock:
            self._is_closed = True
        self._abort()

    def _said(self, body: Mapping[str, Any]) -> str:
        """Return the answer's text. Raises :class:`NoCueAnswerError` if the server says why there is no text."""
        answer = self._answer(body)
        if answer.is_thought_alone and answer.finish == "length" and not self._room_to_think:
            self._room_to_think = THINKING_TOKENS
            answer = self._answer(body)
        if (why := answer.why_empty) is not None:
            raise NoCueAnswerError(f"{self.address} answered nothing ({self._clean(why)})")
        if answer.is_thought_alone and answer.finish == "length":
            raise NoCueAnswerError(
                f"{self.address} answered nothing (the model used up its tokens while it was thinking): switch "
                "thinking off on the server, or name another model with --server-model"
            )
        return self._without_key(answer.text)

    def _answer(self, body: Mapping[str, Any]) -> ServerAnswer:
        reader, is_whole = AnswerReader(self.address, self._clean), True
        body = {**body, "max_tokens": body["max_tokens"] + self._room_to_think}
        with self._asking, self._request("POST", "/chat/completions", body) as response:
            for line in read_lines(_read_pieces(response), response.headers.get("Content-Encoding", "")):
                reader.feed(line)
                if reader.is_over:
                    break
            else:
                is_whole = response.length == 0 or response.chunked
            return reader.finish(is_whole=is_whole)

    def _models(self) -> list[str]:
        with self._asking, self._request("GET", "/models", None) as response:
            text = _read_body(response)
        advice = "check that it speaks OpenAI's protocol, or name a model with --server-model"
        content = parse_json(text, f"the list of models of {self.address}", error=CueSourceError, advice=advice)
        listed = content.get("data") if isinstance(content, dict) else content
        entries = listed if isinstance(listed, list) else []
        names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        # A server may repeat the key that it was sent. A name that contains the key is neither kept nor shown.
        return [name for name in names if isinstance(name, str) and name.strip() and self._without_key(name) == name]

    @contextmanager
    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        """Send a request and yield its response, which is open inside the block. Raises :class:`CueSourceError`."""
        began = time.monotonic()
        connection: http.client.HTTPConnection | None = None
        timer = threading.Timer(self._timeout_seconds, self._abort)
        timer.daemon = True
        timer.start()
        try:
            connection = self._connected(began + self._timeout_seconds)
            headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self._base + path + self._query, content, headers)
            # The response holds the socket if the server ends the connection: closing the connection is not enough.
            with connection.getresponse() as response:
                if response.status != 200:
                    raise self._refusal(response, body)
                yield response
        except (OSError, ValueError, http.client.HTTPException, CueSourceError) as error:
            seconds = time.monotonic() - began
            # An answer that was cut off at the deadline looks like one that ended too early.
            if isinstance(error, CueSourceError) and not self._is_closed and seconds < self._timeout_seconds:
                raise
            raise self._failure(error, seconds, connection is not None) from None
        finally:
            timer.cancel()
            with self._lock:
                self._socket = None
            if connection is not None:
                connection.close()

    def _connected(self, deadline: float) -> http.client.HTTPConnection:
        """Open a connection that :meth:`_abort` can end at any time, even during the TLS handshake."""
        port = self._port or (443 if self._is_safe else 80)
        connection = http.client.HTTPConnection(self._host, port, timeout=self._timeout_seconds)
        opened = socket.create_connection((self._host, port), self._timeout_seconds)
        try:
            if self._is_safe:
                context = ssl.create_default_context()
                opened = context.wrap_socket(opened, server_hostname=self._host, do_handshake_on_connect=False)
            with self._lock:
                self._socket = connection.sock = opened
                if self._is_closed:
                    raise OSError("closed")
            if time.monotonic() >= deadline:
                raise TimeoutError
            if isinstance(opened, ssl.SSLSocket):
                opened.do_handshake()
        except BaseException:
            opened.close()
            raise
        return connection

    def _abort(self) -> None:
        """Shut the socket down, which ends any wait for it."""
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _clean(self, text: str) -> str:
        """Remove the key and the address's secrets from a server's text."""
        return self._redacted.clean(self._without_key(text))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, HIDDEN) if len(self._key) >= LEAST_KEY else text

    def _refusal(self, response: http.client.HTTPResponse, body: Mapping[str, Any] | None) -> CueSourceError:
        status, raw = response.status, _read_body(response)
        try:
            cause = read_error(json.loads(raw), self._clean)
        except (ValueError, RecursionError):
            cause = read_error(raw, self._clean)
        if status in (401, 403):
            return CueSourceError(f"{self.address} refuses the key: set {KEY_VARIABLE} to a valid one")
        if status in (400, 422) and body is not None and "response_format" in body:
            return _RefusedError(cause)
        if status in (301, 302, 303, 307, 308):
            return CueSourceError(
                f"{self.address} answered {status}, and redirects are not followed: give the address that it leads to"
            )
        if status in (429, 503):
            wait = _parse_seconds(response.headers.get("Retry-After"))
            when = "later" if wait is None else f"in {wait:.0f} s"
            return CueSourceError(f"{self.address} is busy ({status}: {cause}): ask again {when}", wait)
        if status == 404 and body is not None:
            name = to_one_line(body["model"], 100)
            return CueSourceError(
                f"{self.address} has no model {name!r} ({cause}): choose one that {self.address}/models lists "
                "and name it with --server-model"
            )
        return CueSourceError(f"{self.address} answered {status} ({cause}): check the address and the server's log")

    def _failure(self, error: BaseException, seconds: float, was_connected: bool) -> CueSourceError:
        if self._is_closed:
            return CueSourceError(f"the request to {self.address} was ended")
        if seconds >= self._timeout_seconds or isinstance(error, TimeoutError):
            return CueSourceError(
                f"{self.address} gave no complete answer in {self._timeout_seconds:g} s: give it more time ({LONGER})"
            )
        if isinstance(error, ssl.SSLError):
            return CueSourceError(f"{self.address} can't be trusted ({error.reason}): check its certificate")
        if not was_connected:
            why = "no such host" if isinstance(error, socket.gaierror) else error.__class__.__name__
            why = getattr(error, "strerror", None) or why
            return CueSourceError(f"{self.address} can't be reached ({why}): start the server, or check the address")
        return CueSourceError(f"{self.address} broke off in the middle of an answer: see the server's log")


def _read_pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := response.read1(65536):
        yield piece


def _read_body(response: http.client.HTTPResponse) -> str:
    lines = read_lines(_read_pieces(response), response.headers.get("Content-Encoding", ""))
    return b"\n".join(lines).decode("utf-8-sig", "replace")


class _RefusedError(CueSourceError):
    """The server does not accept a field of the request."""


def _parse_seconds(header: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which holds seconds or a date."""
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


def _find_last_model_file(address: str) -> Path:
    return cache_folder("cues") / "servers" / f"{hashlib.sha256(address.encode()).hexdigest()}.txt"


def _read_last_model(address: str) -> str | None:
    content = read_vouched(_find_last_model_file(address))
    return None if content is None else content.decode("utf-8", "replace")
