"""Targets: files, servers, prompts and models of cues."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from tests.fuzz.answers import Answer
from tests.fuzz.cases import CANARY_KEY, Case, Workshop
from tests.fuzz.documents import mutate_json, mutate_toml
from tests.fuzz.mutations import mutate
from tests.fuzz.runs import ONE_THREAD, make_run, write_answer


def fuzz_cue_file(shop: Workshop) -> Case:
    """An odd file of cues, of any of the kinds."""
    draw = shop.draw
    clip = shop.write("clip.mp4", shop.seeds.clip)
    roll = draw.random()
    if roll < 0.6:
        path = shop.write("cues.json", mutate_json(draw, shop.seeds.cue_file))
    elif roll < 0.8:
        path = shop.write("cues.json", mutate_json(draw, {"clip": {"f0": "dog,", "f1": "cow,dog"}}))
    else:
        words = draw.choice((b"dog\ncow\n", b"\xff\xfed\0o\0g\0", b"dog,cow\r\n" * 10_000, b"# x\n", b"dog\0cow", b""))
        path = shop.write("cues.txt", mutate(draw, words))
    ways = draw.choice(([], [], ["--mode", "live"], ["--cue-ttl", "0.1"]))
    return make_run(shop, [str(clip)], "odd cue file", "--cues-file", str(path), *ways, names=("report.json",))


#: Answers of servers, as real programs and proxies send them.
MESSAGE: dict[str, Any] = {
    "id": "x", "object": "chat.completion", "model": "seer", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": '{"objects": ["dog"], "sounding": ["dog"]}'},
         "finish_reason": "stop"}], "usage": {"total_tokens": 3},
}  # fmt: skip
_SAID: tuple[Any, ...] = (
    '{"objects": ["dog"], "sounding": ["dog"]}', '```json\n{"objects": ["dog"], "sounding": ["dog"]}\n```', "", None,
    "dog, cow", "I can't help with that.", "[" * 50_000, '{"objects": ' * 5000, "\x1b[31m\x00 dog", "dog " * 20_000,
    [{"type": "text", "text": "dog"}], [None], 3, '{"objects": ["\\ud800"], "sounding": ["\\ud800"]}',
    "<think>dog</think>", '{"objects": ["dog"], "sounding": [["dog"]]}', '{"objects": null, "sounding": 3}', CANARY_KEY,
    "９" * 99,
)  # fmt: skip


def _completion(draw: random.Random) -> bytes:
    """Return the answer to a question: as JSON or as events, right or odd."""
    message = json.loads(json.dumps(MESSAGE))
    said = message["choices"][0]["message"]
    said["content"] = draw.choice(_SAID)
    if draw.random() < 0.3:
        said[draw.choice(("reasoning_content", "reasoning", "refusal", "tool_calls"))] = draw.choice(
            (*_SAID, [{"function": {"name": "x", "arguments": said["content"]}}], [3], {"x": 1})
        )
    if draw.random() < 0.4:
        pieces = [json.dumps({"choices": [{"delta": said, "finish_reason": None}]}).encode()]
        pieces += [json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]}).encode(), b"[DONE]"]
        pieces[0] = mutate_json(draw, json.loads(pieces[0])) if draw.random() < 0.5 else pieces[0]
        body = b"".join(b"data: " + piece + b"\n\n" for piece in pieces)
        body = mutate(draw, body) if draw.random() < 0.3 else body
        return write_answer("200 OK", body, ("Content-Type: text/event-stream",))
    return write_answer("200 OK", mutate_json(draw, message), ("Content-Type: application/json",))


def _failure(draw: random.Random) -> bytes:
    reasons: tuple[Any, ...] = (
        f"no such key: Bearer {CANARY_KEY}", "x" * 90_000, "\x1b[31mred\n\nteso-deploy: fine", {"a": []},
    )  # fmt: skip
    reason = draw.choice(reasons)
    status = draw.choice(
        ("400 Bad", "401 No", "403 No", "404 No", "429 Slow", "500 Oh", "503 Busy", "302 Found", "204 Empty")
    )
    retry = draw.choice(("1e999", "-5", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "x", "0", "9" * 400))
    headers = (f"Retry-After: {retry}", f"Location: http://127.0.0.1:1/{CANARY_KEY}")
    return write_answer(status, mutate_json(draw, {"error": {"message": reason, "type": "x", "code": 3}}), headers)


def _server(shop: Workshop) -> str:
    """Return the address of a server whose answers are odd."""
    draw = shop.draw
    models: Any = {
        "object": "list",
        "data": [{"id": draw.choice(("seer", "\x1b[31m\nx", CANARY_KEY, "a" * 5000, "\ud800"))}],
    }
    listed = write_answer("200 OK", json.dumps({"data": [{"id": "seer"}]}).encode())
    if draw.random() < 0.3:
        listed = write_answer("200 OK", mutate_json(draw, models))
    answer = _completion(draw) if draw.random() < 0.75 else _failure(draw)
    if draw.random() < 0.25:
        answer = mutate(draw, answer[:300]) + answer[300:]
    pause = 0.3 if draw.random() < 0.03 else 0.0
    prefix = shop.server.add({"/v1/models": Answer(listed), "/v1/chat/completions": Answer(answer, pause)})
    return f"http://127.0.0.1:{shop.server.port}{prefix}/v1"


def fuzz_server(shop: Workshop) -> Case:
    """A server of cues that answers oddly."""
    draw, url = shop.draw, _server(shop)
    clip = shop.write("clip.mp4", shop.seeds.clip)
    model = draw.choice(([], ["--server-model", draw.choice(("seer", "\x1b[31m", "", "日本"))]))
    if draw.random() < 0.25:
        ways = draw.choice(([], ["--mode", "live"]))
        options = ["--cue-source", "openai,tagger", "--server", url, "--cue-timeout", "2", *ways]
        return make_run(shop, [str(clip)], "run with an odd server", *options, names=("report.json",))
    arguments = ["cues", str(clip), "--source", "openai", "--server", url, "--timeout", "2", *model, *ONE_THREAD]
    arguments += [
        "--bundle",
        str(shop.seeds.bundle),
        "--out",
        str(shop.out("cues.json")),
        "--json",
        str(shop.out("r.json")),
    ]
    return Case(arguments, "odd server", frozenset({"cues.json", "r.json"}))


def fuzz_prompt(shop: Workshop) -> Case:
    """An odd prompt."""
    draw = shop.draw
    document = {
        "shots": 1, "reasoning": False, "system": "Say what sounds.", "user": "Caption: {caption}",
    }  # fmt: skip
    prompt = shop.write("mine.toml", mutate_toml(draw, document))
    message = write_answer("200 OK", json.dumps(MESSAGE).encode())
    prefix = shop.server.add({"/v1/chat/completions": Answer(message)})
    url = f"http://127.0.0.1:{shop.server.port}{prefix}/v1"
    clip = shop.write("clip.mp4", shop.seeds.clip)
    arguments = [
        "cues",
        str(clip),
        "--source",
        "openai",
        "--server",
        url,
        "--server-model",
        "seer",
        "--prompt",
        str(prompt),
    ]
    arguments += [
        "--bundle",
        str(shop.seeds.bundle),
        "--out",
        str(shop.out("cues.json")),
        *ONE_THREAD,
        "--timeout",
        "5",
    ]
    return Case(arguments, "odd prompt", frozenset({"cues.json"}))


def fuzz_models(shop: Workshop) -> Case:
    """A folder of cue models whose manifest, tokenizer or graph is odd."""
    draw = shop.draw
    graph = shop.seeds.bundle_files["fusion.onnx"]
    files = {
        "reasoner/decoder.onnx": mutate(draw, graph) if draw.random() < 0.3 else graph,
        "reasoner/fusion.weights": shop.seeds.bundle_files["fusion.weights"],
        "reasoner/tokenizer.json": mutate_json(draw, {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}}}),
    }
    turns = ("before_system", "system_to_user", "before_user", "user_to_assistant", "assistant_to_user")
    entry = {
        "kind": "decoder", "folder": "reasoner", "name": "tiny", "architecture": "llama", "precision": "fp32",
        "graphs": {"decoder": "decoder.onnx"},
        "decoder": {"layers": 1, "heads": 1, "head_dim": 8, "vocabulary": 320, "context": 64, "start": [], "end": [2]},
        "chat": {name: "x" for name in (*turns, "user_to_answer")}, "licence": "unknown",
    }  # fmt: skip
    entries = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()
    }
    manifest = {"schema_version": 1, "captioner": None, "reasoner": entry, "provenance": {}, "files": entries}
    for name, content in files.items():
        shop.write(f"models/{name}", content)
    is_right = draw.random() < 0.1
    text = json.dumps(manifest).encode() if is_right else mutate_json(draw, manifest)
    folder = shop.write(f"models/{draw.choice(('cue_models.json', 'cues.json'))}", text).parent
    clip = shop.write("clip.mp4", shop.seeds.clip)
    arguments = [
        "cues",
        str(clip),
        "--source",
        draw.choice(("llm", "nouns")),
        "--models",
        str(folder),
        "--timeout",
        "5",
    ]
    arguments += ["--bundle", str(shop.seeds.bundle), *ONE_THREAD, "--out", str(shop.out("cues.json"))]
    return Case(arguments, "odd cue models", frozenset({"cues.json"}))
