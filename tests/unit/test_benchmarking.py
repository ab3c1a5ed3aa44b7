"""The harness: the order of turns, the handling of failures, and the report."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teso_deploy.bundle import Bundle
from teso_deploy.comparison import stock
from teso_deploy.comparison.contenders import CONTENDERS, choose_contenders, mask2former_sizes
from teso_deploy.comparison.harness import OURS, Entrant, Measured, report_of, run
from teso_deploy.comparison.processes import WorkerProcess
from teso_deploy.comparison.report import environment_of, markdown, percentile_row, save_bars
from teso_deploy.comparison.turns import Timings, TurnFailedError, one_turn, take_turns
from teso_deploy.errors import BundleError, InputNotFoundError, MissingExtraError
from teso_deploy.recipe import Recipe, load_recipe
from tests.support.foundations import SHALLOW, small_recipe

HERE = "tests.unit.test_benchmarking"


class Sleeper:
    """A subject that sleeps."""

    stages = ("frame", "part")

    def run(self, stage: str, i: int) -> None:
        time.sleep(0.002 if stage == "frame" else 0.001)

    def mask_iou(self) -> float:
        return 0.5


class Dying(Sleeper):
    def run(self, stage: str, i: int) -> None:
        if i > 2:
            os.kill(os.getpid(), signal.SIGKILL)


def sleeper(settings: dict[str, Any]) -> Sleeper:
    print("whatever a library prints is no reply")
    return Sleeper()


def dying(settings: dict[str, Any]) -> Dying:
    return Dying()


def broken(settings: dict[str, Any]) -> Sleeper:
    raise ValueError(f"no such thing: {settings['thing']}\nand more")


def test_everybody_has_one_turn_a_round_in_an_order_of_its_own() -> None:
    log: list[str] = []

    def turn(name: str) -> list[float]:
        log.append(name)
        return [0.001]

    names = ("a", "b", "c", "d")
    found = take_turns(
        {(name, "frame"): (lambda name=name: turn(name)) for name in names},  # type: ignore[misc]
        0.0,
        least_rounds=20,
        warm_up_rounds=2,
    )
    rounds = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert len(rounds) == 22 and all(sorted(r) == list(names) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 5
    assert all(len(times) == 20 for times in found.seconds.values()), "rounds of warm-up do not count"


def test_who_fails_has_no_more_turns_and_the_others_go_on() -> None:
    count = 0

    def failing() -> list[float]:
        nonlocal count
        count += 1
        if count == 3:
            raise TurnFailedError("out of memory")
        return [0.001]

    turns = {("a", "frame"): failing, ("a", "part"): lambda: [0.001], ("b", "frame"): lambda: [0.002]}
    found = take_turns(turns, 0.0, least_rounds=10, warm_up_rounds=0)
    assert found.failures == {"a": "out of memory"} and count == 3
    assert len(found.seconds["b", "frame"]) == 10 and len(found.seconds["a", "part"]) <= 3


def test_a_turn_of_something_quick_is_several_runs() -> None:
    assert len(one_turn(lambda: time.sleep(0.005))) > 1
    assert len(one_turn(lambda: time.sleep(0.11))) == 1


def test_a_worker_builds_runs_and_ends() -> None:
    with WorkerProcess(f"{HERE}:sleeper", {}) as worker:
        assert worker.stages() == ("frame", "part")
        assert min(worker.turn("frame")) >= 0.002 and len(worker.turn("part")) > 1
        end = worker.finish()
    assert end["mask_iou"] == 0.5 and 5 < (end["peak_rss_mb"] or 0) < 2000


def test_a_worker_that_dies_or_cannot_be_built_says_why() -> None:
    who = [
        Entrant("good", "fp32", f"{HERE}:sleeper", {}),
        Entrant("dying", "fp32", f"{HERE}:dying", {}),
        Entrant("broken", "fp32", f"{HERE}:broken", {"thing": "a thing"}),
    ]
    measured = run(who, 0.0, least_rounds=3)
    assert measured.timings.failures == {
        "broken": "ValueError: no such thing: a thing",
        "dying": "its process was killed, as the system does when memory runs out",
    }
    assert set(measured.ends) == {"good"} and len(measured.timings.seconds["good", "frame"]) >= 3


def made_up() -> tuple[list[Entrant], Measured]:
    who = [
        Entrant("ours-fp32", "fp32", OURS, {}),
        Entrant("ours-int8", "int8", OURS, {}),
        Entrant("hf-eager", "fp32", "x:y", {}),
    ]
    seconds = {
        ("ours-fp32", "frame"): [0.1, 0.2, 0.3],
        ("ours-fp32", "new-sound"): [0.02],
        ("ours-int8", "frame"): [0.1],
        ("hf-eager", "frame"): [0.5, 0.6],
    }
    ends: dict[str, dict[str, float | None]] = {"ours-fp32": {"mask_iou": 0.999, "peak_rss_mb": 100.4}}
    return who, Measured(Timings(seconds, {"x": "died"}, 3), ends)


def test_ratios_are_of_medians_and_say_how_many_times_faster_ours_is(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    who, measured = made_up()
    report = report_of(bundle, (64, 64), who=who, measured=measured, environment=environment_of(2, bundle))
    assert report["ratios"] == {"hf-eager/ours-fp32": 2.75, "hf-eager/ours-int8": 5.5, "ours-fp32/ours-int8": 2.0}
    assert report["shares"] == {"new-sound/frame, ours-fp32": 0.1}
    row = report["rows"][0]
    assert (row["p50_ms"], row["fps"], row["mask_iou"], row["peak_rss_mb"]) == (200.0, 5.0, 0.999, 100)
    assert {"cpu", "cores", "threads", "load_average", "onnxruntime", "weights_sha256", "date"} <= set(
        report["environment"]
    )
    page = markdown("a title", json.loads(json.dumps(report)))
    assert "| hf-eager/ours-fp32 | 2.75 |" in page and "ours-int8" in page


def test_percentiles_and_bars(tmp_path: Path) -> None:
    row = percentile_row("x", [i / 1000 for i in range(1, 101)])
    assert row["p50_ms"] == 50.5 and row["p95_ms"] == pytest.approx(95.05) and row["runs"] == 100
    save_bars(tmp_path / "bars.png", "title", [("ours-fp32", 10.0, 12.0), ("hf-eager", 50.0, 60.0)])
    with Image.open(tmp_path / "bars.png") as image:
        assert image.width > 900 and len(image.convert("RGB").getcolors(100_000) or ()) > 3


def test_contenders_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [contender.name for contender in choose_contenders(["hf-eager", "hf-eager"])] == ["hf-eager"]
    with pytest.raises(InputNotFoundError, match="stock-onnxruntime"):
        choose_contenders(["tensorflow"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "transformers" else name)
    with pytest.raises(MissingExtraError, match=r"needs transformers: pip install 'teso-deploy\[bench\]'"):
        choose_contenders(["hf-eager"])
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingExtraError, match="needs a C"):
        choose_contenders(["torch-compile"])
    assert set(CONTENDERS) == {"hf-eager", "torch-compile", "stock-onnxruntime", "openvino-fp32", "openvino-bf16"}


def test_only_a_mask2former_has_contenders(tiny_recipe: Recipe) -> None:
    assert mask2former_sizes(load_recipe("teso-m2f-swin-b"))["depths"] == [2, 2, 18, 2]
    with pytest.raises(BundleError, match="omit --against"):
        mask2former_sizes(load_recipe("teso-sam-vit-b"))
    with pytest.raises(BundleError, match="multiples of 32"):
        mask2former_sizes(tiny_recipe)


def test_an_export_is_made_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {
        "sizes": mask2former_sizes(small_recipe(**SHALLOW)),
        "size": [64, 64],
        "threads": 1,
        "precision": "fp32",
    }
    subject = stock.on_onnxruntime(settings)
    assert subject.mask_iou() > 0.99
    folder = stock.export_once(settings)
    before = (folder / "model.onnx").stat().st_mtime_ns
    assert stock.export_once(settings) == folder and (folder / "model.onnx").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half-made is left"
    masks = np.load(folder / "masks.npy")
    assert masks.std() > 0.05
