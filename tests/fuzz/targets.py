"""What is fuzzed: each target makes a case from a seeded generator and right inputs."""

from __future__ import annotations

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.fuzz.answers import Answer
from tests.fuzz.cases import CANARY_KEY, CANARY_URL, INPUTS, OUTPUTS, Case, Target, Workshop
from tests.fuzz.containers import (
    mutate_gzip,
    mutate_mp4,
    mutate_npz,
    mutate_onnx,
    mutate_safetensors,
    mutate_torch,
    mutate_transport_stream,
)
from tests.fuzz.documents import ODD_VALUES, mutate_json, mutate_toml
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import append_free_box, insert_null_packets

ONE_THREAD = ["--threads", "1"]
#: Options of ``run`` that take other ways through the program.
_WAYS: tuple[list[str], ...] = (
    [], [], ["--mute"], ["--mode", "paper"], ["--fps", "3"], ["--noise-dbfs", "-20"], ["--cues", "auto"],
    ["--cues", "dog,cow"], ["--mode", "live", "--seconds", "3"],
)  # fmt: skip


def _outputs(shop: Workshop, *names: str) -> tuple[list[str], frozenset[str]]:
    """Options for outputs, all of them or some, and their names."""
    kinds = {"out.mp4": "--out", "masks": "--masks", "events.jsonl": "--events", "report.json": "--json"}
    chosen = names or tuple(name for name in kinds if shop.draw.random() < 0.6) or ("report.json",)
    return [text for name in chosen for text in (kinds[name], str(shop.out(name)))], frozenset(chosen)


def _run(shop: Workshop, inputs: list[str], what: str, *more: str, names: tuple[str, ...] = (), **fields: Any) -> Case:
    options, outputs = _outputs(shop, *names)
    arguments = ["run", *inputs, *options, *more, *ONE_THREAD]
    if "--bundle" not in more:
        arguments += ["--bundle", str(shop.seeds.bundle)]
    if fields.get("may_remain"):
        fields.setdefault("codes", frozenset({0, 1, 2}))
    return Case(arguments, what, outputs, **fields)


def _growing(options: list[str]) -> frozenset[str]:
    """Outputs of a live run that broke off: what came before is kept, and the report says why."""
    return (
        frozenset({"out.mp4", "events.jsonl", "masks", "masks.jsonl", "report.json"})
        if "live" in options
        else frozenset()
    )


def fuzz_media(shop: Workshop) -> Case:
    """A damaged video, or a whole one with something odd that players take."""
    draw, media = shop.draw, shop.seeds.media
    name = draw.choice(sorted(media))
    ending, ways = name.rpartition(".")[2], draw.choice(_WAYS)
    if draw.random() < 0.15:
        name, content = draw.choice(
            (("h264.mp4", append_free_box(media["h264.mp4"])), ("h264.ts", insert_null_packets(media["h264.ts"])))
        )
        video = shop.write(name, content)
        return _run(shop, [str(video)], f"whole {name}", *ways, codes=frozenset({0}), may_remain=_growing(ways))
    if ending in ("mp4", "mov") and draw.random() < 0.6:
        content = mutate_mp4(draw, media[name])
    elif ending == "ts" and draw.random() < 0.6:
        content = mutate_transport_stream(draw, media[name])
    elif draw.random() < 0.05:
        content = media[name]
    else:
        content = mutate(draw, media[name])
    video = shop.write(draw.choice((name, name, "video.mp4", "a b:%d.mkv")), content)
    return _run(shop, [str(video)], f"{name} {' '.join(ways)}", *ways, may_remain=_growing(ways))


def fuzz_sound(shop: Workshop) -> Case:
    """A damaged file as the sound of a whole video, or as that of a stream."""
    draw, media = shop.draw, shop.seeds.media
    name = draw.choice([name for name in sorted(media) if "tone" in name or draw.random() < 0.3])
    sound = shop.write(name, mutate(draw, media[name]) if draw.random() < 0.9 else media[name])
    clip = shop.write("clip.mp4", shop.seeds.clip)
    if draw.random() < 0.3:
        options = ["--mode", "live", "--audio", str(sound), "--seconds", "3", "--timeout", "1"]
        return _run(shop, [str(clip)], f"--audio {name}", *options, may_remain=_growing(options))
    return _run(shop, [str(clip)], f"--sound-from {name}", "--sound-from", str(sound))


