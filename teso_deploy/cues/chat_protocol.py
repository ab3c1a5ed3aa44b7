"""Reads the answer of a chat server into one text: OpenAI's form, and the variants that real servers send.

Servers stream events or send one object. They put the answer into the content, into fields for reasoning, or into the
arguments of a tool. Some report errors with status 200. The reader works line by line, needs no socket, and never keeps
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

#: The reader ignores the rest of a longer answer: the important part comes before.
MAX_ANSWER_CHARACTERS, MAX_BODY_BYTES = 20_000, 2_000_000
#: The fields that hold a model's thoughts: vLLM and DeepSeek, Ollama and OpenRouter, Ollama's own protocol.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
#: The tags that mark thoughts inside the content.
_TAGS = r"think|thinking|thought|thoughts|reasoning|seed:think"
_THOUGHT = re.compile(
    rf"<(?P<tag>{_TAGS})>.*?</(?P=tag)>|\[THINK\].*?\[/THINK\]|◁think▷.*?◁/think▷", re.DOTALL | re.IGNORECASE
)
_OPENED = re.compile(rf"(?:<(?:{_TAGS})>|\[THINK\]|◁think▷).*", re.DOTALL | re.IGNORECASE)
_CLOSED = re.compile(rf"(?:</(?:{_TAGS})>|\[/THINK\]|◁/think▷)", re.IGNORECASE)
#: The answer of gpt-oss, if a server passes its channels on unchanged.
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final[^<]*<\|message\|>(.*?)(?:<\|(?:return|end)\|>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """The parts of one answer.

    Attributes:
        content: The model's message.
        thoughts: The model's thoughts, if the server separates them.
        arguments: The arguments of a tool call.
        refusal: Why the model does not answer.
        finish: Why the answer ended, in the server's words: ``stop``, ``length``, ``content_filter``. None: it was cut
            off.
    """

    content: str = ""
    thoughts: str = ""
    arguments: str = ""
    refusal: str = ""
    finish: str | None = None

    @property
    def text(self) -> str:
        """The answer: the content without thoughts, else the arguments of a tool call, else the thoughts."""
        said = strip_thoughts(self.content)
        return next((text for text in (said, self.arguments) if text.strip()), self.thoughts or self.content)

    @property
    def is_thought_alone(self) -> bool:
        """Whether the model only thought and gave no answer."""
        has_answer = bool(strip_thoughts(self.content).strip() or self.arguments.strip())
        return not has_answer and bool(self.thoughts.strip() or self.content.strip())

    @property
    def why_empty(self) -> str | None:
        """The server's reason for an answer without text. None if it gives no reason, or if there is a text."""
        if self.text.strip():
            return None
        if self.refusal.strip():
            return f"the model refused: {to_one_line(self.refusal)}"
        if self.finish in ("content_filter", "safety", "SAFETY"):
            return "its content filter withheld the answer"
        return "the model used up its tokens before it said anything" if self.finish == "length" else None


def strip_thoughts(text: str) -> str:
    """Return a model's message without the thoughts that stand in tags.

    >>> [strip_thoughts(text) for text in ("<think>a cow?</think>A dog.", "a cow?</think>A dog.", "<think>a")]
    ['A dog.', 'A dog.', '']
    """
    channels = _FINAL_CHANNEL.findall(text)
    if channels:
        return str(channels[-1])
    text = _OPENED.sub("", _THOUGHT.sub("", text))
    return _CLOSED.split(text)[-1]  # a chat template may open the tag itself, and then the answer only closes it


