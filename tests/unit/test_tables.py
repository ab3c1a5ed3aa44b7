"""Tables of results: their files, what is measured for them, their claims and the formats they are written in."""

from __future__ import annotations

import csv
import io
import tomllib
from pathlib import Path
from typing import Any

import pytest

from teso_deploy.errors import DataError, InputNotFoundError
from teso_deploy.evaluation.tables.claims import Judgement, judge_claims
from teso_deploy.evaluation.tables.filling import FilledRow, MeasuredRow, fill_rows, make_report
from teso_deploy.evaluation.tables.grid import make_grid
from teso_deploy.evaluation.tables.measuring import Measured
from teso_deploy.evaluation.tables.picture import draw_table
from teso_deploy.evaluation.tables.result import describe_evaluations, finish_table
from teso_deploy.evaluation.tables.schema import (
    TableDefinition,
    find_table,
    list_shipped_tables,
    load_table,
    parse_table,
)
from teso_deploy.evaluation.tables.writers import escape_latex, write_csv, write_latex, write_markdown

SHIPPED = ("1", "2", "3", "4", "5", "6", "D7", "F8", "G9", "H10", "J11")
SMALL = """
title = "A small table"
shows = "What a test needs."
labels = ["Encoder"]
notes = ["A remark."]

[sources]
paper = "a paper"

[[columns]]
key = "miou"
group = "V1M"
heading = "mIoU"
dataset = "v1m"

[[columns]]
key = "drop"
group = "V1M"
heading = "F drop"
dataset = "v1m"
condition = "muted"
value = "f_score_drop"
shown = "fraction"
decimals = 3

[[rows]]
key = "old"
name = "Old & known"
labels = ["VGGish"]
source = "paper"
quoted = {miou = 54, drop = "-"}

[[rows]]
key = "new"
name = "New"
labels = ["BEATs"]
recipes = ["new-recipe"]
source = "paper"
quoted = {miou = 66.02}
rule = true
note = "Newer."

[[claims]]
says = "New is better."
column = "miou"
row = "new"
than_row = "old"

[[claims]]
says = "It drops by a third."
column = "drop"
above = 0.3
"""


def read(text: str) -> TableDefinition:
    return parse_table(tomllib.loads(text), "small.toml")


def measured(key: str, **values: float) -> MeasuredRow:
    return MeasuredRow(key, key.title(), f"bundle {key}, cues auto", values, {"drop": "no clip of this kind"})


@pytest.fixture
def table() -> TableDefinition:
    return read(SMALL)


def fill(table: TableDefinition, *rows: MeasuredRow) -> list[FilledRow]:
    return fill_rows(table, rows)


# Files


