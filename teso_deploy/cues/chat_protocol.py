"""What a chat server answers, read into one text: OpenAI's form with what real servers make of it.

Servers stream events or send one object, put the answer into the content, into fields for reasoning or into the
arguments of a tool, and report errors with status 200. The reader works line by line, has no socket, and never keeps
more than its limits.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from teso_deploy.errors import CueSourceError
from teso_deploy.text import to_one_line

#: The reader takes no more of an answer: a model that rambles has said what counts by then.
MAX_ANSWER_CHARACTERS, MAX_BODY_BYTES = 20_000, 2_000_000
#: Fields in which servers put what a model thinks: vLLM and DeepSeek, Ollama and OpenRouter, Ollama's own protocol.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
#: How models mark their thoughts inside of the content.
_TAGS = r"think|thinking|thought|thoughts|reasoning|seed:think"
_THOUGHT = re.compile(
    rf"<(?P<tag>{_TAGS})>.*?</(?P=tag)>|\[THINK\].*?\[/THINK\]|◁think▷.*?◁/think▷", re.DOTALL | re.IGNORECASE
)
_OPENED = re.compile(rf"(?:<(?:{_TAGS})>|\[THINK\]|◁think▷).*", re.DOTALL | re.IGNORECASE)
_CLOSED = re.compile(rf"(?:</(?:{_TAGS})>|\[/THINK\]|◁/think▷)", re.IGNORECASE)
#: gpt-oss, where a server hands its channels on as they are.
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final[^<]*<\|message\|>(.*?)(?:<\|(?:return|end)\|>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """The parts of one answer.

    Attributes:
        content: What the model says.
        thoughts: What it thinks, where the server keeps that apart.
        arguments: What it would call a tool with.
        refusal: Why it does not answer.
        finish: Why the answer ends, as the server says: ``stop``, ``length``, ``content_filter``; None: it broke off.
    """

    content: str = ""
    thoughts: str = ""
    arguments: str = ""
    refusal: str = ""
    finish: str | None = None

    @property
    def text(self) -> str:
        """The answer: the content without thoughts, else a tool's arguments, else the thoughts."""
        said = strip_thoughts(self.content)
        return next((text for text in (said, self.arguments) if text.strip()), self.thoughts or self.content)

    @property
    def is_thought_alone(self) -> bool:
        """Whether the model thought and came to no answer."""
        has_answer = bool(strip_thoughts(self.content).strip() or self.arguments.strip())
        return not has_answer and bool(self.thoughts.strip() or self.content.strip())

    @property
    def why_empty(self) -> str | None:
        """What the server says of an answer without a text; None where it does not say why, or there is one."""
        if self.text.strip():
            return None
        if self.refusal.strip():
            return f"the model refused: {to_one_line(self.refusal)}"
        if self.finish in ("content_filter", "safety", "SAFETY"):
            return "its content filter kept the answer back"
        return "the model used up its tokens before it said anything" if self.finish == "length" else None


def strip_thoughts(text: str) -> str:
    """Return what a model says without what it thinks aloud in tags.

    >>> [strip_thoughts(text) for text in ("<think>a cow?</think>A dog.", "a cow?</think>A dog.", "<think>a")]
    ['A dog.', 'A dog.', '']
    """
    channels = _FINAL_CHANNEL.findall(text)
    if channels:
        return str(channels[-1])
    text = _OPENED.sub("", _THOUGHT.sub("", text))
    return _CLOSED.split(text)[-1]  # a template may open the tag itself, so that the answer only closes it


