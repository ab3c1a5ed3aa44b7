"""Answers of real chat servers: fields, streams, errors, and the place of the text."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teso_deploy.cues.chat_protocol import (
    MAX_ANSWER_CHARACTERS,
    MAX_BODY_BYTES,
    AnswerReader,
    ServerAnswer,
    read_lines,
    strip_thoughts,
)
from teso_deploy.errors import CueSourceError

OBJECT = '{"objects": ["dog"], "sounding": ["dog"]}'


def read(body: bytes, *, is_whole: bool = True) -> ServerAnswer:
    reader = AnswerReader("the server")
    for line in read_lines([body]):
        reader.feed(line)
        if reader.is_over:
            break
    return reader.finish(is_whole=is_whole)


def whole(finish: str | None = "stop", **message: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}]}).encode()


def delta(finish: str | None = None, **part: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": part, "finish_reason": finish}]}).encode()


def stream(*deltas: dict[str, Any], end: bytes = b"\n\n") -> bytes:
    events = [
        *(delta(**part) for part in deltas),
        delta("stop"),
        b'data: {"choices": [], "usage": {}}',
        b"data: [DONE]",
    ]
    return end.join([*events, b""])


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (whole(content="a dog"), "a dog"),
        (whole(content="", reasoning="a dog"), "a dog"),
        (whole(content=None, reasoning_content="a dog"), "a dog"),
        (whole(reasoning="a cow?", content="a dog"), "a dog"),
        (whole(content=" \n", thinking="a dog"), "a dog"),
        (whole(content="<think>a cow?</think>a dog"), "a dog"),
        (whole(content="<think>a dog"), "<think>a dog"),
        (whole(content=None, tool_calls=[{"function": {"name": "x", "arguments": OBJECT}}]), OBJECT),
        (whole(content=None, reasoning="hm", function_call={"arguments": OBJECT}), OBJECT),
        (whole(content="", tool_calls=[{"function": {"arguments": {"sounding": ["犬"]}}}]), '{"sounding": ["犬"]}'),
        (whole(content="", tool_calls=[None, {}, {"function": 3}, {"function": {"arguments": 3}}]), ""),
        (whole(content=[{"type": "output_text", "text": "a "}, "dog", {"text": "s"}, {"type": "image"}, 3]), "a dogs"),
        (whole(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "a dog"}]}]), "a dog"),
        (whole(content="", refusal=None), ""),
        (whole(content=3, reasoning={}, tool_calls="x", refusal=[3]), ""),
        (whole(None, content="a dog"), "a dog"),
        (json.dumps(json.loads(whole(content="a dog")), indent=2).encode(), "a dog"),
        (b"\xef\xbb\xbf" + whole(content="a dog"), "a dog"),
        (whole(content="a dog").replace(b"dog", b"d\xffg"), "a d�g"),
        (b'{"choices": [{"text": "a dog", "finish_reason": "stop"}]}', "a dog"),
        # Streams.
        (stream({"content": "a "}, {"content": "dog"}), "a dog"),
        (stream({"content": "a "}, {"content": "dog"}, end=b"\r\n\r\n"), "a dog"),
        (stream({"content": "a "}, {"content": "dog"}, end=b"\n"), "a dog"),
        (b"\xef\xbb\xbf" + stream({"content": "a dog"}), "a dog"),
        (b": keep-alive\n\nevent: message\nid: 3\nretry: 5\n" + stream({"content": "a dog"}), "a dog"),
        (stream({"reasoning_content": "a cow?", "content": None}, {"content": "a dog"}), "a dog"),
        (stream({"reasoning": "a "}, {"reasoning": "dog"}), "a dog"),
        (stream({"content": "<thi"}, {"content": "nk>a cow"}, {"content": "</think>"}, {"content": "a dog"}), "a dog"),
        (stream(*({"tool_calls": [{"function": {"arguments": part}}]} for part in ('{"a"', ": 1}"))), '{"a": 1}'),
        (delta(content="a ") + b"\n\n" + delta("stop", content="dog") + b"\n\n", "a dog"),
        (b'data: {"choices": [{"delta":\ndata: {"content": "a dog"},\ndata: "finish_reason": "stop"}]}\n\n', "a dog"),
        (b"data:" + delta("stop", content="a dog")[6:], "a dog"),
        (stream({"content": "a dog \ud83d"}, {"content": "\udc15"}), "a dog 🐕"),
        # Ollama's own protocol, an object per line, and OpenAI's newer one.
        (b'{"message": {"content": "a "}, "done": false}\n{"message": {"content": "dog"}, "done": true}\n', "a dog"),
        (b'{"message": {"content": "", "thinking": "a dog"}, "done": true, "done_reason": "stop"}', "a dog"),
        (b'{"response": "a dog", "done": true}', "a dog"),
        (b'{"output": [{"type": "reasoning"}, {"content": [{"type": "output_text", "text": "a dog"}]}]}', "a dog"),
    ],
)  # fmt: skip
def test_where_the_text_of_an_answer_is(body: bytes, text: str) -> None:
    assert read(body).text == text
    assert read(body + b"\n").text == text


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (whole(content=None, refusal="I can't\n\x1b[31mhelp"), "the model refused: I can't help"),
        (whole(content=[{"type": "refusal", "refusal": "no"}]), "the model refused: no"),
        (stream({"refusal": "I "}, {"refusal": "won't"}), "the model refused: I won't"),
        (whole("content_filter", content=""), "its content filter withheld the answer"),
        (whole("length", content=""), "the model used up its tokens before it said anything"),
        (whole("length", content="a d"), None),
        (whole("content_filter", content="a d"), None),
        (whole(content="a dog", refusal="but"), None),
        (whole(content=""), None),
    ],
)
def test_why_there_is_no_text(body: bytes, why: str | None) -> None:
    assert read(body).why_empty == why


def test_a_model_that_only_thinks() -> None:
    assert read(whole("length", content="", reasoning="hm")).is_thought_alone
    assert read(whole("length", content="<think>hm")).is_thought_alone
    assert not read(whole(content="a dog", reasoning="hm")).is_thought_alone
    assert not read(whole(content="")).is_thought_alone


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error": {"message": "out of\\nmemory", "code": 500}}', "failed: out of memory"),
        (b'{"error": "no such model"}', "failed: no such model"),
        (b'{"error": {"error": {"message": "no such model"}}}', "failed: no such model"),
        (b'{"object": "error", "message": "too long"}', "failed: too long"),
        (b'{"error": [{"msg": "too long"}]}', "failed: too long"),
        (b'{"error": {"code": 3}}', "failed: no reason given"),
        (delta(content="a") + b'\n\ndata: {"error": "out of memory"}\n\n', "failed: out of memory"),
        (b'event: error\ndata: {"message": "out of memory"}\n\n', "failed: out of memory"),
        (b"event: error\ndata: out of memory", "failed: out of memory"),
        (b'{"error": "' + b"x" * 5000 + b'"}', "failed: " + "x" * 299 + "…"),
        (b"", "sent no JSON"),
        (b"data: {broken\n\n", "sent no JSON"),
        (b"<html>\n<p>log in", "sent no JSON"),
        (b"[" * 100_000, "sent no JSON"),
        (b"[1, 2]", "sent an answer that is not of"),
        (b"3", "sent an answer that is not of"),
        (b'{"choices": {}}', "sent an answer that is not of"),
        (b"data: 3\n\n", "sent an answer that is not of"),
    ],
)
def test_what_is_not_an_answer(body: bytes, says: str) -> None:
    with pytest.raises(CueSourceError) as raised:
        read(body)
    message = str(raised.value)
    assert says in message and message.startswith("the server ") and message.isprintable() and len(message) < 400


def test_an_answer_that_breaks_off() -> None:
    body = delta(content="a dog") + b"\n\n"
    assert read(body).text == "a dog", "a server that leaves out the end, but closes as announced"
    with pytest.raises(CueSourceError, match="broke off"):
        read(body, is_whole=False)
    for end in (delta("stop"), b"data: [DONE]"):
        assert read(body + end, is_whole=False).text == "a dog"


def test_a_ramble_is_cut() -> None:
    reader = AnswerReader("the server")
    for _ in range(1000):
        reader.feed(delta(content="word " * 20))
        if reader.is_over:
            break
    assert len(reader.finish(is_whole=False).text) == MAX_ANSWER_CHARACTERS
    thoughts = stream({"reasoning": "hm " * MAX_ANSWER_CHARACTERS}, {"content": "a dog"})
    assert read(thoughts).text == "a dog", "what a model thinks costs its answer nothing"
    assert read(whole(content="", reasoning="hm " * MAX_ANSWER_CHARACTERS + OBJECT)).text.endswith(OBJECT)


@pytest.mark.parametrize(
    ("pack", "encoding"),
    [(gzip.compress, "gzip"), (gzip.compress, " X-GZIP"), (zlib.compress, "deflate"), (bytes, ""), (bytes, "identity")],
)
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_lines_of_a_body_in_pieces(pack: Any, encoding: str, size: int) -> None:
    body = pack("a dog\r\n\r\nein Hündchen\nend".encode())
    pieces = [body[k : k + size] for k in range(0, len(body), size)]
    assert [line.strip() for line in read_lines(pieces, encoding)] == [b"a dog", b"", "ein Hündchen".encode(), b"end"]


def test_a_body_that_is_packed_small_is_not_read_whole() -> None:
    packed = gzip.compress(b"x" * (50 * MAX_BODY_BYTES))
    assert sum(len(line) for line in read_lines([packed], "gzip")) == MAX_BODY_BYTES
    assert sum(len(line) for line in read_lines([b"x" * 10**6] * 50)) == MAX_BODY_BYTES
    with pytest.raises(CueSourceError, match="decompressed"):
        list(read_lines([b"not gzip"], "gzip"))
    with pytest.raises(CueSourceError, match="compressed by 'br'"):
        list(read_lines([b""], "br"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a dog", "a dog"),
        ("<THINK>a\ncow</think>\n\na dog", "\n\na dog"),
        ("a cow?</think>a dog", "a dog"),
        ("<thinking>a</thinking>a dog<thinking>b", "a dog"),
        ("[THINK]a[/THINK]a dog", "a dog"),
        ("◁think▷a◁/think▷a dog", "a dog"),
        ("<|channel|>analysis<|message|>a cow?<|end|><|start|>assistant<|channel|>final<|message|>a dog", "a dog"),
        ("a <b>dog</b> thinks", "a <b>dog</b> thinks"),
        ("<think>" * 3000, ""),
    ],
)
def test_thoughts_in_the_text(text: str, said: str) -> None:
    assert strip_thoughts(text) == said


_PIECES = st.sampled_from(
    [b"data: ", b"data:", b"\n", b"\r\n", b"event: error\n", b": x\n", b"[DONE]", b'{"choices": [', b"]}", b"{}",
     b'{"delta": {"content": "a"}}', b'{"message": {"content": ["x"]}}', b"null", b"\xff", b'"error": ', b"[",
     b'{"error": 1}']
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(_PIECES, max_size=20).map(b"".join)), st.booleans())
def test_junk_is_an_answer_or_one_sentence(body: bytes, is_whole: bool) -> None:
    try:
        answer = read(body, is_whole=is_whole)
    except CueSourceError as error:
        assert str(error).isprintable()
    else:
        assert len(answer.text) <= MAX_ANSWER_CHARACTERS
        answer.text.encode()  # raises if a character is incomplete