def test_shipped_tables_are_there() -> None:
    assert tuple(list_shipped_tables()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_table_loads(name: str) -> None:
    table = load_table(name)
    assert find_table(name.lower()) == list_shipped_tables()[name]
    for row in table.rows:
        for column in table.columns:
            quoted = row.quoted.get(column.key)
            if isinstance(quoted, float):  # in the unit of its column
                assert 1 < quoted <= 100 if column.shown == "percent" else 0 < quoted <= 1, (row.key, column.key)


def test_what_the_paper_says_of_teso_is_quoted() -> None:
    """Figures of the paper that this project has from several sources."""
    rows = {name: {row.key: row.quoted for row in load_table(name).rows} for name in ("1", "2", "4", "5")}
    assert rows["1"]["teso"]["v1m_miou"] == 66.02 and rows["1"]["teso"]["v1s_f"] == 0.933
    assert rows["2"]["teso"] == {"miou": 38.96, "f": 0.451}
    assert rows["4"]["teso"]["mute_miou"] == 37.89 and rows["4"]["teso"]["mute_miou_drop"] == 42.6
    assert rows["5"]["no-audio"] == {"miou": 42.11}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("title = ", "titel = "), "small.toml: titel is not a field of a table: remove it"),
        (('key = "drop"', 'key = "miou"'), "two of the columns are 'miou'"),
        (('key = "new"', 'key = "old"'), "two of the rows are 'old'"),
        (('key = "new"', 'key = "ours"'), "the key 'ours' is the row of a bundle without a name"),
        (('dataset = "v1m"', 'dataset = "v9"'), "columns.0.dataset: Input should be 'v1s', 'v1m'"),
        (('better = "higher"', 'better = "bigger"'), "columns.0.better"),
        (("quoted = {miou = 66.02}", "quoted = {iou = 66.02}"), "row new: quoted 'iou' is not in this table"),
        (("quoted = {miou = 66.02}", 'quoted = {miou = "66"}'), "rows.1.quoted.miou: '66' is not a number"),
        (("quoted = {miou = 66.02}", "quoted = {miou = true}"), "True is not a number"),
        (("quoted = {miou = 66.02}", "quoted = {miou = nan}"), "rows.1.quoted.miou"),
        (('source = "paper"\nquoted = {miou = 66.02}', "quoted = {miou = 66.02}"), "without a source"),
        (('source = "paper"\nquoted = {miou = 66.02}', 'source = "web"'), "row new: source 'web' is not in this table"),
        (('labels = ["BEATs"]', 'labels = ["a", "b"]'), "row new has 2 labels: give 1"),
        (("above = 0.3", "above = 0.3\nbelow = 0.5"), "claims.1: give one of above, below, than_row and than_column"),
        (("above = 0.3", 'than_row = "none"'), "a claim: row 'none' is not in this table"),
        (("above = 0.3", 'than_column = "none"'), "a claim: column 'none' is not in this table"),
        (('heading = "F drop"', 'heading = "\\u001b[31m"'), "characters that can't be printed"),
        (('condition = "muted"', 'protocol = "mine"'), "unknown protocol 'mine'"),
        (('condition = "muted"', 'condition = "loud"'), "columns.1.condition: unknown condition 'loud'"),
        (('condition = "muted"', 'protocol = "composed-scenes"'), "unknown protocol 'composed-scenes' for clips"),
    ],
)
def test_bad_tables_get_a_sentence(change: tuple[str, str], complaint: str) -> None:
    text = SMALL.replace('heading = "mIoU"', 'heading = "mIoU"\nbetter = "higher"')
    assert change[0] in text
    with pytest.raises(DataError) as caught:
        read(text.replace(change[0], change[1], 1))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown table '99': name one of 1, 2, .*J11, or a \.toml file"):
        load_table("99")
    with pytest.raises(InputNotFoundError, match="does not exist"):
        load_table(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text("title = ")
    with pytest.raises(DataError, match="is not TOML"):
        load_table(tmp_path / "mine.toml")


# Cells and marks


def texts(table: TableDefinition, *rows: MeasuredRow) -> dict[str, tuple[str, ...]]:
    return {line[0]: line[1:] for line in make_grid(table, fill(table, *rows)).rows}


def test_quoted_numbers_are_marked(table: TableDefinition) -> None:
    assert texts(table) == {"Old & known": ("VGGish", "54.00†", "–†"), "New [1]": ("BEATs", "66.02†", "")}


def test_ours_stands_beside_the_quoted_number(table: TableDefinition) -> None:
    found = texts(table, measured("new", miou=0.61234, drop=0.42))
    assert found["New [1]"] == ("BEATs", "61.23 (66.02†)", "0.420")


def test_what_was_not_measured_has_a_reason(table: TableDefinition) -> None:
    grid = make_grid(table, fill(table, measured("new", miou=0.5), measured("extra", miou=0.4)))
    assert [row[3] for row in grid.rows] == ["–†", "– [2]", "– [2]"]
    assert "[2] no clip of this kind" in grid.notes and "[1] Newer." in grid.notes
    assert grid.rows[2][:3] == ("Extra", "", "40.00") and grid.rules == {1, 2}


def test_sources_and_bundles_are_named_below(table: TableDefinition) -> None:
    notes = make_grid(table, fill(table, measured("new", miou=0.5))).notes
    assert notes[0] == "† quoted, not measured here: a paper"
    assert "New: bundle new, cues auto." in notes and notes[-1] == "A remark."


# Claims


def judge(table: TableDefinition, *rows: MeasuredRow, ours: str | None = None) -> list[Judgement]:
    return judge_claims(table, fill(table, *rows), ours)


def test_claims_are_judged_on_measured_numbers(table: TableDefinition) -> None:
    better, drop = judge(table, measured("old", miou=0.5), measured("new", miou=0.6, drop=0.31))[:2]
    assert better.verdict == "holds" and better.details == "it is 60.00 %, Old & known has 50.00 %"
    assert (drop.verdict, drop.row) == ("can't be judged", "Old & known")  # each measured row is judged
    better, *drops = judge(table, measured("old", miou=0.6, drop=0.3), measured("new", miou=0.6, drop=0.31))
    assert better.verdict == "does not hold"  # equal is not better
    assert [one.verdict for one in drops] == ["does not hold", "holds"]
    assert drops[0].details == "it is 0.300, the limit is 0.300"


def test_quoted_numbers_prove_nothing(table: TableDefinition) -> None:
    assert [one.verdict for one in judge(table)] == ["can't be judged"] * 2
    assert [one.verdict for one in judge(table, measured("new", miou=0.6))] == ["can't be judged"] * 2


@pytest.mark.parametrize(("better", "verdict"), [("higher", "does not hold"), ("lower", "holds")])
def test_better_may_be_lower(better: str, verdict: str) -> None:
    table = read(SMALL.replace('heading = "mIoU"', f'heading = "mIoU"\nbetter = "{better}"'))
    assert judge(table, measured("old", miou=0.7), measured("new", miou=0.6))[0].verdict == verdict


def test_a_claim_without_a_row_is_about_each_measured_row(table: TableDefinition) -> None:
    rows = (measured("ours", drop=0.4), measured("new", drop=0.2))
    found = judge(table, *rows, ours="ours")
    assert [(one.row, one.verdict) for one in found[1:]] == [("New", "does not hold"), ("Ours", "holds")]


def test_claims_about_ours_and_columns() -> None:
    table = read(SMALL.replace('row = "new"\nthan_row = "old"', 'row = "ours"\nthan_column = "drop"'))
    row = measured("new", miou=0.5, drop=2.0)
    assert judge(table, row)[0].verdict == "can't be judged"
    assert judge(table, row, ours="new")[0].verdict == "holds"  # 50 > 2.0


# Formats


def test_markdown(table: TableDefinition) -> None:
    rows = fill(table, measured("new", miou=0.6))
    page = write_markdown(make_grid(table, rows), judge_claims(table, rows), ["data: a_b"])
    lines = page.splitlines()
    assert lines[0] == "# A small table"
    assert "| Method | Encoder | V1M mIoU (%) ↑ | V1M F drop ↑ |" in lines
    assert r"| New \[1\] | BEATs | 60.00 (66.02†) | – \[2\] |" in lines
    assert "| New is better. | New | can't be judged | what it is compared with was not measured |" in lines
    assert r"- data: a\_b" in lines


def test_csv_has_a_line_for_each_origin(table: TableDefinition) -> None:
    text = write_csv(table, fill(table, measured("new", miou=0.6), measured("extra", miou=0.25)))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["row"], line["origin"], line["miou"]) for line in lines] == [
        ("old", "quoted", "54.0"),
        ("new", "measured", "60.0"),
        ("new", "quoted", "66.02"),
        ("extra", "measured", "25.0"),
    ]
    assert lines[0]["source"] == "paper" and lines[0]["drop"] == "" and lines[1]["Encoder"] == "BEATs"


