"""Servers that are slow, wrong, unfriendly or absent: a text or one sentence in time, and never the key."""

from __future__ import annotations

import base64
import gzip
import io
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teso_deploy.cues.chat_server import KEY_VARIABLE, LONGEST_WAIT_SECONDS, MAX_ANSWER_CHARACTERS, ChatServer
from teso_deploy.cues.contracts import CueMoment
from teso_deploy.cues.kept import KeptAnswers
from teso_deploy.cues.prompts import Prompt
from teso_deploy.cues.server_models import ServerCaptioner, ServerReasoner
from teso_deploy.cues.sources.nouns import NounSource
from teso_deploy.cues.sources.reasoned import ReasonedSource
from teso_deploy.errors import CueSourceError, NoCueAnswerError
from teso_deploy.types import Frame
from tests.support.chat_server import (
    KEY,
    USER,
    Answer,
    Request,
    ScriptedServer,
    chat_server,
    complete,
    event,
    failing,
    saying,
    streaming,
    timed,
)
from tests.support.leaks import nothing_left


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def moment(count: int = 1, size: tuple[int, int] = (30, 40)) -> CueMoment:
    frames = [Frame(np.full((*size, 3), 40 * k, np.uint8), pts_seconds=float(k)) for k in range(count)]
    return CueMoment(frames[-1], tuple(frames[:-1]))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (saying("a dog"), "a dog"),
        (streaming("a ", "dog ", "barks"), "a dog barks"),
        (streaming("a dog", role=False), "a dog"),
        (streaming("ein Hünd", "chen 🐕"), "ein Hündchen 🐕"),
        (streaming(), ""),
        (saying(""), ""),
        (lambda r: r.send(200, {"choices": [{"message": {"content": [{"type": "text", "text": "a dog"}]}}]}), "a dog"),
        (lambda r: r.send(200, {"choices": [{"message": {"content": None}}]}), ""),
        (lambda r: r.send(200, {"choices": []}), ""),
    ],
    ids=["whole", "stream", "no-role", "letters", "nothing", "empty", "parts", "null", "no-choice"],
)
def test_answers_of_every_form(answer: Answer, text: str) -> None:
    assert complete(answer) == text


def raw_events(*events: bytes) -> Answer:
    def answer(request: Request) -> None:
        request.head(200, "text/event-stream")
        for part in events:
            request.write(part)
        request.hang_up()

    return answer


def cut_off(request: Request) -> None:
    request.head(200, "application/json", {"Content-Length": "1000"})
    request.write(b'{"choices": [{"mess')
    request.hang_up()


def no_headers(request: Request) -> None:
    request.write(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
    request.hang_up()


def hang_up(request: Request) -> None:
    request.hang_up()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (failing(500), "answered 500 (the model is on fire)"),
        (failing(500, "<html>\n<b>oops</b>\x1b[31m</html>"), "answered 500 (<html> <b>oops</b>"),
        (failing(502, ""), "answered 502 (no reason given)"),
        (failing(301, "", {"Location": "http://elsewhere/"}), "answered 301, and redirects are not followed"),
        (failing(404), "has no model 'm'"),
        (failing(401), KEY_VARIABLE),
        (failing(403), KEY_VARIABLE),
        (failing(429), "is busy (429"),
        (failing(503), "is busy (503"),
        (failing(400, {"error": "no pictures, please"}), "no pictures, please"),
        (lambda r: r.send(200, '{"choices": [{'), "no JSON"),
        (lambda r: r.send(200, "<html>login</html>"), "no JSON"),
        (lambda r: r.send(200, [1, 2]), "an answer that is not of OpenAI's protocol"),
        (lambda r: r.send(200, {"result": "dog"}), "an answer that is not of OpenAI's protocol"),
        (lambda r: r.send(200, {"error": {"message": "out of memory"}}), "failed: out of memory"),
        (raw_events(event("a"), b"data: {broken\n\n"), "no JSON"),
        (raw_events(event("a"), b'data: {"error": {"message": "out of memory"}}\n\n'), "failed: out of memory"),
        (raw_events(event("a dog")), "broke off in the middle"),
        (cut_off, "no JSON|broke off"),
        (no_headers, "broke off|gave no"),
        (hang_up, "broke off"),
    ],
)
def test_faults_are_one_sentence(answer: Answer, says: str) -> None:
    error = complete(answer)
    assert isinstance(error, CueSourceError), error
    assert any(part in str(error) for part in says.split("|")) and "\n" not in str(error) and "\x1b" not in str(error)
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0", 0.0), ("-3", 0.0), ("soon", None), (None, None), ("1.5", 1.5)]
)
@pytest.mark.parametrize("status", [429, 503])
def test_when_to_ask_again(header: str | None, seconds: float | None, status: int) -> None:
    error = complete(failing(status, headers={} if header is None else {"Retry-After": header}))
    assert isinstance(error, CueSourceError) and error.retry_after_seconds == seconds


