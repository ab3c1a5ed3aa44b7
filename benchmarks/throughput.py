"""Frames per second from file to result, end to end.

    python -m benchmarks run throughput [--bundle B] [--clip F] [--threads 2] [--out benchmarks/results]

There are three rows, each of which includes the one before: decode the clip, segment every frame with its sound, draw
the overlay and write H.264 + AAC. The clip is run repeatedly, for at least 3 s and three times. A first, shorter pass
is the warm-up.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_files import add_out, record
from teso_deploy.backends.onnxruntime import TARGET as ONNXRUNTIME
from teso_deploy.backends.onnxruntime import make_onnxruntime_factory
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.report import environment_of, spread
from teso_deploy.errors import TesoError
from teso_deploy.pipeline.file_runner import describe_file_run, run_file
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.resources import find_shipped_path
from teso_deploy.sinks.video import AnnotatedVideoSink

LEAST_PASSES, LEAST_SECONDS = 3, 3.0


def _passes(one_pass: Callable[[], int], seconds: float) -> list[float]:
    """Return the frames per second of each pass."""
    one_pass()
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < LEAST_PASSES or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        frames = one_pass()
        rates.append(frames / (time.perf_counter() - before))
    return rates


def measure(bundle: Bundle, clip: Path, *, words: list[str], threads: int, seconds: float) -> dict[str, Any]:
    """Measure the rows, and return the report."""
    pipeline = Pipeline(bundle, make_onnxruntime_factory(threads, bundle.form_for((ONNXRUNTIME,), "fp32")))
    cues = pipeline.cues_of(words)

    def decode() -> int:
        with VideoSource(clip) as source:
            return sum(1 for _ in source)

    def segment(video: Path | None = None) -> int:
        with VideoSource(clip) as source:
            facts = describe_file_run(pipeline, [str(clip)])
            with ExitStack() as stack:
                sinks = [stack.enter_context(AnnotatedVideoSink(video, facts))] if video else []
                return run_file(pipeline, source, cues, sinks=sinks)

    with tempfile.TemporaryDirectory() as folder:
        passes = {
            "decode": decode,
            "decode, segment": segment,
            "decode, segment, draw, write": lambda: segment(Path(folder) / "out.mp4"),
        }
        rows: list[dict[str, Any]] = []
        for name, one_pass in passes.items():
            rates = _passes(one_pass, seconds)
            rows.append(
                {
                    "name": name,
                    "fps": round(float(np.median(rates)), 2),
                    "least_fps": round(min(rates), 2),
                    "passes": len(rates),
                    "coefficient_of_variation": round(spread(rates), 4),
                }
            )
    with VideoSource(clip) as source:
        info = source.info
    cost = [1 / entry["fps"] for entry in rows]
    shares = {"decoding": cost[0], "segmenting": cost[1] - cost[0], "drawing and writing": cost[2] - cost[1]}
    largest = max(shares, key=lambda name: shares[name])
    return {
        "schema_version": 1,
        "rows": rows,
        "clip": {
            "name": clip.name, "width": info.width, "height": info.height, "fps": info.fps,
            "duration_seconds": info.duration_seconds, "cues": words,
        },
        "bound_by": f"Bound by {largest}: {shares[largest] / cost[2]:.0%} of the last row; "
        f"{clip.name}, {info.width} x {info.height} at {info.fps:g} frames/s.",
        "environment": environment_of(threads, bundle),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: the shipped bundle")
    parser.add_argument("--clip", type=Path, default=find_shipped_path("export/demo/clip.mp4"))
    parser.add_argument("--cues", help="words, a,b; default: the objects of the shipped clip")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=LEAST_SECONDS, help="least time a row")
    add_out(parser)
    options = parser.parse_args(arguments)
    script = find_shipped_path("export/demo/clip.json")
    words = options.cues.split(",") if options.cues else json.loads(script.read_text(encoding="utf-8"))["visible"]
    try:
        bundle = Bundle.open(options.bundle)
        report = measure(bundle, options.clip, words=words, threads=options.threads, seconds=options.seconds)
    except TesoError as error:
        print(f"throughput: {error}", file=sys.stderr)
        return error.exit_code
    name = f"throughput-{bundle.manifest.name}-cpu"
    record(name, f"Throughput of {bundle.manifest.name}, ONNX Runtime on the CPU", report, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
