"""Addresses of servers and their keys: what is sent, and what is never shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from teso_deploy.cues.chat_server import KEY_VARIABLE, ChatServer
from teso_deploy.errors import CueSourceError
from tests.support.chat_server import (
    KEY,
    USER,
    Answer,
    Request,
    ScriptedServer,
    chat_server,
    complete,
    failing,
    saying,
    timed,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/", "http://", "", "http://host:port", "http://[::1"])
def test_what_is_not_an_address(url: str) -> None:
    with pytest.raises(CueSourceError, match="no server's address"):
        ChatServer(url)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(CueSourceError) as caught:
        ChatServer(f"http://user:{KEY}@host/v1")
    assert KEY not in str(caught.value) and KEY_VARIABLE in str(caught.value)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_addresses_with_and_without_their_path(path: str) -> None:
    with chat_server() as server:
        assert ChatServer(server.url + path, "m").complete(USER, 5) == "fine"
        assert server.requests[0].path == "/v1/chat/completions"


def test_the_key_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with chat_server(saying("fine"), key=KEY) as server:
        assert ChatServer(server.url).complete(USER, 5) == "fine"
    errors: list[object] = []
    with chat_server(key="another") as server:
        chat = ChatServer(server.url, "m")
        errors += [timed(lambda: chat.complete(USER, 5))[0], repr(chat), chat.identity]
    for status in (400, 404, 429, 500):
        errors.append(complete(failing(status, {"error": {"message": f"Bearer {KEY} and\n{KEY}"}})))
    errors.append(complete(lambda r: r.send(200, {"error": {"message": f"{KEY} is spent"}})))
    assert all(KEY not in str(error) and KEY not in repr(error) for error in errors)
    assert KEY not in caplog.text and KEY not in "".join(capsys.readouterr())
    assert "***" in str(errors[-1])


def test_a_key_from_a_file_with_line_ends() -> None:
    with chat_server(saying("a dog"), key=KEY) as server:
        assert ChatServer(server.url, "m", key=f"{KEY}\r\n").complete(USER, 5) == "a dog"
    for key in (f"{KEY}\rX", f"{KEY}\N{EURO SIGN}"):
        with pytest.raises(CueSourceError, match=KEY_VARIABLE) as caught:
            ChatServer("http://127.0.0.1:9", "m", key=key)
        assert "secret" not in str(caught.value)


def test_a_password_in_an_address_without_scheme_is_not_shown() -> None:
    with pytest.raises(CueSourceError, match="no server's address") as caught:
        ChatServer("user:pass-word@host/v1")
    assert "pass-word" not in str(caught.value)


def test_a_redirect_does_not_carry_the_key_elsewhere() -> None:
    with chat_server() as other, chat_server(failing(307, "", {"Location": f"{other.url}/v1/chat"})) as server:
        error, _ = timed(lambda: ChatServer(server.url, "m", key=KEY).complete(USER, 5))
    assert isinstance(error, CueSourceError) and "answered 307" in str(error) and not other.requests


@pytest.mark.parametrize("query", ["api-version=2024-02-01", "key=CANARYs3cr3tQ7", "key=ab"])
def test_a_query_is_sent_and_its_secrets_are_not_shown(query: str) -> None:
    secret = query.partition("=")[2] if query.startswith("key") else "nothing"
    echo: Answer = lambda r: r.send(500, {"error": f"can't serve {r.path}"})  # noqa: E731
    with chat_server(saying("fine"), echo) as server:
        chat = ChatServer(f"{server.url}/v1/chat/completions?{query}#fragment", "m")
        assert chat.complete(USER, 5) == "fine"
        error, _ = timed(lambda: chat.complete(USER, 5))
    assert server.requests[0].path == f"/v1/chat/completions?{query}"
    for text in (str(error), chat.address, chat.identity, repr(chat)):
        assert f"={secret}" not in text and "CANARY" not in text
    assert chat.address.endswith("/v1?" + (query if secret == "nothing" else "key=***"))


def test_a_server_that_says_the_key_is_not_repeated(tmp_path: Path) -> None:
    class Listing(ScriptedServer):
        def _refuses(self, request: Request) -> bool:
            if request.body is None:
                request.send(200, {"data": [{"id": f"model-{KEY}"}, {"id": "m"}]})
            return request.body is None

    server = Listing([saying(f"a dog {KEY}")])
    try:
        chat = ChatServer(server.url, key=KEY)
        assert chat.complete(USER, 5) == "a dog ***" and chat.identity.endswith("#m")
    finally:
        server.close()
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*.txt"))


@pytest.mark.parametrize("key", ["none", "ollama", "x", "EMPTY"])
def test_a_word_in_place_of_a_key_stays_in_answers(key: str) -> None:
    class Listing(ScriptedServer):
        def _refuses(self, request: Request) -> bool:
            if request.body is None:
                request.send(200, {"data": [{"id": f"{key}-vision"}]})
            return request.body is None

    server = Listing([saying(f"a fox, {key}")])
    try:
        chat = ChatServer(server.url, key=key)
        assert chat.complete(USER, 5) == f"a fox, {key}" and chat.model == f"{key}-vision"
    finally:
        server.close()