class AnswerReader:
    """Reads the lines of an answer: server-sent events, one object, or one object per line.

    Args:
        name: The server's name in messages.
        clean: Removes secrets from a text of the server.
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
        """Whether the reader needs no more lines: the server ended the answer, or the answer is too long."""
        lengths = (count for field, count in self._lengths.items() if field != "thoughts")
        return self._is_done or max(lengths) > MAX_ANSWER_CHARACTERS

    def feed(self, line: bytes) -> None:
        """Read a line, without its line break. Raises :class:`CueSourceError` if it reports an error."""
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
            "thoughts": parts["thoughts"][-MAX_ANSWER_CHARACTERS:]  # the last thoughts are the closest to an answer
        }
        return ServerAnswer(**parts, finish=self._finish)

    def _take_data(self, data: str) -> None:
        if data == "[DONE]":
            self._end_event()
            self._is_done = True
            return
        # Most events are one line, and some servers send no empty line between events.
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
        """Read an object: a whole answer or a part of one."""
        if isinstance(content, dict) and (content.get("error") or content.get("object") == "error"):
            raise CueSourceError(f"{self._name} failed: {read_error(content, self._clean)}")
        said = _find_message(content)
        if said is None:
            raise CueSourceError(f"{self._name} sent an answer that is not of OpenAI's protocol: check the address")
        self._has_read = True
        message, finish = said
        self._finish = self._finish if finish is None else finish
        self._add("content", _read_text(message.get("content"), ("text", "output_text")))
        self._add("refusal", _read_text(message.get("refusal")) + _read_text(message.get("content"), ("refusal",)))
        thoughts = next((text for name in _THOUGHTS if (text := _read_text(message.get(name)))), "")
        self._add("thoughts", thoughts + _read_text(message.get("content"), ("thinking", "reasoning")))
        self._add("arguments", "".join(_yield_arguments(message)))

    def _add(self, field: str, text: str) -> None:
        if text:
            self._parts[field].append(text)
            self._lengths[field] += len(text)


def read_error(content: Any, clean: Callable[[str], str] = to_one_line) -> str:
    """Return the server's error message as one printable line. ``clean`` removes secrets from it."""
    for _ in range(6):  # gateways wrap one error in another
        if isinstance(content, list):
            content = content[0] if content else ""
        elif isinstance(content, dict):
            content = next((content[key] for key in ("error", "message", "detail", "msg") if content.get(key)), "")
    return to_one_line(clean(str(content))) or "no reason given"


def read_lines(pieces: Iterable[bytes], encoding: str = "") -> Iterator[bytes]:
    """Yield the lines of a body, without their line breaks.

    Args:
        pieces: The body as it arrives.
        encoding: Its ``Content-Encoding``: empty, ``gzip`` or ``deflate``. A proxy may compress although no compression
            was requested. Default: empty.

    Raises:
        CueSourceError: The encoding is another one, or the content is damaged.
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
            raise CueSourceError("the server's answer can't be decompressed: see the server's log") from None
        content = content[:left]
        left -= len(content)
        *lines, line = (line + content).replace(b"\r\n", b"\n").split(b"\n") if b"\n" in content else [line + content]
        yield from lines
        if not left:
            break
    yield line


def _parse(text: str) -> Any:
    """Parse JSON; None if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _find_message(content: Any) -> tuple[Mapping[str, Any], str | None] | None:
    """Return the message, or the part of a message, in an object, and the reason if the answer ends with it.

    Return None if the object does not belong to an answer.
    """
    if not isinstance(content, dict):
        return None
    choices = content.get("choices")
    if isinstance(choices, list):
        if not choices or not isinstance(choices[0], dict):  # the part that holds the token counts
            return {}, None
        choice = choices[0]
        finish = _finish_of(choice.get("finish_reason"))
        if isinstance(choice.get("message"), dict) and not choice.get("delta"):
            # a whole message ends the answer, whatever reason the server gives
            return choice["message"], finish or "stop"
        message = choice.get("delta")
        return message if isinstance(message, dict) else {"content": choice.get("text")}, finish
    # Ollama's own protocol, and OpenAI's newer one (Responses).
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


def _read_text(content: Any, kinds: tuple[str, ...] = ()) -> str:
    """Return a text, or the joined texts of a list's parts of the given kinds. A part without a kind is text."""
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
            found.append(inner if isinstance(inner, str) else _read_text(inner))
    return "".join(found)


def _yield_arguments(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield the arguments of tool calls: pieces of JSON, or one object from Ollama."""
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, message.get("function_call")):
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str):
            yield arguments
        elif isinstance(arguments, dict):
            yield json.dumps(arguments, ensure_ascii=False)


def _join_halves(text: str) -> str:
    """Join surrogate halves of a character that arrived in two pieces. A half without its partner is replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