def test_latex_is_balanced_and_escaped(table: TableDefinition) -> None:
    text = write_latex(make_grid(table, fill(table, measured("new", miou=0.6))), "table 4")
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert text.count("{") == text.count("}")
    assert r"Old \& known & VGGish & 54.00$^\dagger$ & --$^\dagger$ \\" in text
    assert r"\cmidrule(lr){3-4}" in text and r"\label{tab:table-4}" in text and "usepackage{booktabs}" in text
    assert not any(ord(character) > 127 for character in text)
    cells = [line.count(" & ") for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert set(cells) == {3}


def test_a_row_may_start_with_a_bracket(table: TableDefinition) -> None:
    text = write_latex(make_grid(table, fill(table, MeasuredRow("x", "[a] name", "bundle x"))), "x")
    assert "\n{}[a] name & " in text


def test_latex_of_special_characters() -> None:
    assert escape_latex(r"a_b\c{d}~5%") == r"a\_b\textbackslash{}c\{d\}\textasciitilde{}5\%"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tables_in_every_format(name: str) -> None:
    table = load_table(name)
    grid = make_grid(table, fill_rows(table, ()))
    assert not [c for c in write_latex(grid, name) if ord(c) > 127]
    assert "†" in write_markdown(grid, (), ())
    assert len(write_csv(table, fill_rows(table, ())).splitlines()) == 1 + len(table.rows)
    picture = draw_table(grid)
    assert picture.convert("L").getextrema() == (22, 255) and picture.width > 300


def test_pictures_grow_with_the_table(table: TableDefinition) -> None:
    small = draw_table(make_grid(table, fill(table)))
    large = draw_table(make_grid(table, fill(table, measured("extra", miou=0.4))))
    assert large.height > small.height


def test_report(table: TableDefinition) -> None:
    report: dict[str, Any] = make_report("mine", table, fill(table, measured("new", miou=0.6)), run={"split": "test"})
    new = report["rows"][1]
    assert report["table"] == "mine" and report["split"] == "test" and len(report["columns"]) == 2
    assert new["cells"]["miou"] == {"measured": 60.0, "quoted": 66.02, "reason": None}
    assert new["cells"]["drop"]["reason"] == "no clip of this kind"
    assert new["labels"] == {"Encoder": "BEATs"} and new["measured_with"] == "bundle new, cues auto"


def test_a_shipped_table_says_which_one_it_is(table: TableDefinition, tmp_path: Path) -> None:
    finish_table("4", load_table("4"), Measured()).write(tmp_path / "out")
    assert (tmp_path / "out/table-4.md").read_text().startswith("# Table 4 of the paper: Obedience to the sound")
    assert finish_table("small", table, Measured()).grid.title == "A small table"


def test_evaluations_are_described_without_the_users_folders() -> None:
    evaluation = {
        "dataset": "v1m", "data": "v1m test, 3 clips", "fingerprint": "0123456789abcdef", "protocol": "avsbench",
        "bundle": "small", "cues": "/home/someone/cues.json", "precision": "fp32", "backend": "cpu",
        "filters_by_cues": True, "skipped": ["a clip"], "notes": ["one more thing"],
    }  # fmt: skip
    (line,) = describe_evaluations([evaluation])
    assert line == (
        "v1m: v1m test, 3 clips (fingerprint 0123456789ab), protocol avsbench; bundle small, cues cues.json, which "
        "filter the masks, fp32 on cpu; 1 clips skipped; one more thing"
    )
