"""The comparison of two evaluations: the paired bootstrap, classes, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teso_deploy.errors import DataError
from teso_deploy.evaluation import paired_bootstrap
from teso_deploy.evaluation.compared_results import compare_results
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.paired_bootstrap import PairedClips, compare_numbers, draw_counts
from tests.support.commands import refused, teso

Line = dict[str, Any]


def make_line(clip: str, condition: str = "normal", frames: int = 5, **values: float | None) -> Line:
    return {"clip": clip, "group": "v1m", "condition": condition, "frames": frames, "values": values}


def write_results(folder: Path, lines: Sequence[Line], **report: Any) -> Path:
    folder.mkdir()
    (folder / "clips.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    content = {"protocol": "avsbench", "layout": "ms3", "split": "test", "bundle": folder.name, "backend": "cpu"}
    (folder / "report.json").write_text(json.dumps({**content, "rows": [], **report}))
    return folder


def make_random_lines(seed: int, count: int = 30) -> list[Line]:
    rng = np.random.default_rng(seed)
    return [
        make_line(f"clip{k}", condition, int(rng.integers(1, 11)), miou=rng.random(), fpr=rng.random())
        for k in range(count)
        for condition in ("normal", "muted")
    ]


def bootstrap_slowly(
    first: Sequence[Line], second: Sequence[Line], name: str, *, draws: Sequence[Sequence[int]]
) -> list[float]:
    """Return the difference of each draw: one clip after the other, as the definition says."""
    found = []
    for drawn in draws:
        means = []
        for lines in (first, second):
            total = weight = 0.0
            for clip in drawn:
                share = 1 if name == "miou" else lines[clip]["frames"]
                total, weight = total + share * lines[clip]["values"][name], weight + share
            means.append(total / weight)
        found.append(means[1] - means[0])
    return found


@pytest.mark.parametrize("name", ["miou", "fpr"])
def test_it_equals_a_plain_bootstrap(tmp_path: Path, name: str) -> None:
    lines = make_random_lines(0), make_random_lines(1)
    for line, other in zip(*lines, strict=True):
        other["frames"] = line["frames"]
    folders = [write_results(tmp_path / label, of) for label, of in zip("ab", lines, strict=True)]
    found = compare_results(*folders, resamples=400, seed=7)
    keys = sorted({line["clip"] for line in lines[0]})
    draws = [
        [clip for clip, count in enumerate(counts) for _ in range(int(count))]
        for chunk in draw_counts(len(keys), 400, 7)
        for counts in chunk
    ]
    for condition in ("normal", "muted"):
        sides = [{line["clip"]: line for line in of if line["condition"] == condition} for of in lines]
        ordered = [[side[key] for key in keys] for side in sides]
        differences = bootstrap_slowly(ordered[0], ordered[1], name, draws=draws)
        row = next(row for row in found.rows if row.condition == condition)
        assert row.clips == 30
        difference = row.differences[name]
        assert difference.interval == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))), abs=1e-12)
        assert difference.value == pytest.approx(
            bootstrap_slowly(ordered[0], ordered[1], name, draws=[range(30)])[0], abs=1e-12
        )


def test_draws_do_not_depend_on_chunks_and_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draw_counts(20, 1000, 3)))
    monkeypatch.setattr(paired_bootstrap, "_MOST_COUNTS", 1400)
    parts = list(draw_counts(20, 1000, 3))
    assert len(parts) > 1
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (whole.sum(axis=1) == 20).all()
    assert np.abs(whole.mean(axis=0) - 1).max() < 0.15


def test_intervals_cover_the_true_difference_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for repetition in range(300):
        first = rng.random(50)
        second = first + rng.normal(0.1, 0.2, 50)
        values = np.stack([first, second])[..., None]
        number = PairedClips(values, np.ones_like(values))
        interval = compare_numbers({"miou": number}, resamples=500, seed=repetition)["miou"].interval
        assert interval is not None
        covered += interval[0] <= 0.1 <= interval[1]
    assert 0.90 <= covered / 300 <= 0.98


def test_equal_evaluations_differ_by_nothing_and_better_ones_exclude_0(tmp_path: Path) -> None:
    lines = make_random_lines(0)
    better = [{**line, "values": {**line["values"], "miou": line["values"]["miou"] + 0.05}} for line in lines]
    folders = [write_results(tmp_path / label, of) for label, of in (("a", lines), ("b", lines), ("c", better))]
    same = compare_results(folders[0], folders[1], resamples=200).rows[0].differences["miou"]
    assert same.interval == (0, 0) and not same.excludes_zero
    other = compare_results(folders[0], folders[2], resamples=200).rows[0].differences["miou"]
    assert other.excludes_zero and other.value == pytest.approx(0.05)
    back = compare_results(folders[2], folders[0], resamples=200).rows[0].differences["miou"]
    assert back.value == pytest.approx(-0.05)


def test_drops_are_of_the_same_draw(tmp_path: Path) -> None:
    """If every muted value is half of the normal one, the drop is 50 % in every draw, whatever the clips are."""
    lines = []
    for k, value in enumerate(np.random.default_rng(0).random(20)):
        lines += [make_line(f"c{k}", miou=value), make_line(f"c{k}", "muted", miou=value / 2)]
    silent = [{**line, "values": {"miou": 0.0}} if line["condition"] == "muted" else line for line in lines]
    found = compare_results(write_results(tmp_path / "a", lines), write_results(tmp_path / "b", silent), resamples=200)
    drop = found.rows[1].differences["miou_drop"]
    assert (drop.first, drop.second) == pytest.approx((0.5, 1.0))
    assert drop.interval == pytest.approx((0.5, 0.5))


def test_classes_are_averaged_over_their_sums(tmp_path: Path) -> None:
    """A mean over clips would be another number: the two frames of dogs count together, not clip by clip."""

    def semantic(clip: str, frames: int, **classes: tuple[float, int]) -> Line:
        line = make_line(clip, frames=frames, miou=0.9)
        return {**line, "class_ious": classes, "class_f_scores": classes}

    lines = [semantic("a", 1, dog=(1.0, 1), background=(1.0, 1)), semantic("b", 3, dog=(0.0, 3), background=(3.0, 3))]
    better = [lines[0], semantic("b", 3, dog=(3.0, 3), background=(3.0, 3))]
    one, other = (
        write_results(tmp_path / label, of, protocol="avss") for label, of in (("one", lines), ("other", better))
    )
    difference = compare_results(one, other, resamples=200).rows[0].differences["miou"]
    classes = len(list_avss_classes()) + 1
    assert classes == 71
    assert difference.first == pytest.approx((1 / 4 + 1) / classes)
    assert difference.second == pytest.approx(2 / classes)
    assert difference.interval == pytest.approx((0.0, 1 / classes))


def test_clips_of_one_evaluation_are_named_and_not_compared(tmp_path: Path) -> None:
    one = write_results(tmp_path / "a", [make_line(name, miou=0.5) for name in ("x", "y", "only-a")])
    other = write_results(tmp_path / "b", [make_line(name, miou=0.7) for name in ("x", "y", "only-b")])
    found = compare_results(one, other, resamples=100)
    assert (found.only_first, found.only_second) == (["only-a"], ["only-b"])
    assert found.rows[0].clips == 2 and found.rows[0].differences["miou"].value == pytest.approx(0.2)
    done = teso("compare", one, other, "--json", "-", "--resamples", 100)
    assert done.code == 0 and json.loads(done.out)["only_first"] == ["only-a"]
    assert "1 clips (only-a)" in done.err and "1 clips (only-b)" in done.err


def test_a_value_that_one_clip_lacks_is_omitted_from_both(tmp_path: Path) -> None:
    one = write_results(tmp_path / "a", [make_line("x", fpr=0.5), make_line("y", fpr=None), make_line("z", fpr=0.1)])
    other = write_results(tmp_path / "b", [make_line(name, fpr=0.9) for name in "xyz"])
    difference = compare_results(one, other, resamples=100).rows[0].differences["fpr"]
    assert (difference.first, difference.second) == pytest.approx((0.3, 0.9))


def test_one_clip_has_no_interval(tmp_path: Path) -> None:
    one = write_results(tmp_path / "a", [make_line("x", miou=0.5)])
    other = write_results(tmp_path / "b", [make_line("x", miou=0.7)])
    difference = compare_results(one, other, resamples=100).rows[0].differences["miou"]
    assert difference.interval is None and not difference.excludes_zero


def test_numbers_that_are_not_the_report_s_are_named(tmp_path: Path) -> None:
    lines = [make_line("x", miou=0.5, f_score=0.4), make_line("y", miou=0.7, f_score=0.6)]
    rows = [{"group": "v1m", "condition": "normal", "samples": 2, "values": {"miou": 0.6, "f_score": 0.55}}]
    one, other = (write_results(tmp_path / label, lines, rows=rows) for label in "ab")
    assert compare_results(one, other, resamples=100).notes == [
        "f_score is the mean over clips, which differs from the report's f_score"
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("protocol", "gewu"), ("layout", "s4"), ("split", "val"), ("fingerprint", "other")]
)
def test_other_data_are_refused(tmp_path: Path, name: str, value: str) -> None:
    one = write_results(tmp_path / "a", make_random_lines(0), fingerprint="this")
    other = write_results(tmp_path / "b", make_random_lines(0), **{"fingerprint": "this", name: value})
    refused("compare", one, other, names="compare evaluations of the same data")


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one = write_results(tmp_path / "a", [make_line("x", miou=0.5)])
    refused("compare", one, tmp_path / "nothing", names="name the folder that `teso-deploy eval --out` wrote")
    other = write_results(tmp_path / "b", [make_line("y", miou=0.5)])
    refused("compare", one, other, names="have no clip in common")
    (other / "report.json").unlink()
    refused("compare", one, other, names="its evaluation was not finished, so run the same command again")
    (other / "report.json").write_text("[]")
    refused("compare", one, other, names="is not the report of an evaluation")
    damaged = write_results(tmp_path / "c", [make_line("x", miou=0.5)])
    with (damaged / "clips.jsonl").open("a") as file:
        file.write('{"clip": "y"}\n')
    with pytest.raises(DataError, match=r"clips\.jsonl, line 2, is damaged"):
        compare_results(one, damaged)
    (damaged / "clips.jsonl").write_text("")
    refused("compare", one, damaged, names="has no clips")
    refused("compare", one, one, "--json", one / "report.json", names="report.json")


def test_markdown_has_every_number(tmp_path: Path) -> None:
    one, other = (write_results(tmp_path / label, make_random_lines(seed)) for seed, label in enumerate("ab"))
    done = teso("compare", one, other, "--markdown", tmp_path / "table.md", "--resamples", 100)
    assert done.code == 0, done.err
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| v1m | muted | 30 | miou_drop |" in text and text.count("\n| v1m ") == 5


def test_memory_does_not_grow_with_the_draws() -> None:
    values = np.random.default_rng(0).random((2, 2000, 1))
    number = {"miou": PairedClips(values, np.ones_like(values))}
    peaks = []
    for resamples in (2000, 12_000):  # 4 and 24 chunks
        tracemalloc.start()
        compare_numbers(number, resamples=resamples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def test_classes_of_few_clips_do_not_draw_a_difference_towards_zero() -> None:
    """Each of 20 clips has its own class, so a draw lacks a third of them. The second evaluation is better by 0.3."""
    clips, classes = 20, 40
    sums, frames = np.zeros((2, clips, classes)), np.zeros((2, clips, classes))
    for clip in range(clips):
        frames[:, clip, clip] = 5
        sums[:, clip, clip] = 5 * 0.2, 5 * 0.5
    number = PairedClips(sums, frames, is_class_mean=True)
    found = compare_numbers({"miou": number}, resamples=500)["miou"]
    # Half of the classes occur nowhere, and count as 0 as in the published number.
    assert found.interval is not None
    assert [found.first, found.second, *found.interval] == pytest.approx([0.1, 0.25, 0.15, 0.15])
