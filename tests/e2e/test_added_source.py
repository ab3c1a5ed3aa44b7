"""A source of cues is added by one module and one entry of the registry."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from teso_deploy.cues.sources.registry import SOURCES, SourceEntry
from teso_deploy.cues.tracks import read_cue_file
from tests.support.clips import make_clip
from tests.support.commands import refused, teso

MODULE = '''
from teso_deploy.cues.contracts import CueAnswer


class Clock:
    """Names a dog in even seconds and a cow in odd ones."""

    name = identity = "clock"

    def ask(self, moment):
        word = ("dog", "cow")[int(moment.frame.pts_seconds) % 2]
        return CueAnswer((word,), "clock", moment.frame.pts_seconds, (0.5,))

    def close(self):
        pass


def make_clock(parts):
    assert parts.bundle.classes
    return Clock()
'''


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "clock_source.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOURCES, "clock", SourceEntry("clock_source:make_clock", "a dog or a cow, by the time"))
    return "clock"


@pytest.fixture(autouse=True)
def forget_module() -> None:
    sys.modules.pop("clock_source", None)


def test_an_added_source_serves_cues_and_run(clock: str, tiny_bundle: Path, tmp_path: Path) -> None:
    clip, out = make_clip(tmp_path / "clip.mp4", seconds=2.0), tmp_path / "cues.json"
    done = teso("cues", clip, "--bundle", tiny_bundle, "--source", clock, "--every", 1, "--out", out)
    assert done.code == 0, done.err
    spans = read_cue_file(out).of(clip).spans
    assert [(span.names, span.source) for span in spans] == [(("dog",), "clock"), (("cow",), "clock")]
    common = ("--bundle", tiny_bundle, "--threads", 1, "--events", tmp_path / "e.jsonl", "--json", "-")
    for arguments in (("--cue-source", f"filter:{clock},{clock}", "--cue-every", 1), ("--cues-file", out)):
        done = teso("run", clip, *arguments, *common)
        assert done.code == 0, done.err
        assert json.loads(done.out)["cues"]["offered_rate"] in ({"dog": 0.5, "cow": 0.5}, {}), done.out
    assert json.loads(done.out)["cues"]["source"] == "clock"


def test_an_added_source_is_listed(clock: str, tiny_bundle: Path, tmp_path: Path) -> None:
    clip, out = make_clip(tmp_path / "clip.mp4", seconds=0.5), tmp_path / "c.json"
    common = ("cues", clip, "--bundle", tiny_bundle, "--out", out)
    refused(*common, "--source", "oracle", names="tagger, nouns, llm, openai, filter:SOURCE, clock")
    refused(*common, "--source", f"{clock}:tagger", names="no source of cues 'clock:tagger'")


def test_a_source_whose_package_is_missing_names_the_extra(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = SourceEntry("clock_source:make_clock", "", modules=("no_such_package",), extra="cues")
    monkeypatch.setitem(SOURCES, "clock", entry)
    clip = make_clip(tmp_path / "clip.mp4", seconds=0.5)
    said = refused(
        "cues", clip, "--bundle", tiny_bundle, "--out", tmp_path / "c.json", "--source", "clock",
        names="the source clock needs no_such_package: ",
    )  # fmt: skip
    assert "'teso-deploy[cues]'" in said


def test_every_entry_names_a_factory_and_says_what_the_source_is() -> None:
    from teso_deploy.cues.sources.registry import load_factory

    for name, entry in SOURCES.items():
        assert callable(load_factory(name)) and entry.summary and "\n" not in entry.summary