def fuzz_stream(shop: Workshop) -> Case:
    """A damaged stream on standard input."""
    draw, media = shop.draw, shop.seeds.media
    name = draw.choice([name for name in ("h264.ts", "h264.ts", "mpeg2.ts", "vorbis.mkv") if name in media])
    content = media[name] * draw.choice((1, 1, 2))
    content = (mutate_transport_stream if name.endswith("ts") and draw.random() < 0.7 else mutate)(draw, content)
    options = ["--mode", draw.choice(("live", "file")), "--timeout", "1", "--seconds", "3"]
    options += draw.choice(([], ["--no-reconnect"], ["--corrupt", "drop"], ["--mute"], ["--metrics", "127.0.0.1:0"]))
    stdin = shop.write("stdin", content)
    return _run(shop, ["-"], f"{name} on a pipe", *options, stdin=stdin, may_remain=_growing(["live"]))


def _http(status: str, body: bytes, headers: tuple[str, ...] = ()) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def fuzz_http(shop: Workshop) -> Case:
    """A stream from a web server that damages head or body, with credentials in its address."""
    draw = shop.draw
    content = shop.seeds.media["h264.ts"]
    if draw.random() < 0.5:
        content = mutate_transport_stream(draw, content)
    status = draw.choice(
        ("200 OK", "200 OK", "200 OK", "206 Partial", "302 Found", "401 No", "403 No", "404 No", "500 No", "99 No", "x")
    )
    headers = [("Content-Type: video/mp2t",)]
    headers += [(f"Location: http://127.0.0.1:1/?token={CANARY_URL}",), ("Content-Range: bytes 5-1/3",)]
    answer = _http(status, content, draw.choice(headers))
    if draw.random() < 0.4:
        answer = mutate(draw, answer[:200]) + answer[200:]
    prefix = shop.server.add({"/live.ts": Answer(answer, draw.choice((0.0, 0.0, 0.0005)))})
    user = draw.choice((f"user:{CANARY_URL}@", f"{CANARY_URL}:x@", ""))
    query = draw.choice((f"?token={CANARY_URL}", f"?a=1&api_key={CANARY_URL}", "", f"?next={CANARY_URL}"))
    url = f"http://{user}127.0.0.1:{shop.server.port}{prefix}/live.ts{query}"
    options = ["--mode", draw.choice(("live", "file")), "--timeout", "0.5", "--seconds", "3", "--no-reconnect"]
    return _run(shop, [url], f"{status} by HTTP", *options, may_remain=_growing(["live"]))


def _odd_address(draw: random.Random) -> str:
    secret = CANARY_URL
    scheme = draw.choice(("rtsp", "rtmp", "http", "https", "tcp", "srt", "file", "RTSP", "concat", "data", "subfile"))
    host = draw.choice(
        ("127.0.0.1:1", "127.0.0.1:99999", "[::1]:1", "[::1", "", "localhost:1", "127.0.0.1:-1", "127.0.0.1:x",
         "\x1b[31m")
    )  # fmt: skip
    user = draw.choice((f"me:{secret}@", f"me:{secret}@", f"{secret}@", "", f"me:{secret}%40x@", f"me@{secret}:"))
    path = draw.choice(
        ("/live", "/" + "a" * 5000, "", f"/key={secret}/x", f"/x?token={secret}", f"/x#pass={secret}", "/%00", "/a\nb",
         f"/x?url=rtsp%3A%2F%2Fme%3A{secret}%40host%2F", f"/x?signature={secret}&x=1", "/日本", f"/x;auth={secret}")
    )  # fmt: skip
    return f"{scheme}://{user}{host}{path}"