def test_when_to_ask_again_by_the_clock() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    error = complete(failing(429, headers={"Retry-After": at}))
    assert 25 < error.retry_after_seconds <= 40


def drip_body(request: Request) -> None:
    request.head(200, "text/event-stream")
    while not request.over.is_set():
        request.write(event("x"))
        request.wait(0.05)


def drip_headers(request: Request) -> None:
    request.write(b"HTTP/1.1 200 OK\r\n")
    for k in range(1000):
        request.write(f"X-{k}: y\r\n".encode())
        request.wait(0.3)


def silent(request: Request) -> None:
    request.wait(120)


@pytest.mark.parametrize("answer", [drip_body, drip_headers, silent])
def test_a_request_ends_by_its_deadline(answer: Answer) -> None:
    with chat_server(answer) as server:
        error, seconds = timed(lambda: ChatServer(server.url, "m", timeout_seconds=0.5).complete(USER, 50))
    assert isinstance(error, CueSourceError) and "gave no complete answer in 0.5 s" in str(error)
    assert seconds < 20


@pytest.mark.parametrize("answer", [drip_body, silent])
def test_closing_ends_a_request_under_way(answer: Answer) -> None:
    with chat_server(answer) as server:
        chat = ChatServer(server.url, "m", timeout_seconds=60)
        threading.Timer(0.3, chat.close).start()
        error, seconds = timed(lambda: chat.complete(USER, 50))
        assert isinstance(error, CueSourceError) and "was ended" in str(error) and seconds < 20
        again, _ = timed(lambda: chat.complete(USER, 50))
        assert isinstance(again, CueSourceError) and "was ended" in str(again)
        chat.close()


def test_a_ramble_is_cut() -> None:
    def ramble(request: Request) -> None:
        request.head(200, "text/event-stream")
        while not request.over.is_set():
            request.write(event("word " * 200))

    text = complete(ramble)
    assert isinstance(text, str) and len(text) == MAX_ANSWER_CHARACTERS


def test_no_server_is_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error, seconds = timed(lambda: ChatServer(f"http://127.0.0.1:{port}", "m", timeout_seconds=60).complete(USER, 5))
    assert isinstance(error, CueSourceError) and "can't be reached" in str(error) and seconds < 20
    error, _ = timed(lambda: ChatServer("http://no-such-host.invalid", "m", timeout_seconds=60).complete(USER, 5))
    assert isinstance(error, CueSourceError) and "can't be reached" in str(error)
    with chat_server() as server:  # does not speak TLS
        chat = ChatServer(server.url.replace("http", "https"), "m", timeout_seconds=60)
        error, _ = timed(lambda: chat.complete(USER, 5))
    assert isinstance(error, CueSourceError) and "can't be" in str(error)


def test_the_first_model_is_taken_where_none_is_named() -> None:
    with chat_server() as server:
        chat = ChatServer(server.url)
        assert chat.complete(USER, 5) == "fine"
        assert server.asked[0]["model"] == "seer-7b" and chat.identity.endswith("#seer-7b")
        chat.complete(USER, 5)
        assert [request.path for request in server.requests].count("/v1/models") == 1


