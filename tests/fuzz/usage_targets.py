"""Targets: options, outputs, folders of masks and of data, the environment."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image, ImageDraw

from tests.fuzz.answers import Answer
from tests.fuzz.cases import CANARY_KEY, INPUTS, OUTPUTS, Case, Workshop
from tests.fuzz.cue_targets import MESSAGE
from tests.fuzz.documents import ODD_VALUES, mutate_json
from tests.fuzz.mutations import mutate
from tests.fuzz.runs import ONE_THREAD, growing_outputs, make_run, write_answer

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
    """Options with meaningless values."""
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
    """Outputs with odd names, or at the place of a user's file."""
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
        place = shop.out("nowhere.mp4")  # the link's target is written, and the link stays
    inside = place.is_relative_to(shop.folder / OUTPUTS) and ".." not in place.parts
    outputs = frozenset({str(place.relative_to(shop.folder / OUTPUTS))} if inside else set())
    what = f"{option} {target[-40:]!r} {' '.join(ways)}"
    codes = frozenset({0, 1, 2} if "live" in ways else {0, 2})  # 1: a live run continued without this output
    return Case(arguments, what, outputs, codes, may_remain=growing_outputs(ways) & outputs)


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
    return make_run(shop, [str(clip)], "odd folder of masks", names=("masks", "report.json"))


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
    """Write a folder of pictures and sounds for test scenes, with some files replaced."""
    for name, content in (_media_files(shop) | (changed or {})).items():
        shop.write(f"media/{name}", content)
    return shop.folder / INPUTS / "media"


def fuzz_data(shop: Workshop) -> Case:
    """A folder of pictures and sounds for test scenes with something odd."""
    draw, files = shop.draw, _media_files(shop)
    odd = draw.choice(("split.csv", "split.csv", *files))
    folder = write_media_folder(shop, {odd: mutate(draw, files[odd])})
    if draw.random() < 0.15:
        (folder / draw.choice(sorted(files))).unlink()
    arguments = ["eval", str(folder), "--bundle", str(shop.seeds.bundle), "--scenes", "1", *ONE_THREAD]
    return Case([*arguments, "--json", str(shop.out("report.json"))], f"odd {odd}", frozenset({"report.json"}))


_ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"XDG_CACHE_HOME": "/dev/null"}, {"XDG_CACHE_HOME": "/proc/none"}, {"XDG_CACHE_HOME": ""}, {"HOME": ""},
    {"HOME": "/dev/null", "XDG_CACHE_HOME": ""}, {"TMPDIR": "/proc/none"}, {"COLUMNS": "x"}, {"COLUMNS": "0"},
    {"COLUMNS": "-1"}, {"COLUMNS": "1"}, {"LINES": "x"}, {"TERM": "xterm-256color"},
    {"TESO_CUES_API_KEY": "\x1b[31m"}, {"TESO_CUES_API_KEY": ""}, {"TESO_CUES_API_KEY": f"{CANARY_KEY}\n"},
    {"TESO_AVS_DATA": "/proc/none"}, {"http_proxy": "http://127.0.0.1:1"}, {"HTTP_PROXY": "x", "NO_PROXY": "*"},
    {"SSL_CERT_FILE": "/dev/null"}, {"LC_ALL": "C"}, {"LANG": "x"}, {"OMP_NUM_THREADS": "x"}, {"TZ": "x/y"},
    {"NO_COLOR": "1"}, {"PYTHONWARNINGS": "error"}, {"CUDA_VISIBLE_DEVICES": "x"}, {"RANK": "x"},
)  # fmt: skip


def fuzz_environment(shop: Workshop) -> Case:
    """Environment variables with meaningless values."""
    draw = shop.draw
    environment = draw.choice(_ENVIRONMENTS)
    clip = shop.write("clip.mp4", shop.seeds.clip)
    cues = ["--bundle", str(shop.seeds.bundle), *ONE_THREAD]
    prefix = shop.server.add({"/v1/chat/completions": Answer(write_answer("200 OK", json.dumps(MESSAGE).encode()))})
    url = f"http://127.0.0.1:{shop.server.port}{prefix}/v1"
    if draw.random() < 0.5:
        arguments = ["cues", str(clip), "--source", "openai", "--server", url, "--server-model", "seer", *cues]
        arguments += ["--timeout", "5", "--out", str(shop.out("cues.json"))]
        return Case(arguments, f"cues with {environment}", frozenset({"cues.json"}), environment=environment)
    return make_run(shop, [str(clip)], f"run with {environment}", environment=environment)
