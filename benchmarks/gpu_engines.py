"""Our engines compared with PyTorch on one GPU: a frame from host memory to labels in host memory, and each step.

    python -m benchmarks run gpu-engines [--bundle B] [--size HxW]… [--batch N]… [--precision P]… [--out FILE.json]

Each contender has a process, and all take turns in one run for each size and batch. The report gives the reason for
each one that can't run. A bundle without graphs in half precision gets them in a temporary folder. Engines are built
when they are first needed and kept: with the profile "live" for one frame, "throughput" for more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_contenders import FRAMES, asked_nvml, batches_of, visible_cues
from benchmarks.gpu_report import page, slug
from benchmarks.results_files import add_out, record
from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.cuda.opening import open_device
from teso_deploy.backends.onnxruntime import count_cores
from teso_deploy.backends.tensorrt.sidecar import name_architecture
from teso_deploy.backends.tensorrt.targets import runs_rtx
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.harness import Entrant, Measured, run
from teso_deploy.comparison.report import environment_of, percentile_row
from teso_deploy.errors import MissingExtraError, TesoError
from teso_deploy.outputs import check_file
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.requirements import write_install_command
from teso_deploy.types import ImageSize, Precision

BATCHES = (1, 8, 32)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
EAGER = "torch eager"
#: How PyTorch runs by default; "max-autotune" is another way.
HOWS = ("eager", "compile", "cuda-graph")
#: The libraries whose versions the report names, if they are installed.
LIBRARIES = (
    "torch", "triton", "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx",
    "cuda-core", "cuda-bindings", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-ml-py",
)  # fmt: skip
BOUND_BY = (
    "A frame: uint8 pictures in host memory to labels in host memory, with one sound and its cues each; new-sound and "
    "new-cues: what they cost on the same pictures; preprocess: upload, resize, normalise; labels: upsample, choose, "
    "download; pipeline: the frame as `run` has it. of_torch_eager: p50 as a share of torch eager's in the same run, "
    "precision, batch and stage. mask_iou: of ours the labels, against fp32 on the CPU (ONNX Runtime); of torch, whose "
    "weights are random, where a class is above its median on the CPU. fp16 of torch is autocast, with the weights of "
    "products and convolutions held in half; TF32 is off everywhere. torch computes position tables in every run that "
    "are constants in ours, and resizes without rounding to levels in between. gpu_memory_mb: what a process has added "
    "to the memory in use once a batch has gone through, context and libraries included (NVML); muted_blank_rate: "
    "share of the frames that stay blank without sound; no_cuda_graph: why one of ours is launched kernel by kernel."
)


def profile_of(batch: int) -> str:
    """Return the build profile for a batch."""
    return "live" if batch == 1 else "throughput"


def rtx_architectures(capability: tuple[int, int]) -> list[str | None]:
    """List the engines of TensorRT-RTX to try on a GPU: portable (None), sm80, and those of its generation, if any."""
    own = [name_architecture(capability)] if runs_rtx(capability) else []
    return list(dict.fromkeys([None, "sm80", *own]))


def contenders(
    capability: tuple[int, int], precision: Precision, hows: Sequence[str] = HOWS
) -> dict[str, dict[str, Any]]:
    """Return name → settings of a contender, in the order of the report. ``hows``: how PyTorch runs."""
    found: dict[str, dict[str, Any]] = {f"torch {how}": {"how": how} for how in hows}
    found["onnxruntime cuda"] = {"backend": "cuda"}
    for architecture in rtx_architectures(capability):
        found[f"tensorrt-rtx {architecture or 'portable'}"] = {"backend": "tensorrt-rtx", "architecture": architecture}
    found["tensorrt"] = {"backend": "tensorrt"}
    return {f"{name} {precision}": special | {"precision": precision} for name, special in found.items()}


def entrants(
    named: Mapping[str, dict[str, Any]], *, bundle: Path, size: ImageSize, batch: int, folder: Path, expected: Path
) -> list[Entrant]:
    """Return the entrants, with their processes and settings. Facts go to files in ``folder``."""
    found = []
    for number, (name, special) in enumerate(named.items()):
        subject = "benchmarks.gpu_torch:ours_in_torch" if "how" in special else "benchmarks.gpu_contenders:ours"
        settings = {
            "bundle": str(bundle.absolute()),
            "size": list(size),
            "batch": batch,
            "frames": FRAMES,
            "expected": str(expected),
            "profile": profile_of(batch),
            "facts": str(folder / f"facts-{size[0]}x{size[1]}-{batch}-{number}.json"),
        }
        found.append(Entrant(name, special["precision"], subject, settings | special))
    return found


def facts_of(entrant: Entrant) -> dict[str, Any]:
    """Return the facts that a process wrote about itself; empty if it ended before that."""
    try:
        found: dict[str, Any] = json.loads(Path(entrant.settings["facts"]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def rows_of(
    who: Sequence[Entrant], measured: Measured, *, facts: Mapping[str, Mapping[str, Any]], size: ImageSize, batch: int
) -> list[dict[str, Any]]:
    """Return a row for each contender and stage. Facts about the whole contender stand in the row of its frame."""
    seconds = {key: times for key, times in measured.timings.seconds.items() if times}
    medians = {key: float(np.median(times)) for key, times in seconds.items()}
    rows = []
    for entrant in who:
        for (name, stage), times in seconds.items():
            if name != entrant.name:
                continue
            eager = medians.get((f"{EAGER} {entrant.precision}", stage))
            timed = percentile_row(name, times)
            row: dict[str, Any] = {
                "name": name,
                "precision": entrant.precision,
                "size": f"{size[0]}x{size[1]}",
                "batch": batch,
                "stage": stage,
                **timed,
                "images_per_second": round(batch / medians[name, stage], 1),
                "of_torch_eager": round(medians[name, stage] / eager, 4) if eager else None,
            }
            if stage == "frame":
                iou = measured.ends.get(name, {}).get("mask_iou")
                row |= {"mask_iou": None if iou is None else round(iou, 5), **facts.get(name, {})}
            rows.append(row)
    return rows


def failures_of(measured: Measured, size: ImageSize, batch: int) -> list[dict[str, Any]]:
    """List the contenders that did not run, or not to the end, and why."""
    return [
        {"name": name, "size": f"{size[0]}x{size[1]}", "batch": batch, "reason": reason}
        for name, reason in measured.timings.failures.items()
    ]


def environment(device: Device, bundle: Bundle) -> dict[str, Any]:
    """Describe the environment of the measurement."""
    queried = asked_nvml(
        {
            "driver": lambda nvml, gpu: nvml.nvmlSystemGetDriverVersion(),
            "sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "max_sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "power_limit_watts": lambda nvml, gpu: round(nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3),
        }
    )
    gpu = {
        "gpu": device.name,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "gpu_memory_total_mb": round(device.memory_info()[1] / 1e6),
        "cuda_of_driver": ".".join(map(str, device.driver_version)),
    }
    return gpu | queried | environment_of(count_cores(), bundle, LIBRARIES)


def with_half(bundle: Bundle, precisions: Sequence[Precision], folder: Path) -> Bundle:
    """Return the bundle if it has all requested graphs in half precision, else a copy that has them."""
    if "fp16" not in precisions or "onnx-fp16" in bundle.manifest.forms:
        return bundle
    if importlib.util.find_spec("onnx_ir") is None:
        raise MissingExtraError(f"half precision is derived by onnx-ir: {write_install_command('export')}")
    from teso_deploy.conversion.derive import derive_bundle

    return derive_bundle(bundle, folder / "half", ("fp32", "fp16"))[0]


def on_cpu(bundle: Bundle, size: ImageSize, path: Path) -> Path:
    """Write the labels (N, H, W) of the frames in fp32 on the CPU to a file."""
    pipeline, cues = Pipeline.load(bundle.folder, size=size), visible_cues(bundle)
    labels = [
        pipeline.segment(given.frames[0], given.feeds["waveform"][0], cues).labels for given in batches_of(bundle, 1)
    ]
    np.save(path, np.stack(labels))
    return path


def _tell(where: str, stage: str) -> None:
    print(f"{where}: {stage}", file=sys.stderr)


def measure(
    bundle: Bundle,
    device: Device,
    *,
    sizes: Sequence[ImageSize],
    batches: Sequence[int],
    precisions: Sequence[Precision],
    seconds: float,
    hows: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """Measure everything, and return the report."""
    found = environment(device, bundle)  # before anything runs, to see clocks and load without our work
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    named: dict[str, dict[str, Any]] = {}
    for precision in precisions:
        named |= contenders(device.compute_capability, precision, hows)
    for size in sizes:
        expected = on_cpu(bundle, size, folder / f"cpu-{size[0]}x{size[1]}.npy")
        for batch in batches:
            who = entrants(named, bundle=bundle.folder, size=size, batch=batch, folder=folder, expected=expected)
            where = f"{size[0]}x{size[1]}, batch {batch}"
            measured = run(who, seconds, progress=partial(_tell, where))
            rows += rows_of(
                who, measured, facts={entrant.name: facts_of(entrant) for entrant in who}, size=size, batch=batch
            )
            failures += failures_of(measured, size, batch)
    return {"schema_version": 1, "rows": rows, "failures": failures, "bound_by": BOUND_BY, "environment": found}


def parsed_size(text: str) -> ImageSize:
    """Parse ``288x512`` to (288, 512)."""
    height, separator, width = text.partition("x")
    if not (separator and height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give HEIGHTxWIDTH")
    return int(height), int(width)


def parsed_batch(text: str) -> int:
    """Parse a batch that divides the frames of the clip."""
    if not text.isdigit() or not int(text) or FRAMES % int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no batch: give a divisor of {FRAMES}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: the shipped bundle")
    parser.add_argument("--size", type=parsed_size, action="append", help="HxW; default: every size of the bundle")
    parser.add_argument("--batch", type=parsed_batch, action="append", help=f"default: {', '.join(map(str, BATCHES))}")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: fp32 and fp16")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run, at least")
    parser.add_argument("--torch", choices=(*HOWS, "max-autotune"), action="append", help=f"default: {', '.join(HOWS)}")
    add_out(parser)
    options = parser.parse_args(arguments)
    # Workers import the contenders by name.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1].absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    try:
        if options.out.suffix == ".json":
            check_file(options.out)
        device = open_device()
        with tempfile.TemporaryDirectory() as folder:
            precisions = options.precision or PRECISIONS
            bundle = with_half(Bundle.open(options.bundle), precisions, Path(folder))
            sizes = options.size or bundle.sizes
            for size in sizes:
                bundle.graph_at("visual_encoder", size)
            report = measure(
                bundle,
                device,
                sizes=sizes,
                batches=options.batch or BATCHES,
                precisions=precisions,
                seconds=options.seconds,
                hows=options.torch or HOWS,
                folder=Path(folder),
            )
        title = f"{bundle.manifest.name} on {device.name}"
        name = f"gpu-engines-{slug(device.name)}"
        record(name, title, report, out=options.out, page=page(title, report))
    except TesoError as error:
        parser.exit(error.exit_code, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
