"""Targets: videos, sounds, streams and their addresses."""

from __future__ import annotations

import random

from tests.fuzz.answers import Answer
from tests.fuzz.cases import CANARY_URL, Case, Workshop
from tests.fuzz.containers import mutate_mp4, mutate_transport_stream
from tests.fuzz.mutations import mutate
from tests.fuzz.recordings import move_times, record_picture, record_sound, turn_picture
from tests.fuzz.runs import WAYS, growing_outputs, make_run, write_answer
from tests.fuzz.seeds import append_free_box, insert_null_packets


def fuzz_media(shop: Workshop) -> Case:
    """A damaged video, or a valid one with an odd feature that players accept."""
    draw, media = shop.draw, shop.seeds.media
    name = draw.choice(sorted(media))
    ending, ways = name.rpartition(".")[2], draw.choice(WAYS)
    if draw.random() < 0.15:
        name, content = draw.choice(
            (("h264.mp4", append_free_box(media["h264.mp4"])), ("h264.ts", insert_null_packets(media["h264.ts"])))
        )
        video = shop.write(name, content)
        return make_run(
            shop, [str(video)], f"whole {name}", *ways, codes=frozenset({0}), may_remain=growing_outputs(ways)
        )
    if ending in ("mp4", "mov") and draw.random() < 0.6:
        content = mutate_mp4(draw, media[name])
    elif ending == "ts" and draw.random() < 0.6:
        content = mutate_transport_stream(draw, media[name])
    elif draw.random() < 0.05:
        content = media[name]
    else:
        content = mutate(draw, media[name])
    video = shop.write(draw.choice((name, name, "video.mp4", "a b:%d.mkv")), content)
    return make_run(shop, [str(video)], f"{name} {' '.join(ways)}", *ways, may_remain=growing_outputs(ways))


def fuzz_sound(shop: Workshop) -> Case:
    """A damaged file as the sound of a whole video, or as that of a stream."""
    draw, media = shop.draw, shop.seeds.media
    name = draw.choice([name for name in sorted(media) if "tone" in name or draw.random() < 0.3])
    sound = shop.write(name, mutate(draw, media[name]) if draw.random() < 0.9 else media[name])
    clip = shop.write("clip.mp4", shop.seeds.clip)
    if draw.random() < 0.3:
        options = ["--mode", "live", "--audio", str(sound), "--seconds", "3", "--timeout", "1"]
        return make_run(shop, [str(clip)], f"--audio {name}", *options, may_remain=growing_outputs(options))
    return make_run(shop, [str(clip)], f"--sound-from {name}", "--sound-from", str(sound))


def fuzz_recording(shop: Workshop) -> Case:
    """A valid but odd recording: times that leap, or a rare size, rate, matrix or sound."""
    draw, media = shop.draw, shop.seeds.media
    ways = draw.choice(WAYS)
    kind = draw.choice(("times", "times", "picture", "sound", "matrix"))
    if kind == "sound":
        clip, sound = shop.write("clip.mp4", shop.seeds.clip), shop.write("odd.wav", record_sound(draw))
        return make_run(shop, [str(clip)], "odd sound", "--sound-from", str(sound))
    if kind == "picture":
        content = record_picture(draw)
    elif kind == "matrix":
        content = turn_picture(draw, media[draw.choice(("h264.mp4", "pcm.mov"))])
    else:
        name = draw.choice([name for name in media if not name.startswith("tone")])
        content = move_times(draw, media[name], name)
        if name == "h264.ts" and draw.random() < 0.5:
            stdin = shop.write("stdin", content)
            options = ["--mode", draw.choice(("live", "file")), "--timeout", "1", "--seconds", "3"]
            return make_run(
                shop, ["-"], "odd times on a pipe", *options, stdin=stdin, may_remain=growing_outputs(["live"])
            )
    video = shop.write("video.mkv", content)
    return make_run(shop, [str(video)], f"odd {kind} {' '.join(ways)}", *ways, may_remain=growing_outputs(ways))


def fuzz_stream(shop: Workshop) -> Case:
    """A damaged stream on standard input."""
    draw, media = shop.draw, shop.seeds.media
    name = draw.choice([name for name in ("h264.ts", "h264.ts", "mpeg2.ts", "vorbis.mkv") if name in media])
    content = media[name] * draw.choice((1, 1, 2))
    content = (mutate_transport_stream if name.endswith("ts") and draw.random() < 0.7 else mutate)(draw, content)
    options = ["--mode", draw.choice(("live", "file")), "--timeout", "1", "--seconds", "3"]
    options += draw.choice(([], ["--no-reconnect"], ["--corrupt", "drop"], ["--mute"], ["--metrics", "127.0.0.1:0"]))
    stdin = shop.write("stdin", content)
    return make_run(shop, ["-"], f"{name} on a pipe", *options, stdin=stdin, may_remain=growing_outputs(["live"]))


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
    answer = write_answer(status, content, draw.choice(headers))
    if draw.random() < 0.4:
        answer = mutate(draw, answer[:200]) + answer[200:]
    prefix = shop.server.add({"/live.ts": Answer(answer, draw.choice((0.0, 0.0, 0.0005)))})
    user = draw.choice((f"user:{CANARY_URL}@", f"{CANARY_URL}:x@", ""))
    query = draw.choice((f"?token={CANARY_URL}", f"?a=1&api_key={CANARY_URL}", "", f"?next={CANARY_URL}"))
    url = f"http://{user}127.0.0.1:{shop.server.port}{prefix}/live.ts{query}"
    options = ["--mode", draw.choice(("live", "file")), "--timeout", "0.5", "--seconds", "3", "--no-reconnect"]
    return make_run(shop, [url], f"{status} by HTTP", *options, may_remain=growing_outputs(["live"]))


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
        return make_run(
            shop,
            [clip],
            "odd --audio",
            "--mode",
            "live",
            "--audio",
            text,
            *options,
            may_remain=growing_outputs(["live"]),
        )
    return make_run(
        shop, ["--", text][text[:1] != "-" :], "odd address", *options, may_remain=growing_outputs(["live"])
    )