def fuzz_address(shop: Workshop) -> Case:
    """An address that no stream answers, with a secret in it."""
    draw = shop.draw
    text = _odd_address(draw) if draw.random() < 0.85 else draw.choice(("", " ", "~", "\x1b[31m.mp4", "a" * 300, "-x"))
    options = ["--timeout", "0.3", "--seconds", "1", draw.choice(("--reconnect", "--no-reconnect"))]
    if draw.random() < 0.2:
        clip = str(shop.write("clip.mp4", shop.seeds.clip))
        return _run(
            shop, [clip], "odd --audio", "--mode", "live", "--audio", text, *options, may_remain=_growing(["live"])
        )
    return _run(shop, ["--", text][text[:1] != "-" :], "odd address", *options, may_remain=_growing(["live"]))


def _seal(bundle: Path, names: list[str]) -> None:
    """Give files that were changed their hash in the manifest, as an attacker would."""
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    for name in names:
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.write_text(json.dumps(manifest))


def _on_bundle(shop: Workshop, bundle: Path, what: str) -> Case:
    """One of the commands that open a bundle."""
    draw = shop.draw
    roll = draw.random()
    if roll < 0.6:
        clip = shop.write("clip.mp4", shop.seeds.clip)
        cues = draw.choice(("auto", "dog", "none", "dog,cow"))
        options = ["--bundle", str(bundle), "--cues", cues, *draw.choice(([], ["--mode", "live"], ["--size", "auto"]))]
        return _run(
            shop, [str(clip)], f"run on {what}", *options, names=("report.json", "masks"), may_remain=_growing(options)
        )
    if roll < 0.9:
        arguments = ["verify", str(bundle), "--json", str(shop.out("report.json")), *ONE_THREAD]
        names = frozenset({"report.json"})
        return Case(arguments, f"verify {what}", names, frozenset({0, 1, 2}), may_remain=names)
    clip = shop.write("clip.mp4", shop.seeds.clip)
    arguments = ["cues", str(clip), "--bundle", str(bundle), "--out", str(shop.out("cues.json")), *ONE_THREAD]
    return Case(arguments, f"cues of {what}", frozenset({"cues.json"}))


def fuzz_manifest(shop: Workshop) -> Case:
    """A bundle with an odd manifest."""
    bundle = shop.copy_bundle()
    (bundle / "bundle.json").write_bytes(mutate_json(shop.draw, shop.seeds.manifest))
    return _on_bundle(shop, bundle, "an odd manifest")


def fuzz_npz(shop: Workshop) -> Case:
    """A bundle with odd arrays, their hash being right."""
    bundle = shop.copy_bundle()
    name = shop.draw.choice(("cues.npz", "cues.npz", "reference.npz"))
    (bundle / name).write_bytes(mutate_npz(shop.draw, shop.seeds.bundle_files[name]))
    _seal(bundle, [name] if shop.draw.random() < 0.95 else [])
    return _on_bundle(shop, bundle, f"odd {name}")


def fuzz_onnx(shop: Workshop) -> Case:
    """A bundle with an odd graph or odd weights, their hash being right."""
    draw, bundle = shop.draw, shop.copy_bundle()
    name = draw.choice([name for name in shop.seeds.bundle_files if name.endswith((".onnx", ".onnx", ".weights"))])
    content = shop.seeds.bundle_files[name]
    (bundle / name).write_bytes(mutate_onnx(draw, content) if name.endswith(".onnx") else mutate(draw, content))
    _seal(bundle, [name])
    return _on_bundle(shop, bundle, f"odd {name}")


def _on_checkpoint(shop: Workshop, path: Path, what: str) -> Case:
    part = shop.draw.choice(("", "", "model=", "visual=", "audio=", "text="))
    arguments = ["verify", str(shop.seeds.bundle), "--checkpoint", f"{part}{path}", *ONE_THREAD]
    if shop.draw.random() < 0.5:
        arguments += ["--random-weights", "0"]
    return Case([*arguments, "--json", str(shop.out("report.json"))], what, frozenset({"report.json"}))


