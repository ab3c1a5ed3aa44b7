"""An evaluation protocol is added by one module and one entry of the registry."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from teso_deploy.evaluation.protocols.registry import PROTOCOLS, ProtocolEntry
from tests.support.commands import refused, teso

MODULE = '''
from dataclasses import dataclass

import numpy as np
from PIL import Image

from teso_deploy.evaluation.contracts import Prediction, Sample
from teso_deploy.evaluation.metrics import Mean, is_blank
from teso_deploy.evaluation.protocols.registry import OpenProtocol
from teso_deploy.types import WINDOW_SAMPLES


@dataclass
class Still:
    image: np.ndarray
    samples: np.ndarray
    condition: str = ""


class Blank:
    def __init__(self):
        self.mean = Mean()

    def add(self, batch):
        for sample in batch:
            for trial, prediction in sample:
                self.mean.add(is_blank(prediction.labels))

    def values(self):
        return {"blank": self.mean.value}

    def class_values(self):
        return {}


class Stills(OpenProtocol):
    """Every PNG of a folder, in silence."""

    name, samples_per_batch = "stills", 2
    figures = {"blank": "blank"}

    def __init__(self, folder, options):
        self.files = sorted(folder.glob("*.png"))

    @property
    def data(self):
        return f"{len(self.files)} pictures"

    def count_samples(self):
        return len(self.files)

    def samples(self):
        for file in self.files:
            yield Sample(file.name, "stills", content=file)

    def trials(self, sample):
        yield Still(np.array(Image.open(sample.content).convert("RGB")), np.zeros(WINDOW_SAMPLES, np.float32))

    def metrics(self, group, condition):
        return [Blank()]

    def make_predictor(self, pipeline, cues):
        return lambda trial: Prediction(pipeline.segment(trial.image, trial.samples, None).labels)

    def describe_row(self, score):
        return "stills: pictures in silence"
'''


@pytest.fixture
def stills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    sys.modules.pop("stills_protocol", None)
    (tmp_path / "stills_protocol.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    entry = ProtocolEntry("stills_protocol:Stills", "blank masks in silence", "a folder of PNGs", ("none",))
    monkeypatch.setitem(PROTOCOLS, "stills", entry)
    return "stills"


def test_an_added_protocol_is_scored_and_reported(stills: str, tiny_bundle: Path, tmp_path: Path) -> None:
    folder, table = tmp_path / "pictures", tmp_path / "table.md"
    folder.mkdir()
    for k in range(3):
        Image.new("RGB", (60, 40), (80 * k, 90, 200)).save(folder / f"{k}.png")
    common = ("eval", folder, "--bundle", tiny_bundle, "--protocol", stills, "--threads", 1)
    done = teso(*common, "--json", "-", "--markdown", table)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["protocol"] == stills and report["data"] == "3 pictures"
    (row,) = report["rows"]
    assert row["samples"] == 3 and 0 <= row["values"]["blank"] <= 1
    assert table.read_text().splitlines()[2].startswith("| stills: pictures in silence | 3 | ")
    refused(*common, "--cues", "wrong", names="unknown --cues 'wrong': name one of none")
    lost = teso(*common, "--scenes", 5, "--seeds", 2)
    assert lost.code == 2 and "--scenes and --seeds are for composed-scenes: omit them" in lost.err
    assert "tiny, 3 pictures, cues: none" in " ".join(done.err.split())


def test_an_unknown_protocol_names_those_that_there_are(stills: str, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("eval", tmp_path, "--bundle", tiny_bundle, "--protocol", "perfect")
    refused(*arguments, names="unknown protocol 'perfect': name one of composed-scenes, avsbench, ")


def test_a_protocol_whose_package_is_missing_names_the_extra(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ProtocolEntry("a:b", "", "", ("visible",), modules=("no_such_package",), extra="bench")
    monkeypatch.setitem(PROTOCOLS, "stills", entry)
    said = refused(
        "eval", tmp_path, "--bundle", tiny_bundle, "--protocol", "stills",
        names="the protocol stills needs no_such_package: ",
    )  # fmt: skip
    assert "'teso-deploy[bench]'" in said
