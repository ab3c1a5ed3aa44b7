"""Targets: data sets of clips with masks."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.cases import INPUTS, Case, Workshop
from tests.fuzz.documents import mutate_toml
from tests.fuzz.mutations import mutate

_TABLE = b"vid,uid,s_min,s_sec,a_obj,split,label\na,a_0,0,0,dog_car,test,v1m\nb,b_0,0,0,horse,val,v1m\n"
_SETTINGS: dict[str, Any] = {
    "frames_per_second": 2.5, "clips": {"a": {"times": [0.1, 0.3], "words": ["dog"]}, "b": {"words": []}},
}  # fmt: skip


@functools.cache
def _write_picture(number: int, ending: str) -> bytes:
    pixels = np.full((12, 16, 3), 40 * number, np.uint8)
    written = io.BytesIO()
    if ending == "png":  # an index mask
        Image.fromarray(np.where(np.arange(16) < 8, 17, 0).astype(np.uint8)[None].repeat(12, axis=0)).save(
            written, "PNG"
        )
    else:
        Image.fromarray(pixels).save(written, "JPEG")
    return written.getvalue()


def _list_files(shop: Workshop, kind: str) -> dict[str, bytes]:
    """Return the files of a small data set, which is whole: in the layout avss, or as a folder of clips."""
    sound, files = shop.seeds.media["tone.wav"], {}
    if kind == "avss":
        files["metadata.csv"] = _TABLE
        for uid in ("a_0", "b_0"):
            home = f"v1m/{uid}"
            files[f"{home}/audio.wav"] = sound
            for number in range(5):
                files[f"{home}/frames/{number}.jpg"] = _write_picture(number, "jpg")
                files[f"{home}/labels_semantic/{number}.png"] = _write_picture(number, "png")
        return files
    files = {"test/a.mp4": shop.seeds.clip, "test/b/audio.wav": sound}
    mask = io.BytesIO()
    Image.new("L", (64, 48), 255).save(mask, "PNG")
    files["test/a.masks/0.png"] = mask.getvalue()
    for number in (0, 1):
        files[f"test/b/frames/{number}.jpg"] = _write_picture(number, "jpg")
        files[f"test/b/masks/{number}.png"] = _write_picture(number, "png")
    return files


def write_dataset(shop: Workshop, kind: str, changed: dict[str, bytes] | None = None) -> str:
    """Write a data set with some files replaced, and return its folder."""
    for name, content in (_list_files(shop, kind) | (changed or {})).items():
        shop.write(f"set/{name}", content)
    return str(shop.folder / INPUTS / "set")


def fuzz_dataset(shop: Workshop) -> Case:
    """A data set of clips with an odd table, odd settings or a damaged file."""
    draw = shop.draw
    kind = draw.choice(("avss", "clips"))
    files = _list_files(shop, kind)
    if kind == "clips" and draw.random() < 0.5:
        odd, content = "clips.toml", mutate_toml(draw, _SETTINGS)
    else:
        odd = "metadata.csv" if kind == "avss" and draw.random() < 0.4 else draw.choice(sorted(files))
        content = mutate(draw, files[odd])
    arguments = ["check-data", write_dataset(shop, kind, {odd: content}), "--jobs", "1"]
    report = frozenset({"report.json"})
    return Case(
        [*arguments, "--json", str(shop.out("report.json"))], f"odd {odd}", report, frozenset({0, 1, 2}), report
    )