def fuzz_safetensors(shop: Workshop) -> Case:
    """An odd checkpoint in safetensors, alone or in a folder of Hugging Face."""
    draw, content = shop.draw, shop.seeds.checkpoints["model.safetensors"]
    roll = draw.random()
    if roll < 0.2:
        index = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
        path = shop.write("hub/model.safetensors.index.json", mutate_json(draw, index))
        shop.write("hub/model-1.safetensors", content)
        path = draw.choice((path, path.parent))
        return _on_checkpoint(shop, path, "odd index of shards")
    changed = mutate_gzip(draw, content) if roll < 0.3 else mutate_safetensors(draw, content)
    path = shop.write(draw.choice(("model.safetensors", "model.pth", "hub/model.safetensors")), changed)
    return _on_checkpoint(shop, path.parent if path.parent.name == "hub" else path, "odd safetensors")


def fuzz_pickle(shop: Workshop) -> Case:
    """An odd checkpoint of PyTorch; some would run code."""
    draw = shop.draw
    name = draw.choice(("model.pth", "legacy.pt", "last.ckpt"))
    content = shop.seeds.checkpoints[name]
    changed = mutate_gzip(draw, content) if draw.random() < 0.1 else mutate_torch(draw, content)
    path = shop.write(draw.choice((name, "model.bin", "model.pkl", "model.safetensors", "x.pth.tar", "x")), changed)
    return _on_checkpoint(shop, path, f"odd {name}")


def fuzz_recipe(shop: Workshop) -> Case:
    """An odd recipe."""
    draw = shop.draw
    document = {**shop.seeds.recipe, **({"extends": "teso-nano"} if draw.random() < 0.3 else {})}
    path = shop.write("mine.toml", mutate_toml(draw, document))
    size = draw.choice(([], [], [], ["--size", draw.choice(("0", "33", "1e3", "64x", "999999999", "32x64", "x", "²"))]))
    arguments = ["export", str(path), "--dry-run", "--json", str(shop.out("report.json")), *size]
    return Case(arguments, "odd recipe", frozenset({"report.json"}))


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
    return _run(shop, [str(clip)], "odd cue file", "--cues-file", str(path), *ways, names=("report.json",))


def fuzz_masks(shop: Workshop) -> Case:
    """A folder of masks of an earlier run with an odd marker, or none."""
    draw = shop.draw
    clip = shop.write("clip.mp4", shop.seeds.clip)
    folder = shop.out("masks")
    folder.mkdir()
    (folder / "000000.png").write_bytes(b"mine")
    marker = {
        "schema_version": 1, "classes": [{"id": 1, "name": "dog", "color": [255, 0, 0]}], "input": "clip.mp4",
        "bundle": "tiny",
    }  # fmt: skip
    if draw.random() < 0.8:
        (folder / "masks.json").write_bytes(mutate_json(draw, marker))
    elif draw.random() < 0.5:
        (folder / "masks.json").mkdir()
    return _run(shop, [str(clip)], "odd folder of masks", names=("masks", "report.json"))


