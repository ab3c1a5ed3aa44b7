"""The benchmark of engines on a GPU, without a GPU: the contenders, the report, and the steps."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from teso_deploy.backends.cuda.device import Device, Module
from teso_deploy.backends.cuda.operators import DeviceOperators
from teso_deploy.backends.tensorrt.bindings import adopt
from teso_deploy.backends.tensorrt.cache import EngineCache
from teso_deploy.backends.tensorrt.factory import make_engine_factory
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.harness import Entrant, Measured
from teso_deploy.comparison.turns import Timings
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.program import TESO
from tests.support.fake_gpu import FakeDevice
from tests.support.fake_tensorrt import Fake, fake_tensorrt
from tests.unit.kernels_on_host.device import HostDevice, build_runner

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
FRAMES = 4


def script(name: str) -> Any:
    """Import a module of ``benchmarks``."""
    return importlib.import_module(f"benchmarks.{name}")


gpu_engines, gpu_contenders = script("gpu_engines"), script("gpu_contenders")


def test_who_takes_part() -> None:
    assert gpu_engines.rtx_architectures((9, 0)) == [None, "sm80"]
    assert gpu_engines.rtx_architectures((8, 9)) == [None, "sm80", "sm89"]
    assert gpu_engines.rtx_architectures((8, 0)) == [None, "sm80"]
    names = list(gpu_engines.contenders((9, 0), "fp16"))
    assert names == [
        "torch eager fp16", "torch compile fp16", "torch cuda-graph fp16", "onnxruntime cuda fp16",
        "tensorrt-rtx portable fp16", "tensorrt-rtx sm80 fp16", "tensorrt fp16",
    ]  # fmt: skip
    assert "torch max-autotune fp32" in gpu_engines.contenders((9, 0), "fp32", ["max-autotune"])
    assert [gpu_engines.profile_of(batch) for batch in gpu_engines.BATCHES] == ["live", "throughput", "throughput"]
    assert all(gpu_contenders.FRAMES % batch == 0 for batch in gpu_engines.BATCHES)
    named = gpu_engines.contenders((9, 0), "fp32")
    who = gpu_engines.entrants(
        named, bundle=Path("b"), size=(64, 96), batch=8, folder=Path("f"), expected=Path("e.npy")
    )
    assert len({one.settings["facts"] for one in who}) == len(who)
    assert {one.subject for one in who} == {"benchmarks.gpu_torch:ours_in_torch", "benchmarks.gpu_contenders:ours"}
    json.dumps([one.settings for one in who])


def test_stages_are_made_of_steps() -> None:
    stages = gpu_contenders.STAGES
    assert stages["frame"] == ("preprocess", *TESO.names, "labels")
    assert stages["new-sound"] == ("audio_encoder", "fusion", "decoder", "labels")
    assert stages["new-cues"] == ("fusion", "decoder", "labels") and stages["decoder"] == ("decoder",)


def test_what_is_reported(tmp_path: Path) -> None:
    def entrant(name: str) -> Entrant:
        return Entrant(name, "fp32", "x:y", {"facts": str(tmp_path / f"{name}.json")})

    who = [entrant("torch eager fp32"), entrant("tensorrt fp32"), entrant("tensorrt-rtx sm80 fp32")]
    (tmp_path / "tensorrt fp32.json").write_text('{"gpu_memory_mb": 700, "muted_blank_rate": 1.0}')
    facts = {one.name: gpu_engines.facts_of(one) for one in who}
    seconds = {
        ("torch eager fp32", "frame"): [0.04, 0.04, 0.05],
        ("tensorrt fp32", "frame"): [0.01, 0.01, 0.02],
        ("tensorrt fp32", "pipeline"): [0.011],
        ("tensorrt-rtx sm80 fp32", "frame"): [],
    }
    timings = Timings(seconds, {"tensorrt-rtx sm80 fp32": "EngineError: it does not | run here"}, 3)
    measured = Measured(timings, {"tensorrt fp32": {"mask_iou": 0.9999999, "peak_rss_mb": 1.0}})
    rows = gpu_engines.rows_of(who, measured, facts=facts, size=(64, 96), batch=8)
    assert [(row["name"], row["stage"]) for row in rows] == [key for key, times in seconds.items() if times]
    assert rows[0]["of_torch_eager"] == 1.0 and rows[0]["mask_iou"] is None
    assert rows[1]["of_torch_eager"] == 0.25 and rows[1]["images_per_second"] == 800.0 and rows[1]["p50_ms"] == 10.0
    assert rows[1]["gpu_memory_mb"] == 700 and rows[1]["mask_iou"] == 1.0 and rows[1]["muted_blank_rate"] == 1.0
    assert rows[2]["of_torch_eager"] is None and "gpu_memory_mb" not in rows[2]
    failures = gpu_engines.failures_of(measured, (64, 96), 8)
    report = {"rows": rows, "failures": failures, "bound_by": "What it is.", "environment": {"gpu": "none"}}
    text = gpu_engines.page("Title", report)
    assert text.startswith("# Title") and "| tensorrt fp32 | fp32 | 64x96 | 8 | frame |" in text
    assert "| tensorrt-rtx sm80 fp32 | 64x96 | 8 | EngineError: it does not \\| run here |" in text
    assert "did not run" not in gpu_engines.page("Title", report | {"failures": []})


def test_it_ends_with_a_sentence_where_there_is_no_gpu() -> None:
    command = [sys.executable, str(SCRIPTS / "gpu_engines.py")]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--batch", "1"], env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "driver" in done.stderr
    done = subprocess.run([*command, "--batch", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "give a divisor of 32" in done.stderr


def settings_of(folder: Path, batch: int, **more: Any) -> dict[str, Any]:
    paths = {"expected": str(folder / "cpu.npy"), "facts": str(folder / "facts.json")}
    return {"size": [64, 64], "batch": batch, "frames": FRAMES, "device": "cpu", **paths, **more}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_torch_takes_the_steps(tiny_bundle: Path, tmp_path: Path, precision: str) -> None:
    """On the CPU, which has no CUDA graphs."""
    settings = settings_of(tmp_path, 2, bundle=str(tiny_bundle), how="eager", precision=precision)
    runner = script("gpu_torch").ours_in_torch(settings)
    assert runner.mask_iou() == 1.0 if precision == "fp32" else runner.mask_iou() > 0.9
    for stage in runner.stages:
        runner.run(stage, 1)
    assert json.loads((tmp_path / "facts.json").read_text()) == {"gpu_memory_mb": None, "torch_peak_mb": None}


def test_equal_numbers_are_one_tensor() -> None:
    import torch

    with script("gpu_torch").SameConstants():
        value = torch.zeros(2)
        assert torch.tensor([1.0, 2.0]) is torch.tensor([1.0, 2.0]) is not torch.tensor([1.0, 3.0])
        assert torch.tensor(np.eye(2)) is torch.tensor(np.eye(2)) is not torch.tensor(np.eye(2), dtype=torch.float32)
        assert value.new_tensor([[0.5]]) is value.new_tensor([[0.5]]) is not value.half().new_tensor([[0.5]])


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostDevice]:
    device = HostDevice(build_runner(tmp_path_factory.mktemp("runner")))
    yield device
    device.close()


@pytest.mark.parametrize("batch", [1, 2])
def test_engines_take_the_steps(tiny_bundle: Path, host: HostDevice, tmp_path: Path, batch: int) -> None:
    """On a fake GPU, with our kernels on the CPU: the labels equal the pipeline's."""
    bundle, gpu = Bundle.open(tiny_bundle), FakeDevice(host)
    device, module = cast(Device, gpu), cast(Module, gpu)
    library = adopt("tensorrt", fake_tensorrt(Fake(gpu, is_rtx=False)))
    factory = make_engine_factory(library, device, cache=EngineCache(tmp_path / "cache"))
    pipeline, cues = Pipeline.load(tiny_bundle), gpu_contenders.visible_cues(bundle)
    assert cues.names == ("horse", "dog")
    alone = gpu_contenders.batches_of(bundle, 1, FRAMES)
    labels = [pipeline.segment(one.frames[0], one.feeds["waveform"][0], cues).labels for one in alone]
    np.save(tmp_path / "cpu.npy", np.stack(labels))
    runner = gpu_contenders.engine_runner(
        bundle,
        (64, 64),
        factory=factory,
        device=device,
        module=module,
        operators=lambda of: DeviceOperators(device, module, of),
        settings=settings_of(tmp_path, batch),
        used_before=None,
    )
    assert runner.mask_iou() == 1.0 and np.stack(labels).any()
    assert (gpu_contenders.PIPELINE in runner.stages) == (batch == 1)
    for stage in runner.stages:
        runner.run(stage, 1)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts == {"gpu_memory_mb": None, "muted_blank_rate": None, "no_cuda_graph": None}, (
        "of weights that mean nothing"
    )