def test_an_answer_is_held_to_its_schema_where_the_server_can() -> None:
    prompt = Prompt.load("zero-shot-sounding")
    with chat_server() as server:
        reasoner = ServerReasoner(ChatServer(server.url, "m"), reasons=False)
        reasoner.answer(prompt.messages("a dog"))
        form = server.asked[0]["response_format"]
        assert form["type"] == "json_schema" and form["json_schema"]["schema"]["required"] == ["objects", "sounding"]
        assert server.asked[0]["temperature"] == 0
        ServerReasoner(ChatServer(server.url, "m"), reasons=True).answer(prompt.messages("a dog"))
        assert "response_format" not in server.asked[1]
    for status in (400, 422):
        with chat_server(failing(status), saying("first"), saying("second")) as server:
            reasoner = ServerReasoner(ChatServer(server.url, "m"), reasons=False)
            assert [reasoner.answer(prompt.messages("a dog")) for _ in range(2)] == ["first", "second"]
            assert ["response_format" in body for body in server.asked] == [True, False, False]
    with chat_server(failing(400)) as server:  # the schema was not the cause
        error, _ = timed(lambda: ServerReasoner(ChatServer(server.url, "m"), reasons=False).answer(prompt.fixed))
        assert isinstance(error, CueSourceError) and len(server.asked) == 2


def test_pictures_are_sent_as_jpeg() -> None:
    with chat_server() as server:
        captioner = ServerCaptioner(ChatServer(server.url, "m"), "What is there?", frames=3)
        assert captioner.caption(moment(5, (1000, 2000))) == "fine"
    content = server.asked[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url"] * 3 + ["text"]
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition("base64,")[2])))
        for part in content[:3]
    ]
    assert all(picture.size == (768, 384) and picture.format == "JPEG" for picture in pictures)
    greys = [int(np.asarray(picture).mean()) for picture in pictures]
    assert greys == pytest.approx([80, 120, 160], abs=2), "the last ones, oldest first"


def test_from_a_picture_to_cues() -> None:
    answer = 'The dog barks.\n{"objects": ["dog", "sofa"], "sounding": ["dog", "ghost"]}'
    with chat_server(streaming("A dog", " on a sofa."), streaming(answer)) as server:
        chat = ChatServer(server.url, "m")
        source = ReasonedSource(
            "openai", captioner=ServerCaptioner(chat, "What?"), reasoner=ServerReasoner(chat), prompt=Prompt.load()
        )
        found = source.ask(moment())
    assert found is not None and found.names == ("dog",) and found.ungrounded == ("ghost",)
    assert found.caption == "A dog on a sofa." and found.reasoning == answer
    with chat_server(saying("A dog on a sofa.")) as server:
        nouns = NounSource(ServerCaptioner(ChatServer(server.url, "m"), "What?"), {"dog", "sofa", "car"}, ["dog"])
        named = nouns.ask(moment())
    assert named is not None and named.names == ("dog", "sofa")


def test_nothing_is_left_of_many_requests() -> None:
    scripts: list[Callable[[Request], None]] = [saying("fine"), streaming("a", "b"), failing(500), cut_off, hang_up]
    with chat_server(*scripts) as server:
        chat = ChatServer(server.url, "m", timeout_seconds=60)
        timed(lambda: chat.complete(USER, 5))
        with nothing_left():
            for _ in range(30):
                timed(lambda: chat.complete(USER, 5))
            chat.close()
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            lambda r: r.send(200, '{"choices": [{"message": {"content": "a dog \\ud83d."}}]}'),
            "a dog \N{REPLACEMENT CHARACTER}.",
        ),
        (streaming("a dog \ud83d", "\udc15"), "a dog \N{DOG}"),
    ],
)
def test_halves_of_letters(answer: Answer, text: str) -> None:
    found = complete(answer)
    assert found == text and found.encode()


@pytest.mark.parametrize("seconds", ["1e300", "inf"])
def test_patience_has_an_end(seconds: str) -> None:
    error = complete(failing(429, headers={"Retry-After": seconds}))
    assert error.retry_after_seconds == LONGEST_WAIT_SECONDS


def test_a_server_is_asked_for_its_model_when_it_is_first_asked_and_its_last_one_is_remembered(tmp_path: Path) -> None:
    with chat_server(saying("a dog")) as server:
        chat = ChatServer(server.url, timeout_seconds=60)
        source = KeptAnswers(NounSource(ServerCaptioner(chat, "What?"), {"dog"}), tmp_path / "answers")
        assert not server.asked, "nothing waits for it when it is made"
        first = source.ask(moment())
        assert first is not None and first.names == ("dog",) and "seer-7b" in source.identity
    off = ChatServer(server.url, timeout_seconds=60)
    again = KeptAnswers(NounSource(ServerCaptioner(off, "What?"), {"dog"}), tmp_path / "answers")
    assert again.ask(moment()) == first and again.asked == 0, "also when the server is off"
    with pytest.raises(CueSourceError, match="can't be reached"):
        again.ask(moment(2))