#: Answers of servers as programs and proxies give them.
_MESSAGE: dict[str, Any] = {
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
    """The answer to a question: as JSON or as events, right or odd."""
    message = json.loads(json.dumps(_MESSAGE))
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
        return _http("200 OK", body, ("Content-Type: text/event-stream",))
    return _http("200 OK", mutate_json(draw, message), ("Content-Type: application/json",))


def _failure(draw: random.Random) -> bytes:
    reasons: tuple[Any, ...] = (
        f"no such key: Bearer {CANARY_KEY}", "x" * 90_000, "\x1b[31mred\n\nteso-deploy: fine", {"a": []},
    )  # fmt: skip
    told = draw.choice(reasons)
    status = draw.choice(
        ("400 Bad", "401 No", "403 No", "404 No", "429 Slow", "500 Oh", "503 Busy", "302 Found", "204 Empty")
    )
    retry = draw.choice(("1e999", "-5", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "x", "0", "9" * 400))
    headers = (f"Retry-After: {retry}", f"Location: http://127.0.0.1:1/{CANARY_KEY}")
    return _http(status, mutate_json(draw, {"error": {"message": told, "type": "x", "code": 3}}), headers)


def _server(shop: Workshop) -> str:
    """The address of a server whose answers are odd."""
    draw = shop.draw
    models: Any = {
        "object": "list",
        "data": [{"id": draw.choice(("seer", "\x1b[31m\nx", CANARY_KEY, "a" * 5000, "\ud800"))}],
    }
    listed = _http("200 OK", json.dumps({"data": [{"id": "seer"}]}).encode())
    if draw.random() < 0.3:
        listed = _http("200 OK", mutate_json(draw, models))
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
        return _run(shop, [str(clip)], "run with an odd server", *options, names=("report.json",))
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
    message = _http("200 OK", json.dumps(_MESSAGE).encode())
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


_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e308",
    "-1",
    "0",
    "",
    "x",
    "1e-300",
    "9" * 400,
    "²",
    "0x10",
    "1_0",
    "٣",
    " 1",
    "1.5",
)
_NUMBER_OPTIONS = (
    "--fps", "--threads", "--noise-dbfs", "--seconds", "--timeout", "--staleness", "--cue-every", "--cue-ttl",
    "--cue-budget", "--cue-timeout", "--still-threshold", "--cue-frames",
)  # fmt: skip
_TEXTS = tuple(value for value in ODD_VALUES if isinstance(value, str) and "\0" not in value and len(value) < 1000)
_TEXT_OPTIONS = (
    "--cues", "--size", "--precision", "--backend", "--profile", "--mode", "--decoder", "--cue-source", "--server",
    "--server-model", "--cue-prompt", "--models", "--cues-file", "--metrics", "--audio", "--sound-from", "--bundle",
)  # fmt: skip


def fuzz_options(shop: Workshop) -> Case:
    """Options with values that mean nothing."""
    draw = shop.draw
    clip = shop.write("clip.mp4", shop.seeds.clip)
    options: list[str] = []
    for _ in range(draw.choice((1, 1, 2))):
        if draw.random() < 0.5:
            options += [draw.choice(_NUMBER_OPTIONS), draw.choice(_NUMBERS)]
        else:
            options += [draw.choice(_TEXT_OPTIONS), draw.choice(_TEXTS)]
    if draw.random() < 0.4:
        options += ["--mode", draw.choice(("live", "file", "paper"))]
    if draw.random() < 0.2:
        options += ["--cue-source", "tagger"]
    bundle = [] if "--bundle" in options else ["--bundle", str(shop.seeds.bundle)]
    arguments = ["run", str(clip), "--json", str(shop.out("report.json")), *bundle, *options]
    return Case(arguments, " ".join(options), frozenset({"report.json"}))


def fuzz_output(shop: Workshop) -> Case:
    """Outputs with odd names, or where something of the user's is."""
    draw = shop.draw
    clip = shop.write("clip.mp4", shop.seeds.clip)
    mine = shop.out("mine")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    link = shop.out("link.mp4")
    link.symlink_to(draw.choice((clip, shop.out("nowhere.mp4"), mine)))
    name = draw.choice(
        ("a" * 246 + ".mp4", "a" * 260 + ".mp4", "x.mp4/y.mp4", "mine", "mine/o.mp4", "..", "\udcff.mp4", "a:b.mp4",
         "%d.mp4", "-.mp4", ".mp4", " .mp4", "a\nb.mp4", "\x1b[31m.mp4", "link.mp4", "日本.mp4", "no/such/o.mp4")
    )  # fmt: skip
    option = draw.choice(("--out", "--masks", "--events", "--json", "--out"))
    target = draw.choice((str(shop.out(name)), str(clip), "/dev/full", "/proc/x", str(shop.out(name))))
    ways = draw.choice(([], [], ["--mode", "live"]))
    arguments = ["run", str(clip), option, target, "--bundle", str(shop.seeds.bundle), *ways, *ONE_THREAD]
    place = Path(target)
    if name == "link.mp4":
        place = shop.out("nowhere.mp4")  # what the link names is written, and the link stays
    inside = place.is_relative_to(shop.folder / OUTPUTS) and ".." not in place.parts
    outputs = frozenset({str(place.relative_to(shop.folder / OUTPUTS))} if inside else set())
    return Case(arguments, f"{option} {target[-40:]!r} {' '.join(ways)}", outputs, may_remain=_growing(ways) & outputs)


