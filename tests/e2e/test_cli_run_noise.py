"""`teso-deploy run` with noise of each unit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import teso

CLIP = Path("export/demo/clip.mp4")


@pytest.mark.parametrize(
    ("option", "level", "source", "is_blank"),
    [
        ("--noise-dbfs", -25, "noise", True),
        ("--noise-dbw", 40, "noise", True),
        ("--noise-snr", 40, "own and noise", False),
        ("--noise-snr", -60, "own and noise", True),
    ],
)
def test_noise_of_each_unit(option: str, level: int, source: str, is_blank: bool) -> None:
    done = teso("run", CLIP, "--fps", 1, option, level, "--cues", "dog,cow,horse", "--json", "-")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["audio"]["source"] == source
    assert (report["positive_pixel_rate"] < 0.002) == is_blank


def test_noises_exclude_each_other() -> None:
    done = teso("run", CLIP, "--noise-dbw", 10, "--noise-snr", 10, "--json", "-")
    assert done.code == 2 and "exclude each other: give one" in " ".join(done.err.split())
    done = teso("run", "rtsp://127.0.0.1:1/a", "--noise-snr", 10, "--json", "-")
    assert done.code == 2 and "--noise-snr is for files: omit it" in " ".join(done.err.split())
