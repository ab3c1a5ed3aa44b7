"""Which rows of a table are measured with which bundle, and what becomes of what can't be measured."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from teso_deploy.errors import CueError, DataError
from teso_deploy.evaluation.filtering_predictor import FilteringPredictor
from teso_deploy.evaluation.tables.measuring import (
    DataSource,
    Measurement,
    MeasureRequest,
    find_data_sets,
    measure_rows,
)
from teso_deploy.evaluation.tables.planning import GivenBundle, PlannedRow, find_ours, plan_rows, split_name
from teso_deploy.evaluation.tables.schema import DataSetKey, TableDefinition, parse_table
from teso_deploy.types import Cues, Segmentation
from tests.support.avs_layouts import write_avss, write_ms3, write_s4

TABLE = """
title = "A table"
shows = "What a test needs."

[[columns]]
key = "miou"
heading = "mIoU"
dataset = "v1m"

[[columns]]
key = "muted"
heading = "mIoU, muted"
dataset = "v1m"
condition = "muted"

[[columns]]
key = "s"
heading = "mIoU"
dataset = "v1s"

[[rows]]
key = "teso"
name = "TeSO"
recipes = ["big"]

[[rows]]
key = "filter"
name = "Filtered labels"
cues = "filter"

[[rows]]
key = "hand"
name = "By hand"
cues = "labels"
"""
SOURCES: dict[DataSetKey, DataSource] = {
    "v1m": DataSource(Path("m"), "ms3"),
    "v1s": DataSource(Path("s"), "s4"),
}


@pytest.fixture
def table() -> TableDefinition:
    return parse_table(tomllib.loads(TABLE), "table.toml")


def give(recipe: str, name: str = "", dataset: DataSetKey | None = None) -> GivenBundle:
    return GivenBundle(Path(recipe), recipe, name, dataset)


def plan(table: TableDefinition, *bundles: GivenBundle, **files: Path) -> dict[str, PlannedRow]:
    return {row.key: row for row in plan_rows(table, bundles, cues="auto", cue_files=files)}


# Which rows


def test_a_bundle_without_a_name_is_ours_and_measures_the_rows_of_cues(table: TableDefinition) -> None:
    rows = plan(table, give("small"))
    assert list(rows) == ["filter", "hand", "ours"]
    assert rows["ours"].name == "small (ours)" and rows["ours"].cues == "auto"
    assert rows["hand"].cues == "labels" and not rows["hand"].filters
    assert rows["filter"].filters and rows["filter"].cues == "auto"
    assert find_ours(table, [give("small")]) == "ours"


def test_a_bundle_of_a_known_recipe_is_its_row(table: TableDefinition) -> None:
    assert list(plan(table, give("big"))) == ["filter", "hand", "teso"]
    assert find_ours(table, [give("big")]) == "teso" and find_ours(table, [give("big", "x")]) is None


def test_names_match_keys_and_names_whatever_their_case(table: TableDefinition) -> None:
    rows = plan(table, give("a", "TESO"), give("b", "filtered labels"), give("c", "Something new"))
    assert [(row.key, row.name) for row in rows.values()] == [
        ("teso", "TeSO"),
        ("filter", "Filtered labels"),
        ("Something-new", "Something new"),
    ]
    assert rows["filter"].filters


def test_files_of_cues_make_rows(table: TableDefinition) -> None:
    rows = plan(table, give("small"), teso=Path("a.json"), other=Path("b.json"))
    assert rows["teso"].cues == Path("a.json") and rows["other"].cues == Path("b.json")
    assert rows["ours"].cues == "auto"
    rows = plan(table, give("small"), give("big", "teso"), teso=Path("a.json"))
    assert rows["teso"].cues == Path("a.json") and rows["teso"].bundles[None].recipe == "big"


def test_a_row_may_have_a_bundle_for_each_data_set(table: TableDefinition) -> None:
    row = plan(table, give("a", "teso", "v1s"), give("b", "teso", "v1m"))["teso"]
    found = [row.find_bundle("v1s"), row.find_bundle("v1m"), row.find_bundle("v2")]
    assert [None if one is None else one.recipe for one in found] == ["a", "b", None]


def test_what_does_not_fit_is_refused(table: TableDefinition) -> None:
    with pytest.raises(DataError, match="two bundles have no name"):
        plan(table, give("a"), give("b"))
    with pytest.raises(DataError, match="two bundles are for the row 'teso'"):
        plan(table, give("a", "teso"), give("b", "teso"))
    with pytest.raises(DataError, match="for the row 'TeSO'"):
        plan(table, give("a", "teso"), give("b", "TeSO"))
    with pytest.raises(DataError, match="the cues of other have no bundle"):
        plan(table, give("a", "teso"), other=Path("b.json"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("folder", ("", None, "folder")),
        ("teso=folder", ("teso", None, "folder")),
        ("teso=a=b", ("teso", None, "a=b")),
        ("teso@v3-1-shot=folder", ("teso", "v3-1-shot", "folder")),
        ("\0" * 5000, ("", None, "\0" * 5000)),
    ],
)
def test_names_are_split(text: str, parts: tuple[Any, ...]) -> None:
    assert split_name(text, "--bundle") == parts


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert split_name(str(tmp_path / "a=b"), "--bundle") == ("", None, str(tmp_path / "a=b"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("teso=", "has no path"), ("=folder", "has no name"), ("teso@v9=folder", "'v9' is not a data set: name one of")],
)
def test_bad_names_get_a_sentence(text: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        split_name(text, "--bundle")


# Which data


def test_data_sets_are_found(tmp_path: Path) -> None:
    s4, ms3 = write_s4(tmp_path / "s4"), write_ms3(tmp_path / "ms3")
    avss = write_avss(tmp_path / "avss", subsets=("v1m", "v2"))
    found = find_data_sets([s4, ms3, avss])
    assert {key: (source.folder, source.layout, source.subsets) for key, source in found.items()} == {
        "v1s": (s4, "s4", ()),
        "v1m": (ms3, "ms3", ()),
        "avss": (avss, "avss", ()),
        "v2": (avss, "avss", ("v2",)),
        "avss-binary": (avss, "avss", ("v2",)),
    }
    assert find_data_sets([avss, ms3])["v1m"].folder == avss  # the first counts
    with pytest.raises(DataError, match="has no data set of the tables"):
        find_data_sets([tmp_path])


# Numbers


class Recorder:
    """Measures nothing: it returns what it was given, and remembers the requests."""

    def __init__(self, result: Measurement | Exception, only_for: str = "") -> None:
        self.result, self.only_for, self.requests = result, only_for, list[MeasureRequest]()

    def __call__(self, request: MeasureRequest) -> Measurement:
        self.requests.append(request)
        if isinstance(self.result, Exception) and request.dataset.startswith(self.only_for):
            raise self.result
        return self.result if not isinstance(self.result, Exception) else Measurement({"normal": {"miou": 0.5}})


RESULT = Measurement({"normal": {"miou": 0.5}, "muted": {"miou": 0.1}}, {"clips": 3})


def test_sounds_are_measured_together_and_equal_requests_once(table: TableDefinition) -> None:
    recorder = Recorder(RESULT)
    rows = [PlannedRow(key, key, {None: give("small")}, "auto") for key in ("one", "two")]
    measured = measure_rows(table, rows, SOURCES, measure=recorder)
    first, second = measured.rows
    assert measured.reports == [{"clips": 3}, {"clips": 3}]
    assert [(one.dataset, one.conditions) for one in recorder.requests] == [
        ("v1m", ("normal", "muted")),
        ("v1s", ("normal",)),
    ]
    assert first.values == second.values == {"miou": 0.5, "muted": 0.1, "s": 0.5}
    assert first.described == "bundle small, cues auto"


def test_what_can_not_be_measured_has_a_reason(table: TableDefinition) -> None:
    rows = [PlannedRow("one", "one", {"v1m": give("small")}, "auto")]
    (row,) = measure_rows(table, rows, SOURCES, measure=Recorder(Measurement({"normal": {"miou": None}}))).rows
    assert row.values == {} and row.reasons == {
        "miou": "avsbench gives no miou here for the sound 'normal'",
        "muted": "avsbench gives no miou here for the sound 'muted'",
        "s": "no bundle for v1s",
    }
    everywhere = [PlannedRow("one", "one", {None: give("small")}, "auto")]
    (row,) = measure_rows(table, everywhere, {}, measure=Recorder(RESULT)).rows
    assert row.reasons["s"] == "no folder of --data has v1s"


def test_a_request_is_part_of_one_with_more_sounds() -> None:
    request = MeasureRequest(
        Path("b"), "auto", False, source=SOURCES["v1m"], dataset="v1m", protocol="avsbench", conditions=("normal",)
    )
    more = replace(request, conditions=("normal", "muted"), dataset="v2")
    assert request.is_part_of(more) and request.is_part_of(request) and not more.is_part_of(request)
    assert not request.is_part_of(replace(more, filters=True))
    assert not request.is_part_of(replace(more, source=SOURCES["v1s"]))


def test_one_failed_data_set_does_not_lose_the_others(table: TableDefinition) -> None:
    rows = [PlannedRow("one", "one", {None: give("small")}, "auto")]
    (row,) = measure_rows(table, rows, SOURCES, measure=Recorder(DataError("a mask is damaged"), only_for="v1s")).rows
    assert row.values == {"miou": 0.5} and row.reasons["s"] == "a mask is damaged"
    with pytest.raises(CueError, match="no tagger"):
        measure_rows(table, rows, SOURCES, measure=Recorder(CueError("no tagger")))


# The filter


def segmentation(labels: list[list[int]], cues: tuple[str, ...]) -> Segmentation:
    array = np.array(labels, np.uint8)
    scores = np.stack([(array == number).astype(np.float32) for number in (1, 2, 3)])
    offered = Cues(cues, np.zeros((4, 8), np.float32), np.arange(4) < len(cues))
    gate = np.array([1, -1, 0, 0], np.float32)
    return Segmentation(array, scores.max(axis=(1, 2)), gate, offered, scores=scores)


class _Filter(FilteringPredictor):
    """A filter whose bundle shows dog, car and piano without a cue, and whose cues are Dogs and cat."""

    def segment(self, trial: Any) -> Segmentation:
        return segmentation([[0, 0], [0, 0]], ("Dogs", "cat"))

    def segment_without_cues(self, trial: Any) -> Segmentation:
        return segmentation([[1, 2], [3, 0]], ())


def make_pipeline(classes: tuple[str, ...]) -> Any:
    return SimpleNamespace(
        classes=classes,
        program=SimpleNamespace(takes=lambda name: True, past_frames=0, past_windows=0),
        cue_table=SimpleNamespace(names=("dog", "cat", "car", "piano")),
        bundle=SimpleNamespace(manifest=SimpleNamespace(name="small")),
    )


@pytest.mark.parametrize(("classes", "kept"), [(None, 1), ((7, 8, 9), 7)])
def test_the_filter_keeps_the_classes_among_the_cues(classes: tuple[int, ...] | None, kept: int) -> None:
    predict = _Filter(make_pipeline(("dog", "car", "piano")), "auto", size=(2, 2), classes=classes)
    prediction = predict(None)  # type: ignore[arg-type]
    assert prediction.labels.tolist() == [[kept, 0], [0, 0]]
    assert prediction.probabilities is not None
    assert prediction.probabilities.sum(axis=0).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert prediction.cues is not None and prediction.cues.names == ("Dogs", "cat")


def test_a_bundle_without_classes_can_not_be_filtered() -> None:
    with pytest.raises(DataError, match="no class of small is a cue"):
        _Filter(make_pipeline(("sounding object",)), "auto", size=(2, 2))