def thinking(finish: str, content: str = "") -> Answer:
    message = {"content": content, "reasoning": "Let me see."}
    return lambda request: request.send(200, {"choices": [{"message": message, "finish_reason": finish}]})


def test_a_model_that_thinks_is_given_room() -> None:
    with chat_server(thinking("length"), thinking("stop", "a dog")) as server:
        chat = ChatServer(server.url, "m")
        assert [chat.complete(USER, 50) for _ in range(2)] == ["a dog", "a dog"]
        assert [body["max_tokens"] for body in server.asked] == [50, 4050, 4050], "it is remembered"
    error = complete(thinking("length"))
    assert isinstance(error, NoCueAnswerError) and "switch thinking off" in str(error)
    assert complete(thinking("stop")) == "Let me see."


def test_a_refusal_is_said_in_one_line() -> None:
    refusal = {"content": None, "refusal": f"I can't\nhelp with {KEY}"}
    error = complete(lambda r: r.send(200, {"choices": [{"message": refusal, "finish_reason": "stop"}]}), key=KEY)
    assert isinstance(error, NoCueAnswerError) and str(error).endswith("(the model refused: I can't help with ***)")


def chunked(*parts: bytes, ends: bool = True) -> Answer:
    def answer(request: Request) -> None:
        request.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            request.write(b"%x\r\n%s\r\n" % (len(part), part))
        request.write(b"0\r\n\r\n" if ends else b"")
        request.hang_up()

    return answer


def test_chunks_and_their_end() -> None:
    whole = event("a dog 🐕")
    assert complete(chunked(whole[:30], whole[30:31], whole[31:])) == "a dog 🐕", "no [DONE], and no reason to end"
    error = complete(chunked(whole, ends=False))
    assert isinstance(error, CueSourceError) and "broke off" in str(error)


def packed(request: Request) -> None:
    body = gzip.compress(event("a dog", "stop"))
    request.head(200, "text/event-stream", {"Content-Encoding": "gzip", "Content-Length": str(len(body))})
    request.write(body)


def test_a_proxy_that_compresses() -> None:
    assert complete(packed) == "a dog"
    refused = complete(lambda r: r.send(500, "x", {"Content-Encoding": "br"}))
    assert isinstance(refused, CueSourceError) and "compressed by 'br'" in str(refused)


@pytest.mark.parametrize("listed", [None, 3, {}, [], [None, {"id": 3}, {"id": " "}], "x"])
def test_a_list_of_models_without_one(listed: object) -> None:
    class Listing(ScriptedServer):
        def _refuses(self, request: Request) -> bool:
            request.send(200, {"data": listed})
            return True

    server = Listing([])
    try:
        error, _ = timed(lambda: ChatServer(server.url).complete(USER, 5))
    finally:
        server.close()
    assert isinstance(error, CueSourceError) and "lists no model" in str(error)


def test_a_list_of_models_that_is_no_json_is_not_for_the_user_to_write() -> None:
    class Listing(ScriptedServer):
        def _refuses(self, request: Request) -> bool:
            request.send(200, "<html>login</html>")
            return True

    server = Listing([])
    try:
        error, _ = timed(lambda: ChatServer(server.url).complete(USER, 5))
    finally:
        server.close()
    assert isinstance(error, CueSourceError) and "is not JSON" in str(error)
    assert "--server-model" in str(error) and "write it again" not in str(error)


def test_the_name_of_a_model_is_shown_as_one_line() -> None:
    chat = ChatServer("http://127.0.0.1:9", "m\x1b[2J\n" + "x" * 1000)
    assert chat.identity.isprintable() and len(chat.identity) < 350
    with chat_server(failing(404)) as server:
        error, _ = timed(lambda: ChatServer(server.url, "m\n\x1b[31m" + "x" * 1000).complete(USER, 5))
    assert isinstance(error, CueSourceError) and str(error).isprintable() and len(str(error)) < 350
