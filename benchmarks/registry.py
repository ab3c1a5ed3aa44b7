"""The benchmarks as data. To add one, write a module with ``main(arguments)`` and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The facts about a benchmark that the runner and the list use.

    Attributes:
        subject: "module:function"; the function takes a list of arguments and returns an exit code.
        measures: What it measures, as one phrase.
        needs: Requirements: "GPU", "media" (a media folder), or an extra of the package.
        required: Arguments that have no default, as they are shown to people.
        quick: Arguments of a run that only shows that the benchmark works. Its numbers mean little.
    """

    subject: str
    measures: str
    needs: tuple[str, ...] = ()
    required: str = ""
    quick: tuple[str, ...] = ()


BENCHMARKS: Mapping[str, Benchmark] = {
    "throughput": Benchmark(
        "benchmarks.throughput:main",
        "frames per second from a file to masks and to a video",
        quick=("--seconds", "0.2"),
    ),
    "live": Benchmark(
        "benchmarks.live:main",
        "a camera of 30 frames per second: frames used, age, delay of the sound",
        quick=("--seconds", "14"),
    ),
    "live-cues": Benchmark(
        "benchmarks.live_cues:main",
        "what a slow source of cues costs the frames of a camera",
        quick=("--seconds", "5", "--turns", "1"),
    ),
    "composed-data": Benchmark(
        "benchmarks.composed_data:main",
        "nothing: it writes data sets in the layouts of AVSBench, for evaluations that can be repeated",
        needs=("media",),
        required="--out FOLDER",
        quick=("--clips", "3"),
    ),
    "precisions": Benchmark(
        "benchmarks.precisions:main",
        "scores of fp32 and int8 on composed scenes",
        needs=("media", "export"),
        quick=("--scenes", "2"),
    ),
    "ladder": Benchmark(
        "benchmarks.ladder:main",
        "each step from a plain export to ours, in milliseconds",
        needs=("bench",),
        quick=("--seconds", "1"),
    ),
    "training": Benchmark(
        "benchmarks.training:main",
        "seconds of a training step on composed scenes",
        needs=("media", "train"),
        quick=("--steps", "3"),
    ),
    "finetuning": Benchmark(
        "benchmarks.finetuning:main",
        "seconds and memory of a training step on videos at full size",
        needs=("train",),
        quick=("--steps", "2"),
    ),
    "ablations": Benchmark(
        "benchmarks.ablations:main",
        "scores of the model without each of its parts, each trained again",
        needs=("media", "train"),
        required="--start CHECKPOINT --work FOLDER",
        quick=("--steps", "2", "--scenes", "2", "--seeds", "1"),
    ),
    "infonce": Benchmark(
        "benchmarks.infonce:main",
        "scores with InfoNCE and without it, over several trainings",
        needs=("media", "train"),
        required="--work FOLDER",
        quick=("--steps", "2", "--seeds", "1", "--scenes", "1", "--scene-seeds", "1"),
    ),
    "photographs": Benchmark(
        "benchmarks.photographs:main",
        "scores on natural photographs with their own recordings",
        required="FOLDER",
    ),
    "cues": Benchmark(
        "benchmarks.cues:main",
        "names that a language model finds in captions, and how fast",
        needs=("cues",),
        required="MODELS",
        quick=("--first", "2", "--timed", "1"),
    ),
    "cue-sources": Benchmark(
        "benchmarks.cue_sources:main",
        "scores on composed scenes by the source of the cues",
        needs=("media",),
        required="MEDIA",
        quick=("--scenes", "1"),
    ),
    "evaluation": Benchmark(
        "benchmarks.evaluation:main",
        "seconds and memory of eval on data sets, a killed run that continues, PyTorch beside ONNX Runtime",
        needs=("export",),
        required="--data FOLDER",
        quick=("--clips", "4"),
    ),
    "tables": Benchmark(
        "benchmarks.tables:main",
        "the paper's tables on data sets of clips, and which of its claims hold there",
        required="--data FOLDER",
        quick=("--clips", "1"),
    ),
    "captioners": Benchmark(
        "benchmarks.captioners:main",
        "milliseconds of captioners of real size",
        needs=("cues",),
        required="MODELS…",
        quick=("--pictures", "1"),
    ),
    "engine-builds": Benchmark(
        "benchmarks.engine_builds:main",
        "seconds and memory of building engines with TensorRT-RTX",
        needs=("tensorrt-rtx",),
        required="BUNDLE…",
        quick=("--arch", "portable", "--precision", "fp32"),
    ),
    "kernels": Benchmark(
        "benchmarks.kernels:main",
        "the CUDA operators against the bandwidth of the memory and against PyTorch",
        needs=("GPU", "cuda"),
        quick=("--repetitions", "5"),
    ),
    "gpu-engines": Benchmark(
        "benchmarks.gpu_engines:main",
        "a frame and each of its steps on a GPU, ours against PyTorch",
        needs=("GPU", "cuda", "bench"),
        quick=("--seconds", "5", "--torch", "eager", "--torch", "cuda-graph"),
    ),
}  # fmt: skip