_ROWS = (
    "file,label,kind,split", "p/0.png,dog,picture,test", "p/1.png,cow,picture,test", "p/2.png,car,picture,test",
    "a/0.wav,dog,sound,test", "a/1.wav,cow,sound,test", "a/2.wav,car,sound,test", "a/3.wav,speech,sound,test",
    "b/0.jpg,,background,test",
)  # fmt: skip


def _media_files(shop: Workshop) -> dict[str, bytes]:
    files: dict[str, bytes] = {"split.csv": "\n".join(_ROWS).encode()}
    for number, name in enumerate(("p/0.png", "p/1.png", "p/2.png", "b/0.jpg")):
        stream = io.BytesIO()
        if name.endswith("png"):
            image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
            ImageDraw.Draw(image).ellipse((6, 6, 30 + number, 30), (200, 30 * number, 30, 255))
            image.save(stream, "PNG")
        else:
            Image.new("RGB", (80, 60), (120, 110, 100)).save(stream, "JPEG")
        files[name] = stream.getvalue()
    return files | {name: shop.seeds.media["tone.wav"] for name in ("a/0.wav", "a/1.wav", "a/2.wav", "a/3.wav")}


def write_media_folder(shop: Workshop, changed: dict[str, bytes] | None = None) -> Path:
    """A folder of pictures and sounds for test scenes, some of its files being others."""
    for name, content in (_media_files(shop) | (changed or {})).items():
        shop.write(f"media/{name}", content)
    return shop.folder / INPUTS / "media"


def fuzz_data(shop: Workshop) -> Case:
    """A folder of pictures and sounds, for test scenes, of which something is odd."""
    draw, files = shop.draw, _media_files(shop)
    odd = draw.choice(("split.csv", "split.csv", *files))
    folder = write_media_folder(shop, {odd: mutate(draw, files[odd])})
    if draw.random() < 0.15:
        (folder / draw.choice(sorted(files))).unlink()
    arguments = ["eval", str(folder), "--bundle", str(shop.seeds.bundle), "--scenes", "1", *ONE_THREAD]
    return Case([*arguments, "--json", str(shop.out("report.json"))], f"odd {odd}", frozenset({"report.json"}))


def fuzz_profile(shop: Workshop) -> Case:
    """An odd profile of engines."""
    document = {"optimization_level": 1, "workspace_gib": 0.5, "tactics": ["a"], "batch": [1, 1, 2]}
    shipped = {"summary": "x", "builder_optimization_level": 0, **document}
    path = shop.write("mine.toml", mutate_toml(shop.draw, shipped))
    clip = shop.write("clip.mp4", shop.seeds.clip)
    options = ["--backend", "tensorrt-rtx", "--profile", str(path)]
    return _run(shop, [str(clip)], "odd profile", *options, names=("report.json",))


#: Name → what makes a case.
TARGETS: dict[str, Target] = {
    function.__name__.removeprefix("fuzz_"): function
    for function in (
        fuzz_media, fuzz_sound, fuzz_stream, fuzz_http, fuzz_address, fuzz_manifest, fuzz_npz, fuzz_onnx,
        fuzz_safetensors, fuzz_pickle, fuzz_recipe, fuzz_cue_file, fuzz_masks, fuzz_server, fuzz_prompt, fuzz_options,
        fuzz_output, fuzz_data, fuzz_profile,
    )
}  # fmt: skip
