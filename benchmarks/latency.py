"""How long each stage of one frame takes, and the whole frame, batch 1.

    python benchmarks/latency.py [--bundle B] [--clip F] [--threads 2] [--out benchmarks/results]

Pictures and windows come from a clip and change from run to run, so that nothing is spared
but where the row says so. 0.2 s of warm-up, then at least 3 s and ten runs a row.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import LEAST_SECONDS, RESULTS, environment, measured, publish, row

from teso_deploy.backends.onnxruntime import onnxruntime_factory
from teso_deploy.bundle import Bundle
from teso_deploy.errors import TesoError
from teso_deploy.resources import shipped_path
from teso_deploy.runtime.pipeline import GRAPHS, Pipeline
from teso_deploy.runtime.postprocess import labels_of
from teso_deploy.runtime.preprocess import nearest_size, normalised, resized
from teso_deploy.runtime.schedule import Source

FRAMES = 64
STAGES = ("preprocess", *GRAPHS, "postprocess")


def measure(bundle: Bundle, clip: Path, threads: int, seconds: float) -> dict[str, Any]:
    """The report."""
    pipeline = Pipeline(bundle, onnxruntime_factory(threads))
    engines = pipeline.engines
    with Source(clip) as source:
        moments = list(islice(source, FRAMES))
        # Windows a hop apart, so that each is another sound.
        sounds = [source.track.window(0.24 * i).samples for i in range(40)]
    images = [moment.frame.image for moment in moments]
    how, threshold = bundle.manifest.preprocessing, bundle.manifest.postprocessing.threshold
    words = [[word] for word in pipeline.cue_table.names[:8]] or [[]]
    cues = [pipeline.cues_of(word) for word in words]

    def preprocess(i: int) -> Any:
        image = images[i % len(images)]
        return normalised(resized(image, nearest_size(image, how.sizes)), how.mean, how.std)

    memory = engines["visual_encoder"].run({"image": preprocess(0)})
    audio = engines["audio_encoder"].run({"waveform": sounds[5][None]})
    offered = {**audio, "cues": cues[0].embeddings[None], "cue_valid": cues[0].valid[None]}
    queries = engines["fusion"].run(offered)
    scores = engines["decoder"].run({**memory, **queries})["masks"][0]
    prepared = [preprocess(i) for i in range(8)]
    size = images[0].shape[:2]
    calls = {
        "preprocess": preprocess,
        "visual_encoder": lambda i: engines["visual_encoder"].run({"image": prepared[i % 8]}),
        "audio_encoder": lambda i: engines["audio_encoder"].run({"waveform": sounds[i % len(sounds)][None]}),
        "fusion": lambda i: engines["fusion"].run(offered),
        "decoder": lambda i: engines["decoder"].run({**memory, **queries}),
        "postprocess": lambda i: labels_of(scores, size, threshold),
        "whole frame": lambda i: pipeline.segment(images[i % FRAMES], sounds[i % len(sounds)], cues[i % len(cues)]),
        "new sound, same frame": lambda i: pipeline.segment(images[0], sounds[i % len(sounds)], cues[0]),
        "new cues, same frame": lambda i: pipeline.segment(images[0], sounds[5], cues[i % len(cues)]),
    }
    rows = []
    for name, call in calls.items():
        times = measured(call, seconds)
        rows.append({**row(name, times), "batch": 1, "precision": "fp32"})
    stages = {entry["name"]: entry["p50_ms"] for entry in rows if entry["name"] in STAGES}
    slowest = max(stages, key=lambda name: stages[name])
    return {
        "schema_version": 1,
        "rows": rows,
        "bound_by": f"Bound by {slowest}: {stages[slowest] / sum(stages.values()):.0%} of the stages' p50 together; "
        f"frames of {size[1]} x {size[0]}.",
        "environment": environment(bundle, threads),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: the shipped bundle")
    parser.add_argument("--clip", type=Path, default=shipped_path("export/demo/clip.mp4"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=LEAST_SECONDS, help="least time a row")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    try:
        bundle = Bundle.open(options.bundle)
        report = measure(bundle, options.clip, options.threads, options.seconds)
    except TesoError as error:
        sys.exit(f"latency: {error}")
    name = f"latency-{bundle.manifest.name}-cpu"
    publish(name, f"Latency of {bundle.manifest.name}, ONNX Runtime on the CPU", report, options.out)


if __name__ == "__main__":
    main()