class AnswerReader:
    """Reads the lines of an answer: server-sent events, one object, or one object a line.

    Args:
        name: What the messages call the server.
        clean: What takes the secrets out of a text of the server's.
    """

    def __init__(self, name: str, clean: Callable[[str], str] = to_one_line) -> None:
        self._name, self._clean = name, clean
        self._parts: dict[str, list[str]] = {field: [] for field in ("content", "thoughts", "arguments", "refusal")}
        self._lengths = dict.fromkeys(self._parts, 0)
        self._finish: str | None = None
        self._is_done = False
        self._data: list[str] = []
        self._event = ""
        self._rest: list[str] = []
        self._is_first, self._has_read = True, False

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be read: the server said so, or the answer is too long."""
        lengths = (count for field, count in self._lengths.items() if field != "thoughts")
        return self._is_done or max(lengths) > MAX_ANSWER_CHARACTERS

    def feed(self, line: bytes) -> None:
        """Take a line, without its end. Raises :class:`CueSourceError` for an error that it holds."""
        if self._is_first:
            line, self._is_first = line.removeprefix(codecs.BOM_UTF8), False
        text = line.decode("utf-8", "replace").strip()
        if self._rest:
            self._rest.append(text)
        elif not text:
            self._end_event()
        elif text.startswith("data:"):
            self._take_data(text.removeprefix("data:").strip())
        elif text.startswith("event:"):
            self._event = text.removeprefix("event:").strip()
        elif not text.startswith((":", "id:", "retry:")):
            parsed = _parse(text)
            if isinstance(parsed, dict):
                self._take(parsed)
            else:
                self._rest.append(text)

    def finish(self, *, is_whole: bool) -> ServerAnswer:
        """Return the answer after the last line.

        Args:
            is_whole: Whether the connection ended as announced, so that nothing was cut off.

        Raises:
            CueSourceError: Something other than an answer was sent, or an answer that broke off.
        """
        self._end_event()
        if self._rest:
            self._take(self._parse("\n".join(self._rest)))
        if not self._has_read and not self._is_done:
            raise CueSourceError(f"{self._name} sent no JSON: check that it speaks OpenAI's protocol")
        if self._finish is None and not is_whole and not self.is_over:
            raise CueSourceError(f"{self._name} broke off in the middle of an answer: see the server's log")
        parts = {field: _join_halves("".join(pieces)) for field, pieces in self._parts.items()}
        parts = {field: text[:MAX_ANSWER_CHARACTERS] for field, text in parts.items() if field != "thoughts"} | {
            "thoughts": parts["thoughts"][-MAX_ANSWER_CHARACTERS:]  # what a model thinks last comes next to an answer
        }
        return ServerAnswer(**parts, finish=self._finish)

    def _take_data(self, data: str) -> None:
        if data == "[DONE]":
            self._end_event()
            self._is_done = True
            return
        # Most events are one line, and some servers send no empty line between them.
        parsed = None if self._data else _parse(data)
        if parsed is not None and self._event != "error":
            self._event = ""
            self._take(parsed)
        else:
            self._data.append(data)

    def _end_event(self) -> None:
        data, event = "\n".join(self._data), self._event
        self._data, self._event = [], ""
        if event == "error" and data:
            parsed = _parse(data)
            raise CueSourceError(f"{self._name} failed: {read_error(data if parsed is None else parsed, self._clean)}")
        if data:
            self._take(self._parse(data))

    def _parse(self, text: str) -> Any:
        parsed = _parse(text)
        if parsed is None:
            raise CueSourceError(f"{self._name} sent no JSON: check that it speaks OpenAI's protocol")
        return parsed

    def _take(self, content: Any) -> None:
        """Take an object: an answer, or a part of it."""
        if isinstance(content, dict) and (content.get("error") or content.get("object") == "error"):
            raise CueSourceError(f"{self._name} failed: {read_error(content, self._clean)}")
        said = _message_of(content)
        if said is None:
            raise CueSourceError(f"{self._name} sent no answer of OpenAI's protocol: check the address")
        self._has_read = True
        message, finish = said
        self._finish = self._finish if finish is None else finish
        self._add("content", _text_of(message.get("content"), ("text", "output_text")))
        self._add("refusal", _text_of(message.get("refusal")) + _text_of(message.get("content"), ("refusal",)))
        thoughts = next((text for name in _THOUGHTS if (text := _text_of(message.get(name)))), "")
        self._add("thoughts", thoughts + _text_of(message.get("content"), ("thinking", "reasoning")))
        self._add("arguments", "".join(_arguments_of(message)))

    def _add(self, field: str, text: str) -> None:
        if text:
            self._parts[field].append(text)
            self._lengths[field] += len(text)


def read_error(content: Any, clean: Callable[[str], str] = to_one_line) -> str:
    """Return what a server says of its failure, as one printable line. ``clean``: takes the secrets out of it."""
    for _ in range(6):  # an error in an error, as gateways wrap it
        if isinstance(content, list):
            content = content[0] if content else ""
        elif isinstance(content, dict):
            content = next((content[key] for key in ("error", "message", "detail", "msg") if content.get(key)), "")
    return to_one_line(clean(str(content))) or "it does not say why"


def read_lines(pieces: Iterable[bytes], encoding: str = "") -> Iterator[bytes]:
    """Yield the lines of a body, without their ends.

    Args:
        pieces: The body as it arrives.
        encoding: Its ``Content-Encoding``: none, ``gzip`` or ``deflate``; a proxy may compress what we did not ask for.

    Raises:
        CueSourceError: Another encoding, or damaged content.
    """
    encoding = encoding.strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise CueSourceError(
            f"the server's answer is compressed by {to_one_line(encoding, 40)!r}, which can't be read: switch the "
            "compression off on the server, or on the proxy in front of it"
        )
    unpack = zlib.decompressobj(47) if encoding not in ("", "identity") else None
    left, line = MAX_BODY_BYTES, b""
    for piece in pieces:
        try:
            content = piece if unpack is None else unpack.decompress(piece, left)
        except zlib.error:
            raise CueSourceError("the server's answer is damaged in its compression: see the server's log") from None
        content = content[:left]
        left -= len(content)
        *lines, line = (line + content).replace(b"\r\n", b"\n").split(b"\n") if b"\n" in content else [line + content]
        yield from lines
        if not left:
            break
    yield line


def _parse(text: str) -> Any:
    """JSON, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _message_of(content: Any) -> tuple[Mapping[str, Any], str | None] | None:
    """The message (or a part of it) in an object, and why the answer ends with it; None: it is not an answer."""
    if not isinstance(content, dict):
        return None
    choices = content.get("choices")
    if isinstance(choices, list):
        if not choices or not isinstance(choices[0], dict):  # the part that has the counts
            return {}, None
        choice = choices[0]
        finish = _finish_of(choice.get("finish_reason"))
        if isinstance(choice.get("message"), dict) and not choice.get("delta"):
            return choice["message"], finish or "stop"  # it is whole, whatever the server says
        message = choice.get("delta")
        return message if isinstance(message, dict) else {"content": choice.get("text")}, finish
    # Ollama's own protocol, and OpenAI's newer one.
    finish = _finish_of(content.get("done_reason")) or ("stop" if content.get("done") is True else None)
    if isinstance(content.get("message"), dict):
        return content["message"], finish
    if isinstance(content.get("response"), str) and "done" in content:
        return {**content, "content": content["response"]}, finish
    if isinstance(content.get("output"), list):
        parts = [entry for entry in content["output"] if isinstance(entry, dict)]
        found = [part for entry in parts if isinstance(entry.get("content"), list) for part in entry["content"]]
        return {"content": found}, "stop"
    return None


def _finish_of(reason: Any) -> str | None:
    return None if reason is None else str(reason)[:40]


def _text_of(content: Any, kinds: tuple[str, ...] = ()) -> str:
    """Text, or the texts of those parts in a list that are of some kinds; parts of no kind are text."""
    if isinstance(content, str):
        return content if not kinds or "text" in kinds else ""
    if not isinstance(content, list):
        return ""
    found = []
    for part in content:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if isinstance(part, dict) and (not kinds or part.get("type", "text") in kinds):
            names = ("text", "refusal", "thinking", "reasoning", "content")
            inner = next((part[name] for name in names if part.get(name)), "")
            found.append(inner if isinstance(inner, str) else _text_of(inner))
    return "".join(found)


def _arguments_of(message: Mapping[str, Any]) -> Iterator[str]:
    """What tools would be called with: pieces of JSON, or of Ollama an object."""
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, message.get("function_call")):
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str):
            yield arguments
        elif isinstance(arguments, dict):
            yield json.dumps(arguments, ensure_ascii=False)


def _join_halves(text: str) -> str:
    """Join halves of a character that came in two pieces; one without its other half is not text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
