"""How a table evaluates a bundle: the options of the protocol, what is kept, and which cues are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teso_deploy.bundle import Bundle
from teso_deploy.errors import CueError
from teso_deploy.evaluation.contracts import Score
from teso_deploy.evaluation.protocols.registry import ProtocolOptions
from teso_deploy.evaluation.tables import evaluating
from teso_deploy.evaluation.tables.evaluating import BundleEvaluator, EvaluationSettings, read_cues
from teso_deploy.evaluation.tables.measuring import DataSource, MeasureRequest

REQUEST = MeasureRequest(
    Path("small"),
    "labels",
    filters=True,
    source=DataSource(Path("data"), "avss", ("v2",)),
    dataset="avss-binary",
    protocol="avsbench",
    conditions=("normal", "muted", "noise 10 dBW"),
)


def make_pipeline(*, takes_cues: bool = True, has_tagger: bool = True) -> Any:
    manifest = SimpleNamespace(
        name="small", tagger=object() if has_tagger else None, audio=SimpleNamespace(framing="contiguous")
    )
    return SimpleNamespace(
        classes=("dog",),
        program=SimpleNamespace(takes=lambda name: takes_cues),
        bundle=SimpleNamespace(manifest=manifest),
    )


class Calls:
    """Stands in for what opens bundles and data sets and runs them, and remembers the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: list[ProtocolOptions] = []
        self.folders: list[Path | None] = []
        self.loaded: list[Path] = []
        monkeypatch.setattr(evaluating, "open_protocol", self.open_protocol)
        monkeypatch.setattr(evaluating, "run_evaluation", self.run)
        monkeypatch.setattr(Bundle, "open", lambda folder: folder)

    def open_protocol(self, name: str, folder: Path, options: ProtocolOptions) -> Any:
        self.options.append(options)
        return SimpleNamespace(count_samples=lambda: 3, notes=["a note"])

    def run(self, pipeline: Any, protocol: Any, cues: Any, **keywords: Any) -> Any:
        self.folders.append(keywords["folder"])
        scores = [Score("v2", 3, {"miou": 0.5}, condition=name) for name in ("normal", "muted", "noise 10 dBW")]
        report: Mapping[str, Any] = {"data": "v2 test", "rows": [1, 2, 3]}
        return SimpleNamespace(scores=scores, report=report)

    def load(self, folder: Any) -> Any:
        self.loaded.append(folder)
        return make_pipeline()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def make_evaluator(calls: Calls, settings: EvaluationSettings | None = None) -> BundleEvaluator:
    return BundleEvaluator(
        settings or EvaluationSettings(), load=calls.load, begin=lambda what, count: lambda sample: None
    )


def test_the_protocol_is_opened_with_what_the_table_wants(calls: Calls) -> None:
    make_evaluator(calls, EvaluationSettings("val", 7, skip_bad=True))(REQUEST)
    (options,) = calls.options
    clips = options.clips
    assert (clips.layout, clips.split, clips.subset, clips.clips) == ("avss", "val", ("v2",), 7)
    assert (clips.condition, clips.noise_dbw) == (("muted",), (10.0,))
    assert options.framing == "contiguous" and options.filters_by_cues and options.skip_bad
    assert options.classes == ("dog",)


def test_results_are_returned_by_sound_with_their_report(calls: Calls) -> None:
    found = make_evaluator(calls)(REQUEST)
    assert found.values["muted"] == {"miou": 0.5}
    assert found.report == {"data": "v2 test", "notes": ["a note"], "dataset": "avss-binary"}


def test_what_is_known_is_not_evaluated_again(calls: Calls) -> None:
    evaluate = make_evaluator(calls)
    evaluate(REQUEST)
    part = evaluate(replace(REQUEST, conditions=("normal",), dataset="v2"))
    assert len(calls.options) == 1 and part.report["dataset"] == "v2"
    evaluate(replace(REQUEST, filters=False))
    assert len(calls.options) == 2 and calls.loaded == [Path("small")]
    evaluate(replace(REQUEST, bundle=Path("other")))
    assert calls.loaded == [Path("small"), Path("other")]


def test_each_evaluation_has_its_own_folder(calls: Calls, tmp_path: Path) -> None:
    for settings in (EvaluationSettings(work=tmp_path / "w"), EvaluationSettings(clips=3, work=tmp_path / "w")):
        evaluate = make_evaluator(calls, settings)
        evaluate(REQUEST)
        evaluate(replace(REQUEST, filters=False))
    make_evaluator(calls, EvaluationSettings(work=tmp_path / "w"))(REQUEST)
    first, *others = calls.folders
    assert first is not None and first.name.startswith("small-avss-binary-avsbench-") and first.parent.is_dir()
    assert len({*calls.folders}) == 4 and others[-1] == first


def test_cues_that_a_bundle_can_have(tmp_path: Path) -> None:
    assert read_cues(make_pipeline(), "auto") == "auto"
    assert read_cues(make_pipeline(takes_cues=False, has_tagger=False), "auto") == "none"
    assert read_cues(make_pipeline(has_tagger=False), "labels") == "labels"
    with pytest.raises(CueError, match="no tagger for --cues auto: give --cues labels"):
        read_cues(make_pipeline(has_tagger=False), "auto")
    (tmp_path / "cues.txt").write_text("dog")
    assert read_cues(make_pipeline(), tmp_path / "cues.txt").path == tmp_path / "cues.txt"  # type: ignore[union-attr]
